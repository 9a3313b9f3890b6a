"""An estimator does not change a module's hyperparameters, and is recorded beside them."""

from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader

from rbp_lightning import CGRBP, NeumannRBP, Picard, estimator_from_checkpoint
from tests.training import Tanh, fit, hparams_of, read_events, vectors

ADDED = {"estimator", "model", "seed"}
"""Keys that are logged in addition to a module's own."""


class OfMapping(Tanh):
    """A module whose hyperparameters are one mapping, like OmegaConf's."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.save_hyperparameters(config)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["rate"])


class OfDict(Tanh):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters(config)
        self.size = config["size"]


class OfKeywords(Tanh):
    def __init__(self, size: int = 4, **others: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.size = size + others["more"]


class NotLogged(Tanh):
    def __init__(self, secret: str = "secret", workers: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.hparams["workers"] = 4


class Changed(Tanh):
    def __init__(self, size: int = 3, depth: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.hparams["size"] = 5


class OwnEstimator(Tanh):
    """A module with an argument named ``estimator``, which is an estimator."""

    def __init__(self, estimator: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["estimator"])
        self.estimator = estimator or NeumannRBP(3)


class NamedEstimator(Tanh):
    """A module with a hyperparameter named ``estimator``, which is not an estimator."""

    def __init__(self, estimator: str = "mine") -> None:
        super().__init__()
        self.save_hyperparameters()


class Data(LightningDataModule):
    def __init__(self, workers: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader:
        return vectors()


MODULES = {
    "mapping": lambda: OfMapping(UserDict(rate=0.01, depth=2)),
    "dict": lambda: OfDict({"size": 3}),
    "keywords": lambda: OfKeywords(size=3, more=2),
    "not logged": NotLogged,
    "changed": Changed,
    "an argument that is an estimator": OwnEstimator,
    "a name that is the estimator's": NamedEstimator,
    "none": Tanh,
}


@pytest.mark.parametrize("with_data", [False, True], ids=["loader", "data module"])
@pytest.mark.parametrize("name", MODULES)
def test_an_estimator_does_not_change_a_run_s_hyperparameters(
    name: str, with_data: bool, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    found = []
    for callbacks in ([], [CGRBP(7, solver=Picard(70))]):
        module = MODULES[name]()
        before = dict(module.hparams), dict(module.hparams_initial), module._log_hyperparams
        if not callbacks:
            module.estimator = NeumannRBP()
        logger = TensorBoardLogger(tmp_path, name=f"run{len(callbacks)}")
        trainer = fit(module, Data() if with_data else vectors(), *callbacks, logger=logger)
        assert (dict(module.hparams), dict(module.hparams_initial), module._log_hyperparams) == before
        trainer.save_checkpoint(tmp_path / "one.ckpt")
        saved = torch.load(tmp_path / "one.ckpt", weights_only=True).get("hyper_parameters")
        written = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) or {}
        *_, values = hparams_of(read_events(trainer))
        found.append((saved, {key: value for key, value in written.items() if key not in ADDED}, values))
    (saved, written, hparams), (same_saved, same_written, same_hparams) = found
    assert same_saved == saved
    assert "estimator" not in (saved or {}) or name == "a name that is the estimator's"
    assert same_written == written
    added = ("model", "seed", "estimator/")
    own = {key: value for key, value in same_hparams.items() if not key.startswith(added)}
    assert own == hparams
    assert "secret" not in own
    assert same_hparams["model"] == type(module).__name__
    assert same_hparams["seed"] == 3
    if name != "a name that is the estimator's":  # the user's hyperparameter keeps this name
        assert same_hparams["estimator/class_path"] == "rbp_lightning.estimators.cg_rbp.CGRBP"
        assert same_hparams["estimator/init_args/steps"] == 7
        assert same_hparams["estimator/init_args/solver/init_args/max_steps"] == 70
    # In the checkpoint the estimator has a separate key.
    assert repr(estimator_from_checkpoint(tmp_path / "one.ckpt")) == repr(CGRBP(7, solver=Picard(70)))


@pytest.mark.parametrize("name", ["dict", "keywords", "not logged", "changed", "an argument that is an estimator"])
def test_modules_with_any_constructor_load_from_checkpoints(name: str, tmp_path: Path) -> None:
    module = MODULES[name]()
    fit(module, vectors(), CGRBP(7)).save_checkpoint(tmp_path / "one.ckpt")
    loaded = type(module).load_from_checkpoint(tmp_path / "one.ckpt")
    assert torch.equal(loaded.linear.weight, module.linear.weight)
    assert dict(loaded.hparams) == dict(module.hparams)
    if isinstance(loaded, OwnEstimator):
        assert isinstance(loaded.estimator, NeumannRBP)
        assert loaded(torch.ones(2, 4)).converged


def test_every_logger_gets_the_estimator_once_and_only_in_training(tmp_path: Path) -> None:
    class Log(CSVLogger):
        logged: list[dict[str, Any]] = []  # noqa: RUF012

        def log_hyperparams(self, params: Any = None) -> None:
            self.logged.append(dict(params))

    loggers = [Log(tmp_path / "one"), TensorBoardLogger(tmp_path / "two")]
    module = Changed()
    module.test_step = lambda inputs, batch_idx: None
    trainer = fit(module, vectors(), CGRBP(7), logger=loggers, log_every_n_steps=1)
    trainer.test(module, vectors(), verbose=False)
    with_estimator = [sorted(params.keys() - {"seed"}) for params in Log.logged if "estimator" in params]
    assert with_estimator == [["depth", "estimator", "model", "size"]]
    assert Log.logged[0]["size"] == 3  # the initial value


def test_a_run_needs_no_logger_and_no_hyperparameters() -> None:
    fit(Tanh(), vectors(), CGRBP(), logger=False)
