"""Which modules can be audited, and that an audit changes neither them nor the Trainer."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader

from rbp_lightning import JFB, EquilibriumMonitor, FixedPointLayer, GradientEstimator, NeumannRBP, Picard, UserError
from tests.cells import loss_of
from tests.diagnostics.audit.audited import Exact, audit, batches, make_trainer
from tests.training import Tanh, vectors


def test_an_audit_does_not_change_the_trainer_and_the_modules() -> None:
    class Failing(Exact):
        def training_step(self, batch: Any) -> Tensor:
            raise RuntimeError("raised by the module")

    trainer = make_trainer(NeumannRBP(), EquilibriumMonitor(), max_epochs=2)
    before = list(trainer.callbacks)
    modules = [Exact(), Failing(), Exact()]
    trainer.audit(modules[0], batches(), steps=[1])
    with pytest.raises(RuntimeError, match="raised by the module"):
        trainer.audit(modules[1], batches(), steps=[1])
    assert trainer.callbacks == before
    for module in modules:
        assert not {"training_step", "configure_callbacks", "configure_optimizers"} & set(vars(module))
    weight = modules[2].weight.detach().clone()
    trainer.fit(modules[2], batches())
    assert trainer.global_step == 10  # all steps of both epochs
    assert not torch.equal(modules[2].weight, weight)


def test_no_optimizer_is_run() -> None:
    class BySecondOrder(Exact):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.LBFGS(self.parameters())

    assert audit(BySecondOrder(), NeumannRBP(), steps=[50]).advice.startswith("Take ")


class Keeping(Tanh):
    """Stores its last results, with their graphs, in attributes of several kinds."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.linear, self.norm = layer, nn.BatchNorm1d(4)
        self.kept: dict[str, Any] = {}

    def training_step(self, inputs: Tensor, batch_idx: int) -> Tensor:
        state = self(self.norm(inputs)).state
        self.last, self.linear.last, self.kept["list"] = state, state * 2, [state.square(), (state,)]
        self.fixed_point = self(inputs)
        return state.square().mean()


LAYERS = {
    "plain": lambda: nn.Linear(4, 4),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Linear(4, 4)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize(("name", "trained"), [("plain", False), *((name, True) for name in LAYERS)])
def test_modules_with_tensors_that_deepcopy_refuses_can_be_audited(name: str, trained: bool) -> None:
    module, trainer = Keeping(LAYERS[name]()), make_trainer(NeumannRBP(solver=Picard(100, 1e-7)), max_epochs=1)
    if trained:
        trainer.fit(module, vectors())
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    kept = getattr(module, "last", None)
    found = trainer.audit(module, vectors(4), steps=[30])
    errors = {row.gradient: row.relative_error for row in found.measurements}
    assert errors["CGRBP(steps=30)"] < 1e-4
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    assert getattr(module, "last", None) is kept


def test_a_module_that_cannot_be_copied_is_named(tmp_path) -> None:
    module = Exact()
    with (
        (tmp_path / "log").open("w") as module.log_file,
        pytest.raises(UserError, match=r"Exact cannot be copied.*open"),
    ):
        audit(module, NeumannRBP(), steps=[1])


class NoFixedPoint(Exact):
    def training_step(self, batch: Any) -> Tensor:
        return self.weight.sum()


class NoLoss(Exact):
    def training_step(self, batch: Any) -> None:
        super().training_step(batch)


class DictWithoutLoss(Exact):
    def training_step(self, batch: Any) -> dict[str, Tensor]:
        return {"my_loss": super().training_step(batch)}


class Noisy(Exact):
    def training_step(self, batch: Any) -> Tensor:
        noise = torch.randn(100, dtype=self.drive.dtype)[:12].reshape(3, 4)  # depends on the dtype
        start = torch.zeros_like(self.drive)
        return loss_of(self.estimator(lambda h: torch.tanh(h @ self.weight + noise), start, batch_dims=1).state)


class SinglePrecision(Exact):
    def training_step(self, batch: Any) -> Tensor:
        return self.estimator(lambda h: torch.tanh(h @ self.weight), torch.zeros(3, 4), batch_dims=1).state.sum()


class ByHand(Exact):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Cell(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, state: Tensor, drive: Tensor) -> Tensor:
        return torch.tanh(state @ self.weight + drive)


class Layered(Exact):
    """The same module with a layer."""

    def __init__(self, estimator: GradientEstimator | None = None) -> None:
        super().__init__()
        self.layer = FixedPointLayer(Cell(self.weight), estimator)

    def training_step(self, batch: Any) -> Tensor:
        return loss_of(self.layer(self.drive))


class LayerWithItsOwn(Layered):
    def __init__(self) -> None:
        super().__init__(JFB())


def test_the_gradients_of_a_layer_are_compared_as_those_of_a_module() -> None:
    found = [audit(module, NeumannRBP(3), steps=[1, 5, 20]) for module in (Exact(), Layered())]
    errors, errors_of_layer = ({row.gradient: row.relative_error for row in one.measurements} for one in found)
    assert errors_of_layer == pytest.approx(errors, rel=1e-2, abs=1e-6)
    assert len({round(errors[f"NeumannRBP(steps={count})"], 9) for count in (1, 5, 20)}) == 3
    torch.testing.assert_close(found[1].references[0].gradient, found[0].references[0].gradient)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (LayerWithItsOwn, r"layer layer has an estimator of its own, JFB\("),
        (NoFixedPoint, "call self.estimator"),
        (NoLoss, "returned NoneType"),
        (DictWithoutLoss, "returned NoneType"),
        (Noisy, "draws others in another precision"),
        (SinglePrecision, "does not run in float64"),
        (ByHand, "uses manual optimisation"),
    ],
)
def test_unsuitable_modules_are_refused(module: type, message: str) -> None:
    with pytest.raises(UserError, match=message):
        audit(module(), NeumannRBP(), steps=[1])


@pytest.mark.parametrize("arguments", [{"batches": 0}, {"error": 0.0}, {"error": 2.0}, {"steps": [0]}])
def test_invalid_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"audit: \w+="):
        audit(Exact(), NeumannRBP(), **arguments)


def test_an_audit_needs_an_estimator_and_one_process() -> None:
    with pytest.raises(UserError, match="no gradient estimator"):
        make_trainer().audit(Exact(), batches())
    with pytest.raises(UserError, match="in one process, not in 2"):
        make_trainer(NeumannRBP(), devices=2, strategy="ddp").audit(Exact(), batches())


def test_a_given_data_loader_overrides_the_module_s() -> None:
    class Given(Exact):
        def train_dataloader(self) -> None:
            raise AssertionError("the loader was not taken")

    loader = DataLoader(torch.rand(8, 4), batch_size=4)
    assert len(audit(Given(), NeumannRBP(), data=loader, steps=[1], batches=2).references) == 2
