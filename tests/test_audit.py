"""The audit of gradients, on the three tasks and on a module of a user's."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data as Graph

from rbp_lightning import (
    BPTT,
    CGRBP,
    AuditTrainer,
    EquilibriumMonitor,
    GradientAudit,
    GradientEstimator,
    ImplicitEstimator,
    NeumannRBP,
    Picard,
    UserError,
)
from rbp_lightning.audit.advice import advise, summaries
from rbp_lightning.audit.measurement import Measurement
from rbp_lightning.audit.reference import Reference
from tests.cells import dense, loss_of, tanh_cell

ROOT = Path(__file__).parents[1]


class Tanh(LightningModule):
    """The tanh cell of the other tests as a module, whose exact gradient is known."""

    def __init__(self, norm: float = 0.8) -> None:
        super().__init__()
        self.cell = tanh_cell(0, norm)
        self.weight, self.drive = (torch.nn.Parameter(tensor.detach().float()) for tensor in self.cell.tensors)

    def training_step(self, batch: Any) -> Tensor:
        start = torch.zeros_like(self.drive)
        state = self.estimator(lambda h: torch.tanh(h @ self.weight + self.drive), start, batch_dims=1).state
        return loss_of(state)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def exact(self) -> Tensor:
        cell = tanh_cell(0, 0.8)
        with torch.no_grad():
            cell.tensors[0].copy_(self.weight)
            cell.tensors[1].copy_(self.drive)
        return torch.cat([gradient.flatten() for gradient in dense(cell).gradients])


class Data(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(float(index))


def audit(
    module: LightningModule, estimator: GradientEstimator, logger: Any = False, **arguments: Any
) -> GradientAudit:
    trainer = AuditTrainer(
        accelerator="cpu",
        logger=logger,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[estimator],
    )
    module.train_dataloader = lambda: DataLoader(Data(), batch_size=1)  # type: ignore[method-assign]
    return trainer.audit(module, **arguments)


def test_a_user_s_module_is_compared_with_the_exact_gradient() -> None:
    module = Tanh()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = audit(module, NeumannRBP(20, Picard(500, 1e-7)), batches=2, steps=[1, 5, 20])
    assert len(found.references) == 2
    for reference in found.references:
        assert reference.kind == "exact adjoint"
        assert reference.settled
        assert reference.adjoint_residual < 1e-12
        torch.testing.assert_close(reference.gradient, module.exact(), rtol=1e-9, atol=1e-12)
    rows = {row.gradient: row for row in found.measurements if row.batch == 1}
    assert list(rows) == [
        "BPTT",
        *(f"{kind}(steps={steps})" for kind in ("TBPTT", "RBP", "NeumannRBP", "CGRBP") for steps in (1, 5, 20)),
        "AdaptiveNeumann(tol=0.01)",
        "NeumannRBP as configured",
    ]
    # What each number of steps costs, and what it is worth: the residual error of a series falls by J each time.
    assert [rows[f"TBPTT(steps={steps})"].products for steps in (1, 5, 20)] == [1, 5, 20]
    assert [rows[f"NeumannRBP(steps={steps})"].products for steps in (1, 5, 20)] == [2, 6, 21]
    assert [rows[f"RBP(steps={steps})"].products for steps in (1, 5, 20)] == [2, 6, 21]
    assert [rows[f"CGRBP(steps={steps})"].products for steps in (1, 5, 20)] == [4, 12, 42]
    for kind in ("TBPTT", "RBP", "NeumannRBP", "CGRBP"):
        errors = [rows[f"{kind}(steps={steps})"].relative_error for steps in (1, 5, 20)]
        assert errors[0] > errors[1] >= errors[2]  # 4 steps of conjugate gradients solve for 4 unknowns
    assert rows["NeumannRBP(steps=20)"].relative_error == rows["NeumannRBP as configured"].relative_error
    assert rows["BPTT"].relative_error < 1e-5
    assert rows["BPTT"].cosine == pytest.approx(1)
    assert rows["BPTT"].sign_agreement == 1
    assert rows["AdaptiveNeumann(tol=0.01)"].relative_error < 0.01
    assert rows["BPTT"].saved_bytes > 2 * rows["NeumannRBP(steps=20)"].saved_bytes > 0
    # Nothing was trained, and the module is as it was.
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.weight.dtype == torch.float32
    assert "training_step" not in vars(module)
    assert "configure_callbacks" not in vars(module)


def test_the_errors_are_measured_against_the_dense_gradient() -> None:
    module = Tanh()
    found = audit(module, NeumannRBP(3, Picard(500, 1e-7)), steps=[3])
    (row,) = [row for row in found.measurements if row.gradient == "NeumannRBP as configured"]
    state = NeumannRBP(3, Picard(500, 1e-7))(module.cell.update, module.cell.start, batch_dims=1).state
    gradient = torch.cat([leaf.flatten() for leaf in torch.autograd.grad(loss_of(state), module.cell.tensors)])
    exact = module.exact()
    assert row.relative_error == pytest.approx(float((gradient - exact).norm() / exact.norm()), rel=1e-3)
    assert row.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(gradient, exact, dim=0)), rel=1e-5)
    assert row.sign_agreement == pytest.approx(float((gradient.sign() == exact.sign()).double().mean()))


def test_a_map_that_does_not_converge_is_told() -> None:
    class Turning(Tanh):
        def training_step(self, batch: Any) -> Tensor:
            turn = torch.tensor([[0.0, -1.5], [1.5, 0.0]], dtype=self.weight.dtype)
            start = torch.full((3, 2), 0.5, dtype=self.weight.dtype)
            update = lambda h: torch.tanh(h @ (turn * self.weight[0, 0] / self.weight[0, 0].detach()))  # noqa: E731
            return loss_of(self.estimator(update, start, batch_dims=1).state)

    found = audit(Turning(), NeumannRBP(solver=Picard(30, 1e-6)), steps=[1, 10])
    (reference,) = found.references
    assert reference.kind == "BPTT"
    assert not reference.settled
    assert found.advice.startswith("The map does not converge")
    assert "rbp_lightning.nn" in found.advice
    assert re.search(r"until then T?BPTT.* has the gradient of the steps as they are", found.advice)
    (row,) = [row for row in found.measurements if row.gradient == "BPTT"]
    assert row.relative_error < 1e-3


def test_a_number_of_steps_is_a_part_of_the_problem() -> None:
    found = audit(Tanh(), NeumannRBP(5, solver=Picard(4, tol=0)), steps=[1, 20])
    (reference,) = found.references
    assert reference.kind == "BPTT"
    assert reference.steps == 4
    assert "TBPTT(steps=20)" not in {row.gradient for row in found.measurements}
    assert "give it more steps" in found.advice


def test_files_and_tensorboard(tmp_path: Path, capsys) -> None:
    logger = TensorBoardLogger(tmp_path, name="audited")
    found = audit(Tanh(), CGRBP(10, solver=Picard(500, 1e-7)), logger, batches=2, steps=[2, 20])
    folder = Path(logger.log_dir)
    rows = list(csv.DictReader((folder / "audit.csv").open()))
    assert len(rows) == len(found.measurements) == 2 * 11
    assert float(rows[0]["relative_error"]) == found.measurements[0].relative_error
    content = json.loads((folder / "audit.json").read_text())
    assert content["advice"] == found.advice
    assert content["references"][1]["kind"] == "exact adjoint"
    assert [row["gradient"] for row in content["gradients"]] == [row.gradient for row in summaries(found.measurements)]
    with Image.open(folder / "audit.png") as picture:
        assert picture.size[0] > 500
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert len(events.Images("audit/error_against_cost")) == 1
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(found.advice)
    for row in content["gradients"]:
        assert re.search(rf"^ +{re.escape(row['gradient'])} +-?[\d.]+ +[\d.e+-]+ ", printed, re.MULTILINE)


def test_without_a_logger_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    audit(Tanh(), NeumannRBP(), steps=[1])
    assert not list(tmp_path.iterdir())
    audit(Tanh(), NeumannRBP(), CSVLogger(tmp_path / "logs"), steps=[1])
    assert (tmp_path / "logs/lightning_logs/version_0/audit.csv").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}


def test_every_estimator_sees_the_same_random_numbers() -> None:
    class Dropping(Tanh):
        def training_step(self, batch: Any) -> Tensor:
            kept = torch.nn.functional.dropout(self.drive, 0.5)
            start = torch.zeros_like(self.drive)
            return loss_of(self.estimator(lambda h: torch.tanh(h @ self.weight + kept), start, batch_dims=1).state)

    found = audit(Dropping(), BPTT(Picard(500, 1e-7)), steps=[50])
    errors = {row.gradient: row.relative_error for row in found.measurements}
    assert errors["BPTT"] < 1e-5
    assert errors["CGRBP(steps=50)"] < 1e-5


def test_a_gradient_of_zero_is_no_division_by_zero() -> None:
    class Flat(Tanh):
        def training_step(self, batch: Any) -> Tensor:
            return 0 * super().training_step(batch)

    found = audit(Flat(), NeumannRBP(), steps=[1])
    assert {row.relative_error for row in found.measurements} == {0.0}


def test_an_estimator_of_one_s_own_is_audited() -> None:
    class Damped(ImplicitEstimator):
        def solve_adjoint(self, linearization, gradient, start):
            return [g + 0.5 * v for g, v in zip(gradient, linearization.vjp(gradient), strict=True)]

    found = audit(Tanh(), Damped(Picard(500, 1e-7)), steps=[1])
    (row,) = [row for row in found.measurements if row.gradient == "Damped as configured"]
    assert 0.05 < row.relative_error < 1
    assert row.products == 2  # its own, and the one into the parameters


def test_a_trainer_is_as_it_was_afterwards() -> None:
    class Failing(Tanh):
        def training_step(self, batch: Any) -> Tensor:
            raise RuntimeError("the module's own")

    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = AuditTrainer(max_epochs=2, callbacks=[NeumannRBP(), EquilibriumMonitor()], **quiet)
    before = list(trainer.callbacks)
    modules = [Tanh(), Failing(), Tanh()]
    for module in modules:
        module.train_dataloader = lambda: DataLoader(Data(), batch_size=1)  # type: ignore[method-assign]
    trainer.audit(modules[0], steps=[1])
    with pytest.raises(RuntimeError, match="the module's own"):
        trainer.audit(modules[1], steps=[1])
    assert trainer.callbacks == before
    for module in modules:
        assert not {"training_step", "configure_callbacks", "configure_optimizers"} & set(vars(module))
    weight = modules[2].weight.detach().clone()
    trainer.fit(modules[2])
    assert trainer.global_step == 10  # all of both epochs
    assert not torch.equal(modules[2].weight, weight)


def test_no_optimizer_is_run() -> None:
    class BySecondOrder(Tanh):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.LBFGS(self.parameters())

    assert audit(BySecondOrder(), NeumannRBP(), steps=[50]).advice.startswith("Take ")


def test_what_is_saved_is_not_the_weights() -> None:
    class Wide(Tanh):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.eye(400) * 0.5)
            self.drive = torch.nn.Parameter(torch.ones(1, 400))

        def training_step(self, batch: Any) -> Tensor:
            start = torch.zeros_like(self.drive)
            return self.estimator(lambda h: torch.tanh(h @ self.weight + self.drive), start, batch_dims=1).state.sum()

    (row,) = [
        one for one in audit(Wide(), NeumannRBP(), steps=[1]).measurements if one.gradient == "NeumannRBP(steps=1)"
    ]
    assert 0 < row.saved_bytes < 20 * 400 * 4


def test_graphs_are_taken_in_float64_wherever_they_are() -> None:
    class OnGraphs(Tanh):
        def training_step(self, batch: Any) -> Tensor:
            features = batch["graphs"][0].x
            start = torch.zeros_like(features)
            return self.estimator(lambda h: 0.5 * torch.tanh(h @ self.weight) + features, start).state.square().sum()

    module = OnGraphs()
    graph = Graph(x=torch.rand(3, 4), edge_index=torch.zeros(2, 0, dtype=torch.int64))
    trainer = AuditTrainer(
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[NeumannRBP()],
    )
    loader = DataLoader([graph], batch_size=1, collate_fn=lambda graphs: {"graphs": graphs})
    module.train_dataloader = lambda: loader  # type: ignore[method-assign]
    found = trainer.audit(module, steps=[50])
    assert {row.gradient: row.relative_error for row in found.measurements}["CGRBP(steps=50)"] < 1e-5
    assert graph.x.dtype == torch.float32


class NoFixedPoint(Tanh):
    def training_step(self, batch: Any) -> Tensor:
        return self.weight.sum()


class NoLoss(Tanh):
    def training_step(self, batch: Any) -> None:
        super().training_step(batch)


class DictWithoutLoss(Tanh):
    def training_step(self, batch: Any) -> dict[str, Tensor]:
        return {"my_loss": super().training_step(batch)}


class Noisy(Tanh):
    def training_step(self, batch: Any) -> Tensor:
        noise = torch.randn(100, dtype=self.drive.dtype)[:12].reshape(3, 4)  # others in another precision
        start = torch.zeros_like(self.drive)
        return loss_of(self.estimator(lambda h: torch.tanh(h @ self.weight + noise), start, batch_dims=1).state)


class SinglePrecision(Tanh):
    def training_step(self, batch: Any) -> Tensor:
        return self.estimator(lambda h: torch.tanh(h @ self.weight), torch.zeros(3, 4), batch_dims=1).state.sum()


class ByHand(Tanh):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (NoFixedPoint, "no self.estimator"),
        (NoLoss, "returned NoneType"),
        (DictWithoutLoss, "returned NoneType"),
        (Noisy, "draws others in another precision"),
        (SinglePrecision, "does not run in float64"),
        (ByHand, "optimises by hand"),
    ],
)
def test_what_cannot_be_audited_is_refused(module: type, says: str) -> None:
    with pytest.raises(UserError, match=says):
        audit(module(), NeumannRBP(), steps=[1])


@pytest.mark.parametrize("arguments", [{"batches": 0}, {"error": 0.0}, {"error": 2.0}, {"steps": [0]}])
def test_arguments_are_checked(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"audit: \w+="):
        audit(Tanh(), NeumannRBP(), **arguments)


def test_an_audit_needs_an_estimator_and_one_process() -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    with pytest.raises(UserError, match="no gradient estimator"):
        AuditTrainer(**quiet).audit(Tanh())
    with pytest.raises(UserError, match="in one process, not in 2"):
        AuditTrainer(**quiet, devices=2, strategy="ddp", callbacks=[NeumannRBP()]).audit(Tanh())


def summary(name: str, error: float, products: int, saved: int = 1) -> Measurement:
    return Measurement(name, None, 1.0, error, 1.0, products, 1.0, saved)


REFERENCE = Reference("exact adjoint", torch.ones(1), True, 40, 1e-13, 1e-15, 0.5, 0.6)


def test_advice_is_the_least_cost_that_is_good_enough() -> None:
    rows = [
        summary("a", 0.5, 2),
        summary("b", 0.009, 20, saved=100),
        summary("c", 0.002, 21, saved=10),
        summary("d", 1e-9, 50),
        summary("e", math.nan, 1),
    ]
    assert "Take c:" in advise([REFERENCE], rows, 0.01)  # as cheap as b, with less memory
    assert "Take d:" in advise([REFERENCE], rows, 1e-4)
    none = advise([REFERENCE], rows, 1e-12)
    assert none.startswith("No gradient reaches")
    assert "d with 1e-07% is best" in none
    assert "none is finite" in advise([REFERENCE], [summary("e", math.nan, 1)], 0.01)


def test_a_reference_that_is_not_exact_is_not_advised_by() -> None:
    rows = [summary("a", 1e-4, 5)]
    inexact = Reference("exact adjoint", torch.ones(1), True, 40, 1e-13, 1e-3, 0.999, 0.999)
    assert "solved to a residual of 1.0e-03 only" in advise([REFERENCE, inexact], rows, 0.005)
    assert advise([inexact], rows, 0.02).startswith("Take a")
    infinite = Reference("exact adjoint", torch.tensor([math.inf]), True, 40, 1e-13, math.nan, 1.0, 1.0)
    assert "exact gradient is not finite" in advise([infinite], rows, 0.01)


def test_batches_are_summed_up_by_the_worst() -> None:
    rows = [
        Measurement("a", 0, 0.9, 0.1, 0.8, 10, 1.0, 5),
        Measurement("a", 1, 0.7, 0.2, 0.9, 12, 3.0, 4),
        Measurement("b", 0, math.nan, math.nan, 0.0, 1, 1.0, 1),
        Measurement("b", 1, 1.0, 0.0, 1.0, 1, 1.0, 1),
    ]
    one, other = summaries(rows)
    assert one == Measurement("a", None, 0.7, 0.2, 0.8, 12, 2.0, 5)
    assert math.isnan(other.relative_error)
    assert math.isnan(other.cosine)


SMALL = {
    "hopfield": ["--model.num_hidden=16", "--data.train_draws=2"],
    "cora": ["--model.cell.num_hidden=8"],
    "hypergrad": ["--estimator.solver.max_steps=30", "--model.network.sizes=[64,8,10]", "--estimator.steps=20"],
}


@pytest.mark.parametrize("task", SMALL)
def test_the_tasks_are_audited_from_the_command_line(task: str, cli, request, monkeypatch) -> None:
    if task == "cora":
        monkeypatch.setenv("RBP_DATA_DIR", request.getfixturevalue("data_dir"))
    config = f"--config={ROOT / 'configs' / task}.yaml"
    status, out, err = cli("audit", config, *SMALL[task], "--steps=[1,20,100]", "--trainer.accelerator=cpu")
    assert status == 0, err
    folder = Path("logs") / task / "version_0"
    content = json.loads((folder / "audit.json").read_text())
    (reference,) = content["references"]
    errors = {row["gradient"]: row["relative_error"] for row in content["gradients"]}
    assert yaml.safe_load((folder / "config.yaml").read_text())["steps"] == [1, 20, 100]
    assert not list(folder.rglob("*.ckpt"))  # nothing that a training leaves
    assert out.rstrip().endswith(content["advice"])
    if task == "hypergrad":
        # A training is its steps, and has not settled within these.
        assert reference["kind"] == "BPTT"
        assert errors["BPTT"] < 1e-4
        assert errors["TBPTT(steps=20)"] < errors["TBPTT(steps=1)"]
    else:
        assert reference["kind"] == "exact adjoint"
        assert reference["adjoint_residual"] < 1e-11
        assert reference["residual"] < 1e-11
        for kind in ("NeumannRBP", "CGRBP"):
            assert errors[f"{kind}(steps=1)"] > 10 * errors[f"{kind}(steps=100)"]
            assert errors[f"{kind}(steps=100)"] < 0.01  # the forward solve's tolerance is 1e-3
        assert content["advice"].startswith("Take ")


def test_a_checkpoint_is_audited_as_it_was_saved(cli) -> None:
    config = f"--config={ROOT / 'configs' / 'hopfield.yaml'}"
    tiny = ["--model.num_hidden=8", "--data.train_draws=2", "--data.eval_draws=1", "--trainer.accelerator=cpu"]
    status, _, err = cli("fit", config, *tiny, "--trainer.max_epochs=30", "--trainer.check_val_every_n_epoch=30")
    assert status == 0, err
    last = "--ckpt_path=logs/hopfield/version_0/checkpoints/last.ckpt"
    status, _, err = cli("audit", config, "--trainer.accelerator=cpu", "--steps=[20]", last, "--data.train_draws=2")
    assert status == 0, err
    status, _, err = cli("audit", config, *tiny, "--steps=[20]")
    assert status == 0, err
    trained, untrained = (
        json.loads(Path(f"logs/hopfield/version_{version}/audit.json").read_text())["references"][0]
        for version in (1, 2)
    )
    assert abs(trained["spectral_radius"] - untrained["spectral_radius"]) > 0.01


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batches=0"], "batches=0 must be a whole number of at least 1"),
        (["--steps=[-1]"], "steps=-1 must be"),
        (["--trainer.devices=2", "--trainer.strategy=ddp"], "runs in one process"),
        (["--ckpt_path=none.ckpt"], "is not a file"),
        (["--sweep=3"], "unrecognized arguments: --sweep=3"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], says: str, cli) -> None:
    status, _, err = cli(
        "audit", f"--config={ROOT / 'configs' / 'hopfield.yaml'}", "--trainer.accelerator=cpu", *arguments
    )
    assert status != 0
    assert says in err
    assert "Traceback" not in err


def test_a_data_loader_is_as_good_as_a_datamodule() -> None:
    loader = DataLoader(torch.rand(8, 4), batch_size=4)

    class Given(Tanh):
        def train_dataloader(self) -> None:
            raise AssertionError("the loader was not taken")

    trainer = AuditTrainer(callbacks=[NeumannRBP()], logger=False, enable_checkpointing=False)
    assert len(trainer.audit(Given(), loader, steps=[1], batches=2).references) == 2


def test_a_forward_tolerance_that_is_too_loose_is_named() -> None:
    errors = {"TBPTT(steps=20)": 1e-4, "CGRBP(steps=50)": 0.27, "NeumannRBP(steps=50)": 0.3}
    advice = advise([REFERENCE], [summary(name, error, 20) for name, error in errors.items()], error=0.01)
    assert "Take TBPTT(steps=20)" in advice
    assert "better than 27%" in advice
    assert "forward tolerance is too loose" in advice
