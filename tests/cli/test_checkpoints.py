"""Checkpoints given on the command line."""

import copy
import enum
import functools
import os
import reprlib
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from models import HopfieldMemory
from rbp_lightning import UserError
from rbp_lightning.checkpoint_file import load_checkpoint
from rbp_lightning.cli import RBPLightningCLI
from rbp_lightning.cli.checkpoints import NamedCheckpoint
from tests.cli.options import RUN, TINY
from tests.cli.own import OPTIONS


class Other(LightningModule):
    """A model with other parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


@pytest.mark.parametrize("subcommand", ["fit", "predict"])
def test_damaged_and_other_checkpoints_are_refused(cli, subcommand) -> None:
    assert cli("fit", *TINY)[0] == 0
    good = (RUN / "checkpoints/last.ckpt").read_bytes()
    checkpoint = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    torch.save({**checkpoint, "state_dict": Other().state_dict()}, "other.ckpt")
    renamed = {**checkpoint["hyper_parameters"], "_class_path": "models.Another"}
    torch.save({**checkpoint, "hyper_parameters": renamed}, "renamed.ckpt")
    Path("cut.ckpt").write_bytes(good[: len(good) // 2])
    for name, message in {
        "cut": "is corrupt",
        "other": "weight.original",
        "renamed": "set --model to models.Another",
    }.items():
        status, _, err = cli(subcommand, *TINY, f"--ckpt_path={name}.ckpt")
        assert (status, message in err) == (1, True), err
    assert len(list(Path("logs").rglob("*.ckpt"))) == 2


def brief(value: Any) -> str:
    return reprlib.repr(value)[:60]


@pytest.fixture
def valid(tmp_path) -> Path:
    path = tmp_path / "valid.ckpt"
    torch.save({"state_dict": {"weight": torch.ones(99)}, "pytorch-lightning_version": "2.6.0"}, path)
    return path


def change(path: Path, **parts: Any) -> None:
    torch.save({**torch.load(path, weights_only=True), **parts}, path)


def test_damaged_files_and_files_of_other_kinds_are_refused(valid: Path, tmp_path: Path) -> None:
    assert torch.equal(load_checkpoint(valid)["state_dict"]["weight"], torch.ones(99))
    content = valid.read_bytes()
    flipped = bytearray(content)
    start = content.index(torch.ones(8).numpy().tobytes())
    flipped[start : start + 8] = bytes(8)
    bad = tmp_path / "bad.ckpt"
    for damaged in (content[: len(content) // 2], bytes(flipped), b"no checkpoint", b""):
        bad.write_bytes(damaged)
        with pytest.raises(UserError, match=r"bad.ckpt' is corrupt"):
            load_checkpoint(bad)
    for other in ({"state_dict": {}}, [1, 2]):
        torch.save(other, bad)
        with pytest.raises(UserError, match=r"bad.ckpt' is corrupt"):
            load_checkpoint(bad)
    with pytest.raises(UserError, match="is not a file"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "parts",
    [
        {"state_dict": [torch.ones(2)]},
        {"state_dict": {3: torch.ones(2)}},
        {3: 4},
        {"pytorch-lightning_version": "x"},
        {"pytorch-lightning_version": 2.6},
        {"pytorch-lightning_version": "1.9.0"},
        {"callbacks": functools.reduce(lambda inner, _: [inner], range(100), 1)},
        {"callbacks": functools.reduce(lambda inner, _: [inner] * 9, range(30), 1)},
        {"state_dict": {"weight": torch.ones(1).expand(10**12)}},
    ],
    ids=brief,
)
def test_a_checkpoint_with_invalid_types_or_sizes_is_refused(parts: dict[Any, Any], valid: Path) -> None:
    torch.save({**torch.load(valid, weights_only=True), **parts}, valid)
    with pytest.raises(UserError, match=r"valid\.ckpt") as raised:
        load_checkpoint(valid)
    assert len(str(raised.value)) < 1000


def test_a_compressed_checkpoint_is_not_unpacked(valid: Path, tmp_path: Path) -> None:
    """PyTorch does not compress, and compressed members can be a thousand times larger than the file."""
    with zipfile.ZipFile(valid) as stored, zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name) + bytes(10**6))
    with pytest.raises(UserError, match=r"b\.ckpt"):
        load_checkpoint(tmp_path / "b.ckpt")


def test_an_object_that_pytorch_does_not_allow_is_named(valid: Path) -> None:
    content = load_checkpoint(valid)
    torch.save({**content, "callbacks": {"Statistics": {"mean": np.float64(0.3)}}}, valid)
    with pytest.raises(UserError, match=r"holds numpy\._core\.multiarray\.scalar.*add_safe_globals") as raised:
        load_checkpoint(valid)
    assert "corrupt" not in str(raised.value)
    allowed = [np._core.multiarray.scalar, np.dtype, type(np.dtype("float64"))]
    with torch.serialization.safe_globals(allowed):  # as the error suggests
        assert load_checkpoint(valid)["callbacks"] == {"Statistics": {"mean": 0.3}}


def test_config_values_that_a_checkpoint_overrides_are_named(cli) -> None:
    assert cli("fit", *TINY)[0] == 0
    Path("gain.yaml").write_text("model: {init_args: {gain: 5.0}}")
    status, out, _ = cli("test", *TINY, "--config=gain.yaml", f"--ckpt_path={RUN}/checkpoints/last.ckpt")
    assert status == 0
    assert "gain=1.5 overrides 5.0" in out
    assert "num_hidden" not in out  # has the same value in both


class PrintsArguments(Other):
    """A model that prints its arguments, one of them an argument of a part and one without a declaration."""

    def __init__(self, name: str = "n", count: int = 1, part: "Part | None" = None, **others: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.arguments = (name, count, part and part.size, others["depth"])

    def test_step(self, inputs: torch.Tensor) -> None:
        print(f"arguments: {self.arguments}")


@pytest.mark.parametrize("trusted", [False, True])
def test_the_command_line_of_an_evaluation_wins_over_the_checkpoint(cli, trusted) -> None:
    name, part = "tests.cli.test_checkpoints.PrintsArguments", "tests.cli.test_checkpoints.Part"
    saved = {"name": "saved", "count": 2, "part": {"class_path": part, "init_args": {"size": 2}}, "_class_path": name}
    saved["depth"] = 2
    head = {"pytorch-lightning_version": "2.6.0", "epoch": 0, "global_step": 0, "hyper_parameters": saved}
    torch.save({**head, "state_dict": Other().state_dict()}, "model.ckpt")
    options = [f"--model={name}", "--data=ImagePatterns", *OPTIONS, "--data.eval_draws=1", "--ckpt_path=model.ckpt"]
    options += [f"--trust_checkpoint={trusted}", f"--model.part={part}", "--model.name=given"]
    Path("depth.yaml").write_text("model: {dict_kwargs: {depth: 1}}")
    given = ["--model.count", "3", "--model.part.size=3", "--model.dict_kwargs.depth=3"]
    for more, expected in (["--config=depth.yaml"], "('given', 2, 2, 2)"), (given, "('given', 3, 3, 3)"):
        status, out, err = cli("test", *options, *more)
        assert (status, f"arguments: {expected}" in out) == (0, True), out + err


def test_a_resumed_run_keeps_the_checkpoint_s_values(cli) -> None:
    assert cli("fit", *TINY)[0] == 0
    longer = ["--trainer.max_epochs=3", f"--ckpt_path={RUN}/checkpoints/last.ckpt", "--model.gain=5"]
    status, out, _ = cli("fit", *TINY, *longer)
    assert status == 0
    assert "gain=1.5 overrides 5.0" in out


class Plain(HopfieldMemory):
    """A model without arguments, with an extra state that is not a tensor."""

    def __init__(self) -> None:
        super().__init__(num_hidden=4)

    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"a": 1}


class Mapping(Other):
    """A model that saves more than its arguments, one of which is named ``estimator``."""

    def __init__(self, estimator: str = "mine", width: int = 2) -> None:
        super().__init__()
        self.chosen = estimator
        self.save_hyperparameters({"estimator": estimator, "width": width, "dataset": {"name": "Cora"}})

    def test_step(self, inputs: torch.Tensor) -> None:
        print(f"chosen: {self.chosen}")


def test_a_model_without_arguments_loads_from_its_checkpoint(cli) -> None:
    small = ["--model=tests.cli.test_checkpoints.Plain", "--data=ImagePatterns", *OPTIONS]
    assert cli("fit", *small, "--data.train_draws=2", "--trainer.default_root_dir=run")[0] == 0
    (last,) = Path("run").rglob("*.ckpt")
    status, _, err = cli("test", *small, f"--ckpt_path={last}")
    assert status == 0, err


def test_saved_hyperparameters_become_the_model_s_arguments(cli) -> None:
    """Only those that are arguments, of any name; strings have to match the command line's."""
    name = "tests.cli.test_checkpoints.Mapping"
    hyperparameters = {"_class_path": name, "estimator": "mine", "width": 2, "dataset": {"name": "Cora"}}
    content = {"state_dict": Mapping().state_dict(), "pytorch-lightning_version": "2.6.0", "epoch": 0, "global_step": 0}
    options = [f"--model={name}", "--data=ImagePatterns", *OPTIONS, "--data.eval_draws=1", "--ckpt_path=model.ckpt"]
    for saved in ({}, hyperparameters, {**hyperparameters, "estimator": "theirs"}):
        torch.save({**copy.deepcopy(content), "hyper_parameters": saved}, "model.ckpt")
        differs = saved.get("estimator") == "theirs"
        for more in (["--trust_checkpoint=true"], ["--model.estimator=theirs"]) if differs else ([],):
            status, out, err = cli("test", *options, *more)
            assert status == 0, err
            assert f"chosen: {saved.get('estimator', 'mine')}" in out
    status, _, err = cli("test", *options)
    assert status == 1
    assert all(text in err for text in ("--model.estimator", "'theirs'", "'mine'", "--trust_checkpoint=true")), err


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Part:
    """A part of a model."""

    def __init__(self, size: int = 1, kind: Literal["a", "b"] = "a", inner: "Part | None" = None) -> None:
        self.size = size


class Whole(LightningModule):
    """A model with an argument of every kind."""

    def __init__(
        self,
        count: int = 1,
        rate: float | None = 0.5,
        name: str = "n",
        norm: Literal["l1", "l2"] | float = "l1",
        colour: Colour = Colour.RED,
        sizes: list[int] | None = None,
        norms: list[Literal["l1", "l2"]] | None = None,
        part: Part | None = None,
        parts: list[Part] | None = None,
        table: dict[str, float] | None = None,
    ) -> None:
        super().__init__()


def given(**arguments: Any) -> dict[str, Any]:
    """A config of ``Whole`` as the command line parses it."""
    part = {"class_path": f"{__name__}.Part", "init_args": {"size": 1, "kind": "a", "inner": None}}
    part["init_args"]["inner"] = copy.deepcopy(part)
    every = {"count": 1, "rate": 0.5, "name": "n", "norm": "l1", "colour": "RED", "sizes": [1, 2], "norms": ["l1"]}
    every |= {"part": part, "parts": [copy.deepcopy(part), copy.deepcopy(part)], "table": {"a": 1.0, "b": 2.0}}
    return {"class_path": f"{__name__}.Whole", "init_args": {**every, **arguments}}


def part_of(**arguments: Any) -> dict[str, Any]:
    return {"class_path": f"{__name__}.Part", "init_args": arguments}


def model_config(path: Path, saved: dict[str, Any]) -> dict[str, Any] | None:
    change(path, hyper_parameters=saved)
    return NamedCheckpoint(str(path)).model_config(given())


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"count": 5, "rate": None, "other": part_of()}, {"count": 5, "rate": None}),
        ({"rate": float("nan"), "norm": 2}, {"rate": float("nan"), "norm": 2}),
        ({"norm": "l2", "colour": "BLUE"}, {"norm": "l2", "colour": "BLUE"}),
        ({"sizes": (1, 2, 3), "norms": ["l2", "l1"]}, {"sizes": (1, 2, 3), "norms": ["l2", "l1"]}),
        ({"sizes": None, "norms": None}, {"sizes": None, "norms": None}),
        ({"table": {"b": 3, "a": 1}}, {"table": {"a": 1.0, "b": 3}}),
        ({"part": part_of(size=7, inner=part_of(kind="b"))}, {"part": 7, "inner": "b"}),
        ({"parts": [part_of(), part_of(size=7)]}, {"parts": 7}),
    ],
    ids=brief,
)
def test_numbers_and_choices_are_taken_from_a_checkpoint(saved: Any, expected: dict[str, Any], valid: Path) -> None:
    model = model_config(valid, {"_class_path": f"{__name__}.Whole", **saved})
    assert model is not None
    expected_config = given(
        **{name: value for name, value in expected.items() if name not in ("part", "parts", "inner")}
    )
    if "part" in expected:
        expected_config["init_args"]["part"]["init_args"]["size"] = expected["part"]
        expected_config["init_args"]["part"]["init_args"]["inner"]["init_args"]["kind"] = expected["inner"]
    if "parts" in expected:
        expected_config["init_args"]["parts"][1]["init_args"]["size"] = expected["parts"]
    assert repr(model) == repr(expected_config)  # NaN differs from itself
    assert model_config(valid, {}) is None


@pytest.mark.parametrize(
    ("argument", "saved"),
    [
        ("name", "m"),
        ("norm", "l3"),
        ("colour", "GREEN"),
        ("norms", ["l1", "l3"]),
        ("name", part_of()),
        ("count", part_of()),
        ("count", "1"),
        ("count", 10**30),
        ("count", torch.ones(())),
        ("sizes", [1, "x"]),
        ("sizes", [1, part_of()]),
        ("sizes", {"a": 1}),
        ("table", {"a": 1.0}),
        ("table", {"a": 1.0, "class_path": "x"}),
        ("table", {"a": "x", "b": 2.0}),
        ("table", [1.0]),
        ("part", None),
        ("part", 3),
        ("part", "x"),
        ("part", f"{__name__}.Part"),
        ("part", {}),
        ("part", {"class_path": 3}),
        ("part", {"class_path": "this.Zen"}),
        ("part", {"class_path": f"{__name__}.Whole"}),
        ("part", {**part_of(), "__path__": "x"}),
        ("part", {"class_path": f"{__name__}.Part", "init_args": [1]}),
        ("part", {"class_path": f"{__name__}.Part", "dict_kwargs": {"x": 1}}),
        ("part", part_of(size=part_of())),
        ("part", part_of(unknown=1)),
        ("part", part_of(inner=None)),
        ("part", part_of(inner=part_of(inner=part_of()))),
        ("parts", []),
        ("parts", None),
        ("parts", [part_of()]),
        ("parts", [part_of(), part_of(), part_of()]),
        ("parts", [part_of(), part_of(kind="c")]),
        ("parts", [1, 2]),
    ],
    ids=brief,
)
def test_strings_and_class_paths_have_to_match_the_command_line(argument: str, saved: Any, valid: Path) -> None:
    with pytest.raises(UserError, match=rf"valid\.ckpt.*model\.{argument}.*--trust_checkpoint"):
        model_config(valid, {argument: saved})


@pytest.mark.parametrize("saved", [[1], "x", {3: 4}, {"_class_path": 5}, {"_class_path": "x\x1b[2J"}], ids=brief)
def test_hyperparameters_of_invalid_types_are_refused_printably(saved: Any, valid: Path) -> None:
    with pytest.raises(UserError, match=r"valid\.ckpt") as raised:
        model_config(valid, saved)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("wrong", [float("nan"), [1]], ids=brief)
def test_an_invalid_saved_argument_is_refused_in_one_line(wrong: Any, cli) -> None:
    save = {"state_dict": HopfieldMemory().state_dict(), "pytorch-lightning_version": "2.6.0"}
    torch.save({**save, "hyper_parameters": {"gain": wrong}}, "a.ckpt")
    status, _, err = cli("test", *TINY, "--ckpt_path=a.ckpt")
    assert (status, err.count("error:"), "gain" in err) == (1, 1, True), err


@pytest.mark.parametrize("name", ["best_model_path", "kth_best_model_path", "last_model_path", "best_k_models"])
@pytest.mark.parametrize(
    "path",
    ["local://{kept}", "file://{kept}", "dir::{kept}", "{run}/checkpoints/../../../../kept", "a/../b", 3, "a\nb"],
)
def test_a_checkpoint_that_names_files_to_delete_is_refused(name: str, path: Any, valid: Path, tmp_path: Path) -> None:
    named = path.format(kept=tmp_path / "kept", run=RUN) if isinstance(path, str) else path
    change(valid, callbacks={"One": {name: {named: 1} if name == "best_k_models" else named}})
    with pytest.raises(UserError, match=r"valid\.ckpt"):
        NamedCheckpoint(str(valid))
    change(valid, callbacks={"One": {name: {"../logs/a.ckpt": 1} if name == "best_k_models" else "../logs/a.ckpt"}})
    NamedCheckpoint(str(valid))


@pytest.mark.parametrize("count", [-1, 2**63, 0.5, "x", None, [1]], ids=brief)
def test_invalid_counters_are_refused(count: Any, valid: Path) -> None:
    for loops in ({"fit_loop": {"epoch_progress": {"current": {"processed": count}}}}, {"total": {"ready": count}}):
        change(valid, loops=loops)
        with pytest.raises(UserError, match=r"valid\.ckpt.*(processed|ready)"):
            NamedCheckpoint(str(valid))


@pytest.mark.parametrize("odd", [0.1j, torch.ones(2), torch.ones(2, device="meta"), [[[[[[1]]]]]]], ids=str)
def test_invalid_scheduler_states_are_refused(odd: Any, valid: Path) -> None:
    for key in ("last_epoch", "_step_count", "base_lrs", "more"):
        change(valid, lr_schedulers=[{"last_epoch": 1, "_step_count": 2, key: odd}])
        with pytest.raises(UserError, match=rf"its lr_schedulers\.0\.{key}"):
            NamedCheckpoint(str(valid)).model_config(given())


@pytest.mark.parametrize("wrong", [torch.ones(2, 2, dtype=torch.int64), torch.ones(2, 2, dtype=torch.complex64), 3])
def test_weights_of_another_shape_or_dtype_are_refused(wrong: Any, valid: Path) -> None:
    model = Other()
    change(valid, state_dict={**model.state_dict(), "layer.weight": wrong})
    with pytest.raises(UserError, match=r"valid\.ckpt.*layer\.weight"):
        NamedCheckpoint(str(valid)).check_parameters(model)
    change(valid, state_dict={name: weight.half() for name, weight in model.state_dict().items()})
    NamedCheckpoint(str(valid)).check_parameters(model)


class _Payload:
    def __reduce__(self) -> Any:
        return os.mkdir, ("PWNED",)


class Swap(Callback):
    """Replaces the checkpoint by another file after it was checked."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        torch.save(_Payload(), "a.ckpt")


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
# pytest.warns raises Lightning's own warning again, as if from here.
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_a_file_swapped_after_the_check_is_not_executed(subcommand: str, cli, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert subcommand in RBPLightningCLI.subcommands()
    model = HopfieldMemory(num_hidden=16)
    save = {"state_dict": model.state_dict(), "pytorch-lightning_version": "2.6.0", "loops": {}}
    torch.save(save, "a.ckpt")
    swap = "--trainer.callbacks=[tests.cli.test_checkpoints.Swap]"
    with pytest.warns(UserWarning, match="replaces"):
        status, _, err = cli(subcommand, *TINY, swap, "--ckpt_path=a.ckpt")
    assert (status, err.count("error:")) == (1, 1), err
    assert not Path("PWNED").exists()


def test_weights_only_cannot_be_turned_off(cli) -> None:
    status, _, err = cli("test", *TINY, "--weights_only=false", "--trust_checkpoint=true")
    assert (status, "weights_only" in err) == (1, True)


def test_file_names_that_lightning_takes_for_addresses_are_files(cli) -> None:
    """Such as a folder whose name begins with "http"; ``hpc`` is the newest checkpoint of a cluster's job."""
    Path("http").mkdir()
    model = HopfieldMemory(num_hidden=16)
    save = {"state_dict": model.state_dict(), "pytorch-lightning_version": "2.6.0"}
    for path in ("http/a.ckpt", "hpc_ckpt_2.ckpt", "registry"):
        torch.save(save, path)
    Path("hpc_ckpt_1.ckpt").write_text("no checkpoint")
    for named in ("http/a.ckpt", "hpc", "registry"):
        status, out, err = cli("test", *TINY, f"--ckpt_path={named}")
        assert status == 0, err
        assert ("hpc_ckpt_2.ckpt" in out) == (named == "hpc")


@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_a_cluster_job_checks_its_checkpoint(subcommand: str, cli, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "training")
    torch.save(_Payload(), "hpc_ckpt_1.ckpt")
    status, _, err = cli(subcommand, *TINY)
    assert (status, "hpc_ckpt_1.ckpt" in err, Path("PWNED").exists()) == (1, True, False), err
