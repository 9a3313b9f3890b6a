"""A module without an estimator raises a helpful error, and a checkpoint restores its estimator."""

import copy
import importlib
import os
import pickle
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    ExactAdjoint,
    GradientEstimator,
    Implicit,
    NeedsEstimator,
    NeumannRBP,
    Picard,
    UserError,
    estimator_from_checkpoint,
)
from rbp_lightning.estimators.describe import describe, from_description
from rbp_lightning.linear import NormalCG, Richardson
from rbp_lightning.solvers import FixedPointSolver
from tests.training import Tanh, fit, vectors


class Net(Tanh, NeedsEstimator):
    pass


class Hooked(Net):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["own"] = 1

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.own = checkpoint["own"]


def test_a_module_without_an_estimator_raises_an_error_with_the_remedy() -> None:
    module = Net()
    for use in (lambda: module(torch.zeros(2, 4)), lambda: fit(module, vectors())):
        with pytest.raises(UserError, match=r"Net has no gradient estimator.*Trainer\(callbacks="):
            use()
    assert not hasattr(module, "estimator")
    assert getattr(module, "estimator", None) is None
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        with pytest.raises(UserError, match="no gradient estimator"):
            copied(torch.zeros(2, 4))
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'estimators'"):
        _ = module.estimators
    module.estimator = NeumannRBP()
    assert module(torch.zeros(2, 4)).converged


@pytest.mark.parametrize("kind", [Net, Hooked])
@pytest.mark.parametrize("weights_only", [False, True])
def test_a_loaded_module_names_the_estimator_in_its_checkpoint(kind: type, weights_only: bool, tmp_path: Path) -> None:
    path, estimator = tmp_path / "one.ckpt", CGRBP(7, solver=Picard(70, 1e-5))
    module = kind()
    fit(module, vectors(), estimator).save_checkpoint(path, weights_only=weights_only)
    loaded = kind.load_from_checkpoint(path)
    with pytest.raises(UserError, match=r"CGRBP\(steps=7, .*estimator_from_checkpoint"):
        loaded(torch.zeros(2, 4))
    loaded.estimator = estimator_from_checkpoint(path)
    assert repr(loaded.estimator) == repr(estimator)
    inputs = torch.ones(2, 4)
    assert torch.equal(loaded(inputs).state, module(inputs).state)
    # A run without an estimator keeps the module's own and records it in its checkpoints.
    fit(loaded, vectors()).save_checkpoint(path)
    assert repr(estimator_from_checkpoint(path)) == repr(estimator)


def test_a_resumed_run_uses_the_trainer_s_estimator(tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    fit(Net(), vectors(), CGRBP()).save_checkpoint(path)
    module = Net()
    fit(module, vectors(), BPTT(), ckpt_path=path, max_epochs=2)
    assert isinstance(module.estimator, BPTT)


def save(content: dict[str, Any], path: str | Path) -> None:
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6", **content}, path)


class Halving(FixedPointSolver):
    """A solver that wraps another one."""

    def __init__(self, inner: FixedPointSolver, weights: tuple[float, ...] = (0.5, 0.5)) -> None:
        super().__init__(inner.max_steps, inner.tol)
        self.inner, self.weights = inner, weights

    def step(self, vector: Any, image: Any, memory: Any) -> Any:
        return [(h + f) / 2 for h, f in zip(vector, image, strict=True)], memory


class OfTensor(NeumannRBP):
    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = scale


ESTIMATORS = [BPTT(Picard(33, 1e-4, 5, 1e-9)), TBPTT(3), RBP(9, 1e-3, "gradient", 3), NeumannRBP(4, Halving(Picard(9)))]
ESTIMATORS += [AdaptiveNeumann(1e-2, 50, 0.8), ExactAdjoint(), CGRBP(), Implicit(NormalCG(3, 1e-2))]
ESTIMATORS += [Implicit(Richardson(4), Halving(Picard(8, 1e-3), (0.25, 0.75)))]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda one: repr(one)[:30])
def test_a_description_makes_the_same_estimator(estimator: GradientEstimator, tmp_path: Path) -> None:
    again = from_description(describe(estimator), GradientEstimator)
    assert type(again) is type(estimator)
    assert describe(again) == describe(estimator)
    assert repr(again) == repr(estimator)
    save({"estimator": describe(estimator)}, tmp_path / "one.ckpt")
    assert repr(estimator_from_checkpoint(str(tmp_path / "one.ckpt"))) == repr(estimator)


def test_estimators_with_numpy_numbers_and_enums_load_from_checkpoints(tmp_path: Path) -> None:
    class Start(str, Enum):
        GRADIENT = "gradient"

    estimator = RBP(np.int64(7), np.float64(1e-3), Start.GRADIENT, solver=Picard(np.int32(80), np.float64(0.5)))
    fit(Net(), vectors(), estimator).save_checkpoint(tmp_path / "one.ckpt")
    again = estimator_from_checkpoint(tmp_path / "one.ckpt")
    assert (again.steps, again.tol, again.start) == (7, 1e-3, "gradient")
    assert (again.solver.max_steps, again.solver.tol) == (80, 0.5)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"class_path": "os.system", "init_args": {"command": "touch made"}}, "'os.system' is not a GradientEstimator"),
        ({"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "made"]}}, "is not a GradientEstimator"),
        ({"class_path": "rbp_lightning.solvers.picard.Picard"}, "is not a GradientEstimator"),
        ({"class_path": "rbp_lightning.estimators.base.GradientEstimator"}, "is not a GradientEstimator"),
        ({"class_path": "not_imported.Estimator"}, "import its module first"),
        ({"class_path": ["rbp_lightning"]}, "needs a class_path"),
        ({}, "needs a class_path"),
        ({"class_path": "rbp_lightning.estimators.bptt.BPTT", "init_args": [1]}, "init_args by name"),
        ({"class_path": "rbp_lightning.estimators.bptt.BPTT", "init_args": {"step": 1}}, r"not take .*\['step'\]"),
        ({"class_path": "rbp_lightning.estimators.tbptt.TBPTT", "init_args": {"steps": "many"}}, "steps='many'"),
        (
            {"class_path": "rbp_lightning.estimators.bptt.BPTT", "init_args": {"solver": "Picard()"}},
            "not of type FixedPointSolver",
        ),
        (
            {"class_path": "rbp_lightning.estimators.bptt.BPTT", "init_args": {"solver": {"class_path": "os.system"}}},
            "'os.system' is not a FixedPointSolver",
        ),
        (describe(OfTensor(torch.ones(2))), r"made with scale='tensor\(\[1., 1.\]\)"),
    ],
)
def test_a_description_of_anything_but_estimators_and_solvers_is_refused(
    description: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save({"estimator": description}, "one.ckpt")
    with pytest.raises(UserError, match=message):
        estimator_from_checkpoint("one.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["one.ckpt"]


class MakesFolder:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made",)


def test_nothing_in_a_checkpoint_is_executed_and_errors_name_the_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'none\.ckpt' is not a file"):
        estimator_from_checkpoint("none.ckpt")
    save({"estimator": MakesFolder()}, "folder.ckpt")
    with pytest.raises(UserError, match=r"'folder\.ckpt' holds \w+\.mkdir"):
        estimator_from_checkpoint("folder.ckpt")
    assert not Path("made").exists()
    save({}, "without.ckpt")
    with pytest.raises(UserError, match="has no gradient estimator"):
        estimator_from_checkpoint("without.ckpt")
    whole = Path("without.ckpt").read_bytes()
    for name, content in {"text": b"hello world", "empty": b"", "half": whole[: len(whole) // 2]}.items():
        Path(name).write_bytes(content)
        with pytest.raises(UserError, match=f"'{name}' is corrupt"):
            estimator_from_checkpoint(name)


def test_a_class_is_found_once_its_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from rbp_lightning import NeumannRBP\nclass Own(NeumannRBP):\n    'One of a user.'\n"
    (tmp_path / "estimator_of_a_user.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "one.ckpt"
    save({"estimator": {"class_path": "estimator_of_a_user.Own", "init_args": {"steps": 3}}}, path)
    with pytest.raises(UserError, match=r"'estimator_of_a_user\.Own'.* import its module"):
        estimator_from_checkpoint(path)
    assert "estimator_of_a_user" not in sys.modules
    importlib.import_module("estimator_of_a_user")
    assert repr(estimator_from_checkpoint(path)).startswith("Own(steps=3, solver=Auto(")
