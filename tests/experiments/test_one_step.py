"""The study of one-step gradients: its metrics and its table."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

from datamodules import LabelledImages, PrefixSums
from experiments.one_step import study
from experiments.one_step.audit import audited
from experiments.one_step.gradients import MEASURED, compared, gradient_errors
from experiments.one_step.limits import KINDS, change, limits_of, path_independence
from experiments.one_step.pages import of_runs
from experiments.one_step.report import audits, over_time, results
from experiments.one_step.tasks import QUIET, TASKS, VARIANTS, arguments_of
from models import ConvolutionalCell, EquilibriumClassifier, EquilibriumReasoner, MultiscaleImageCell, ReasoningCell
from rbp_lightning import JFB, Picard, UserError
from rbp_lightning.cli.sweep.planned import fit_config
from rbp_lightning.diagnostics.audit.advice import TAPED
from tests.markdown import numbers, rows_of


def batch_of(samples: int) -> dict[str, Tensor]:
    data = PrefixSums(length=5, val_lengths=[5], test_lengths=[5], num_train=samples, num_val=1, num_test=1)
    data.setup("fit")
    return data.splits["train"][5]


def quiet_trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def reasoner(steps: int, **arguments) -> EquilibriumReasoner:
    torch.manual_seed(0)
    model = EquilibriumReasoner(ConvolutionalCell(num_inputs=1, num_classes=2, num_hidden=3), **arguments)
    for parameter in model.cell.block.parameters():  # to make it contractive
        parameter.data *= 0.7
    model.estimator = JFB(Picard(steps, tol=0))
    model.trainer = quiet_trainer()
    return model


def dense_gradients(model: EquilibriumReasoner, batch: dict[str, Tensor], steps: int) -> dict[str, Tensor]:
    """The exact and the one-step gradient from a dense Jacobian of the batch, and BPTT's from a plain loop."""
    model = model.double()
    inputs = batch["inputs"].double()
    parameters = list(model.parameters())

    def loss_of(state: Tensor) -> Tensor:
        return cross_entropy(model.cell.scores(state), batch["targets"])

    def flat(gradients: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([one.flatten() for one in gradients])

    update, state = model.cell.start(inputs)
    for _ in range(steps - 1):
        state = update(state)
    found = {"BPTT": flat(torch.autograd.grad(loss_of(update(state)), parameters))}
    update, state = model.cell.start(inputs)[0], state.detach()
    jacobian = torch.autograd.functional.jacobian(update, state).reshape(state.numel(), -1)
    image = update(state)
    last = image.detach().requires_grad_()
    loss = loss_of(last)
    direct = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    (gradient,) = torch.autograd.grad(loss, last)
    solved = torch.linalg.solve(torch.eye(state.numel()).double() - jacobian.T, gradient.flatten())
    for name, adjoint in (("exact", solved.reshape(state.shape)), ("JFB", gradient)):
        through = torch.autograd.grad(image, parameters, adjoint, allow_unused=True, retain_graph=True)
        pairs = zip(parameters, direct, through, strict=True)
        sums = tuple(torch.zeros_like(p) + sum(one for one in both if one is not None) for p, *both in pairs)
        found[name] = flat(sums)
    return found


def test_errors_equal_those_of_dense_gradients() -> None:
    model, batch = reasoner(6, jacobian_penalty=0.5), batch_of(3)
    errors = gradient_errors(model, batch)
    dense = dense_gradients(model, batch, 6)
    for reference in ("exact", "BPTT"):
        cosine, error = compared(dense["JFB"], dense[reference])
        assert errors[f"JFB: cosine to {reference}"] == pytest.approx(cosine, rel=1e-8)
        assert errors[f"JFB: error to {reference}"] == pytest.approx(error, rel=1e-8)
    assert errors["BPTT: error to exact"] == pytest.approx(compared(dense["BPTT"], dense["exact"])[1], rel=1e-8)
    assert errors["BPTT: error to exact"] > 1e-6  # six steps do not converge
    assert errors["BPTT: error to BPTT"] == 0


def test_converged_gradients_agree_at_a_fixed_point() -> None:
    errors = gradient_errors(reasoner(200), batch_of(3))
    assert errors["residual"] < 1e-12
    assert errors["spectral radius"] < 1
    assert errors["BPTT: error to exact"] < 1e-9
    assert errors["GMRES:20: error to exact"] < 1e-9
    assert errors["TBPTT:5: error to exact"] == pytest.approx(errors["NeumannRBP:4: error to exact"], rel=1e-6)
    assert errors["NeumannRBP:20: error to exact"] < errors["NeumannRBP:4: error to exact"] < 1


def test_errors_of_a_classifier_are_those_of_a_training_step() -> None:
    """The step is that of training mode, with batch normalisation over the batch."""
    torch.manual_seed(0)
    model = EquilibriumClassifier(MultiscaleImageCell(num_hidden=2, halvings=0))
    model.estimator, model.trainer = JFB(Picard(200, tol=1e-14)), quiet_trainer()
    batch = {"images": torch.rand(5, 1, 4, 4), "labels": torch.arange(5)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    errors = gradient_errors(model.eval(), batch)
    assert errors["adjoint residual"] < 1e-12
    assert errors["BPTT: error to exact"] < 1e-9 < errors["JFB: error to exact"]
    wide = EquilibriumClassifier(MultiscaleImageCell(num_hidden=2, halvings=0)).double()
    wide.load_state_dict(before)
    images = batch["images"].double()
    update, state = wide.cell.start(images)
    for _ in range(200):
        state = update(state)
    exact = torch.autograd.grad(cross_entropy(wide.cell.scores(state), batch["labels"]), list(wide.parameters()))
    state = {name: leaf.detach() for name, leaf in state.items()}
    loss = cross_entropy(wide.cell.scores(wide.cell.start(images)[0](state)), batch["labels"])
    one_step = torch.autograd.grad(loss, list(wide.parameters()))
    found = compared(*(torch.cat([part.flatten() for part in parts]) for parts in (one_step, exact)))
    assert errors["JFB: cosine to exact"] == pytest.approx(found[0], rel=1e-8)
    assert errors["JFB: error to exact"] == pytest.approx(found[1], rel=1e-8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_class_is_right_or_wrong_as_a_whole() -> None:
    torch.manual_seed(0)
    model = EquilibriumClassifier(MultiscaleImageCell(num_hidden=2, halvings=0))
    data = LabelledImages(num_test=40, eval_batch_size=25)
    data.setup("test")
    found = study.after_training(model, data, replace(TASKS["digits"], budgets={8: 100}))
    batches = list(data.test_dataloader())
    images, labels = (torch.cat([batch[name] for batch in batches]) for name in ("images", "labels"))
    update, state = model.cell.start(images)
    for _ in range(100):
        state = update(state)
    right = (model.cell.scores(state).argmax(1) == labels).float().mean()
    assert float(found["exact 8"]) == pytest.approx(float(right), rel=1e-3)
    assert (found["fixed 8"], found["alike 8"]) == ("1", "1")  # a contraction


def test_an_audit_of_a_model_that_does_not_converge_advises_the_gradient_of_its_steps() -> None:
    found = audited(reasoner(6), batch_of(3), "JFB")
    assert found["audit: settled"] == "0"
    assert found["audit: advice"].startswith(TAPED)
    assert float(found["audit: error"]) > 0


def test_an_audit_reports_the_error_of_the_configured_estimator() -> None:
    model, batch = reasoner(120), batch_of(3)
    errors = gradient_errors(model, batch)
    found = audited(model, batch, "JFB")
    assert found["audit: settled"] == "1"
    assert float(found["audit: error"]) == pytest.approx(errors["JFB: error to exact"], rel=1e-2)
    assert float(found["audit: implicit error"]) < 0.01
    assert found["audit: advice"] not in ("JFB", "none")


def test_a_refused_audit_is_recorded() -> None:
    model = reasoner(6)
    model.drawn = (number for number in range(3))  # cannot be copied
    found = audited(model, batch_of(3), "JFB")
    assert found.pop("audit: advice") == "refused"
    assert all(map(math.isnan, found.values()))


def test_kinds_of_limits_are_distinguished() -> None:
    """A contraction, a 2-cycle, a slow contraction and chaos, with one sample each."""

    def update(state: Tensor) -> Tensor:
        contracted, cycled, slow, wild = state.unbind()
        return torch.stack([0.5 * contracted + 1, 3 - cycled, 0.975 * slow + 1, 4 * wild * (1 - wild)])

    state = torch.linspace(0.1, 0.9, 16, dtype=torch.float64).repeat(4, 1)
    found = limits_of(update, state, budget=101)
    assert [KINDS[kind] for kind in found.kinds] == ["fixed", "cycle", "falling", "wandering"]
    assert [found.share(kind) for kind in KINDS] == [0.25] * 4
    torch.testing.assert_close(found.radius[:3], torch.tensor([0.5, 1.0, 0.975], dtype=torch.float64))
    torch.testing.assert_close(found.state[1], 3 - state[1])
    assert float(found.residual_twice[2]) < 0.1 * float(found.residual[2])


class _MemoryCell(ReasoningCell):
    """Keeps the sign of the initial state, or converges to the input."""

    def __init__(self, remembers: bool) -> None:
        super().__init__(1, 2, 1)
        self.remembers = remembers

    def start(self, inputs):
        return lambda state: torch.tanh(3 * state if self.remembers else inputs), torch.zeros_like(inputs)

    def scores(self, state):
        return torch.cat([state, -state], 1)


def test_path_independence_compares_two_initial_states() -> None:
    inputs = torch.randn(200, 1, 2, dtype=torch.float64)
    assert path_independence(_MemoryCell(False), inputs, 60) == (1.0, 0.0)
    alike, distance = path_independence(_MemoryCell(True), inputs, 60)
    assert alike == pytest.approx(0.25, abs=0.1)  # both signs agree by chance
    assert distance > 1


def test_states_of_several_leaves_are_compared_as_one_vector() -> None:
    one = {"low": torch.tensor([[3.0]]), "high": torch.tensor([[[0.0]]])}
    other = {"low": torch.tensor([[0.0]]), "high": torch.tensor([[[4.0]]])}
    torch.testing.assert_close(change(one, other), torch.tensor([5 / 4]))


def test_the_table_pairs_seeds() -> None:
    ends = ["residual", "residual twice", "radius", *KINDS, "alike"]
    rows = [
        {"cell": "one", "variant": "plain", "estimator": name, "seed": str(seed), "processor seconds": "1"}
        | {"exact 9": str(share), **{f"{end} 9": "0" for end in ends}}
        for name, shares in {"JFB": [0.1, 0.5, 0.9], "BPTT": [0.2, 0.6, 1.0]}.items()
        for seed, share in enumerate(shares)
    ]
    _, first, second = rows_of(results(rows, [9]))
    assert (first[0], second[0]) == ("JFB", "BPTT")
    assert numbers(first[1]) == [50, 40]  # mean and standard deviation in percent
    assert numbers(second[1]) == [60, 40]
    assert numbers(second[2]) == [10, 10, 10]  # the difference to the first, and its interval
    assert over_time([{"loss": "1 2"}, {"loss": "3 2"}, {"loss": "2 7"}], "loss") == [2, 2]


def test_the_table_of_audits_counts_the_advice() -> None:
    figures = [("1", "0.1", "JFB"), ("0", "0.3", "BPTT"), ("0", "0.2", "BPTT"), ("nan", "nan", "refused")]
    rows = [
        {"estimator": "JFB", "exact 9": "0.5", "audit: settled": settled, "audit: error": error}
        | {"audit: advice": advice, **dict.fromkeys(["audit: residual", "audit: radius", "audit: implicit error"], "1")}
        for settled, error, advice in figures
    ]
    _, row = rows_of(audits(rows, [9]))
    assert numbers(row[1])[0] == 50
    assert numbers(row[2]) == [33]  # of those that were not refused
    assert numbers(row[5]) == [0.2]
    assert row[-1].startswith("BPTT")
    assert numbers(row[-1]) == [2, 4]


def test_a_table_without_runs_is_an_error() -> None:
    with pytest.raises(UserError, match="cell=two"):
        of_runs({"cell": "two"}, lambda rows: "")([{"cell": "one"}])


def test_digits_have_no_random_starts() -> None:
    with pytest.raises(UserError, match="plain"):
        study.one_step("digits", variants=["random start"])


@pytest.fixture
def studied(tmp_path: Path, monkeypatch) -> Callable[..., Path]:
    """Studies a task with short trainings, cheap measurements and one estimator; returns the file of the runs."""

    def run(task: str, *cells: str) -> Path:
        monkeypatch.setattr(study, "SAMPLES", 2)
        monkeypatch.setattr(study, "MOMENTS", (0.0, 1.0))
        monkeypatch.setitem(TASKS, task, replace(TASKS[task], budgets=dict.fromkeys(TASKS[task].budgets, 3)))
        few = "--data.num_train=128 --data.num_test=2 --estimator.solver.max_steps=5 --model.cell.num_hidden=4"
        options = {"task": task, "estimators": ["GMRES:2"], "seeds": 1, "batches": 2, "overrides": few}
        study.one_step(cells=list(cells), csv=tmp_path / "study.csv", **options)
        return tmp_path / "study.csv"

    return run


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")  # trainings are cut short
def test_images_can_be_studied(studied: Callable[..., Path], capsys) -> None:
    kept = studied("digits", "two")
    assert len(kept.read_text().splitlines()) == 2
    assert any(row[0].startswith("GMRES(steps=2)") for row in rows_of(capsys.readouterr().out))


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")  # trainings are cut short
def test_finished_runs_are_not_repeated(studied: Callable[..., Path], capsys) -> None:
    header, one = studied("prefix_sums", "one").read_text().splitlines()
    capsys.readouterr()
    kept = studied("prefix_sums", "two", "one")
    rows = kept.read_text().splitlines()
    assert [rows[0], rows[2]] == [header, one]  # with the seconds of the first call, in the order of the second
    assert len(rows) == 3
    printed = capsys.readouterr().out
    # In the results and in the audits of each cell.
    assert sum(row[0].startswith("GMRES(steps=2)") for row in rows_of(printed)) == 4
    Image.open(kept.with_suffix(".png")).verify()
    assert all(map(math.isfinite, numbers(" ".join(row[1] for row in rows_of(printed) if "NeumannRBP" in row[0]))))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_valid_options_and_enough_steps_for_truncation(task: str) -> None:
    chosen = TASKS[task]
    (truncated,) = (int(name.partition(":")[2]) for name in MEASURED if name.startswith("TBPTT"))
    for cell, variant in itertools.product(chosen.cells.values(), chosen.variants):
        words = [*QUIET, *chosen.arguments, *cell, *VARIANTS[variant], *arguments_of("TBPTT:1")]
        config = fit_config([f"--config={chosen.config}", *words])
        solver, model = config["estimator"]["init_args"]["solver"], config["model"]["init_args"]
        fewest, *_ = model.get("random_steps") or [solver["init_args"]["max_steps"]]
        assert fewest >= truncated


def test_estimators_are_translated_to_options() -> None:
    assert arguments_of("GMRES:5")[:2] == [
        "--estimator=Implicit",
        "--estimator.linear_solver=rbp_lightning.linear.GMRES",
    ]
    assert arguments_of("JFB") == ["--estimator=JFB"]
