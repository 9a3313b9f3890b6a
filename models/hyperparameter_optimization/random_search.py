"""Random search, for comparison with hypergradients."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.func import functional_call

from models.hyperparameter_optimization.optimizer import HyperparameterOptimizer
from models.hyperparameters import Examples
from models.inner_training.momentum_sgd import Tensors
from rbp_lightning.checkpoint_file import load_checkpoint
from rbp_lightning.errors import UserError, check_count, check_number, check_seed


class RandomSearch(Callback):
    """Compares a finished hyperparameter optimisation with its starting point and with a random search.

    A trial of the random search is an inner training with hyperparameters drawn around the initial ones: a draw from
    U[-spread, spread] is added to theta, the same for all entries of a kind (all learning rates, all momenta, ...), as
    in a search by hand. The trial with the lowest validation loss is tested, and so is the best checkpoint of the
    optimisation, or its last network without one. The comparison uses all validation and test data.

    Args:
        spread: Half the width of the range of draws, above 0. theta is a logarithm or a logit.
        trials: Number of trials, at least 1. ``None`` for as many as take the same time as the optimisation.
        seed: Seed of the draws.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> search = RandomSearch(spread=2.0, trials=20)  # Trainer(callbacks=[search, TBPTT(...)])
    """

    def __init__(self, spread: float = 3.0, trials: int | None = None, seed: int = 0) -> None:
        self.spread = check_number(self, "spread", spread, 0.0, low_allowed=False)
        self.trials = None if trials is None else check_count(self, "trials", trials, 1)
        self.seed = check_seed(self, "seed", seed)
        self.seconds = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keeps the initial hyperparameters, before a checkpoint replaces them.

        Raises:
            UserError: If the module is not a ``HyperparameterOptimizer``, or there is no data module.
        """
        if not isinstance(pl_module, HyperparameterOptimizer):
            raise UserError(
                f"RandomSearch: {type(pl_module).__name__} is not a HyperparameterOptimizer: remove the callback."
            )
        if getattr(trainer, "datamodule", None) is None:
            raise UserError("RandomSearch: there is no data module with validation and test data: pass one to fit.")
        self._start = {name: leaf.detach().clone() for name, leaf in _learned(pl_module).items()}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the clock."""
        self._batch_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops the clock, and keeps the training data."""
        self.seconds += time.perf_counter() - self._batch_start
        self._training: Examples = batch["train"]

    def state_dict(self) -> dict[str, Any]:
        """Returns the time so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from the time of the resumed run."""
        self.seconds = check_number(self, "seconds", state_dict.get("seconds", -1.0), 0.0)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs the search and prints the comparison."""
        assert isinstance(pl_module, HyperparameterOptimizer)
        if not hasattr(self, "_training"):  # the resumed run was already finished
            return
        training_mode = pl_module.training
        pl_module.train()  # as in the optimisation
        pl_module.trained.eval()
        learned = {name: leaf.detach().clone() for name, leaf in _learned(pl_module).items()}
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            rows = {
                "starting": self._test(trainer, pl_module, self._train(pl_module, self._start)),
                "learned": self._test(trainer, pl_module, _best(trainer, pl_module)),
            }
            best, trials = self._search(trainer, pl_module)
            rows[f"random search, {trials} trials"] = self._test(trainer, pl_module, best)
            _set(pl_module, learned)
        pl_module.train(training_mode)
        if trainer.is_global_zero:
            print("| hyperparameters | validation loss | test loss | test accuracy |")
            print("|---|---|---|---|")
            for name, (val_loss, test_loss, accuracy) in rows.items():
                print(f"| {name} | {val_loss:.4f} | {test_loss:.4f} | {100 * accuracy:.2f} % |")

    def _search(self, trainer: Trainer, module: HyperparameterOptimizer) -> tuple[Tensors, int]:
        generator = torch.Generator().manual_seed(self.seed)
        best, lowest, trials, start = None, float("inf"), 0, time.perf_counter()
        while best is None or self._continues(trainer, trials, time.perf_counter() - start):
            drawn = {}
            for name, leaf in self._start.items():
                drawn[name] = leaf + self.spread * (2 * torch.rand((), generator=generator).item() - 1)
            parameters = self._train(module, drawn)
            loss, _ = _evaluate(module, parameters, _loaders(trainer).val_dataloader())
            trials += 1
            if best is None or loss < lowest:  # NaN is never lower
                best, lowest = parameters, loss if loss == loss else float("inf")
        return best, trials

    def _continues(self, trainer: Trainer, trials: int, seconds: float) -> bool:
        within = seconds < self.seconds if self.trials is None else trials < self.trials
        return bool(trainer.strategy.broadcast(within))  # the processes train together

    def _train(self, module: HyperparameterOptimizer, hyperparameters: Tensors) -> Tensors:
        _set(module, hyperparameters)
        parameters: Tensors = module.train_network(self._training, restart=True).state["parameters"]
        return parameters

    def _test(
        self, trainer: Trainer, module: HyperparameterOptimizer, parameters: Tensors
    ) -> tuple[float, float, float]:
        val_loss, _ = _evaluate(module, parameters, _loaders(trainer).val_dataloader())
        return val_loss, *_evaluate(module, parameters, _loaders(trainer).test_dataloader())


def _loaders(trainer: Trainer) -> Any:
    return trainer.datamodule  # type: ignore[attr-defined]


def _learned(module: HyperparameterOptimizer) -> dict[str, Tensor]:
    return {name: leaf for name, leaf in module.named_parameters() if leaf.requires_grad}


def _set(module: HyperparameterOptimizer, values: Tensors) -> None:
    for name, leaf in _learned(module).items():
        leaf.copy_(values[name])


def _best(trainer: Trainer, module: HyperparameterOptimizer) -> Tensors:
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if path and Path(path).is_file():
        saved = load_checkpoint(path)["state_dict"]
        return {name: saved[f"trained.{name}"].to(module.device) for name, _ in module.trained.named_parameters()}
    return dict(module.trained.named_parameters())


def _evaluate(module: HyperparameterOptimizer, parameters: Tensors, batches: Any) -> tuple[float, float]:
    loss, correct, count = 0.0, 0.0, 0
    for batch in batches:
        converted = module.trainer.precision_plugin.convert_input(batch)
        examples = module.trainer.strategy.batch_to_device(converted, module.device)
        size = len(examples["labels"])
        loss += float(module.objective.plain(parameters, examples, 1))
        scores = functional_call(module.trained, dict(parameters), (examples["images"],))
        correct += float((scores.argmax(1) == examples["labels"]).sum())
        count += size
    return loss / count, correct / count
