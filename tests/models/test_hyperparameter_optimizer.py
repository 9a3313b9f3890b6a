"""Hyperparameter optimisation with Lightning's Trainer and from the command line."""

import copy
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from datamodules import MNISTSplits
from models import MLP, ExampleWeights, HyperparameterOptimizer, LabelSmoothing, RandomSearch, WeightDecay
from models.hyperparameter_optimization.inner_progress import InnerProgress
from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    FailurePolicy,
    GradientEstimator,
    Implicit,
    NeumannRBP,
    Picard,
    StochasticNeumannSeries,
    UserError,
)
from rbp_lightning.cli import main
from tests.cli.runs import Run, Zygote
from tests.training import make_trainer

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "hypergrad.yaml"
SOLVER = Picard(20, tol=0)

pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")


def optimizer(**arguments: Any) -> HyperparameterOptimizer:
    seed_everything(0, verbose=False)
    hyperparameters = [WeightDecay(1e-3), LabelSmoothing(0.1)]
    own = {"network": MLP([64, 12, 10], log_scale=-1.5), "hyperparameters": hyperparameters, "batch_size": 20}
    return HyperparameterOptimizer(**{**own, **arguments})


def digits(**arguments: Any) -> MNISTSplits:
    return MNISTSplits(**{"num_train": 60, "num_val": 80, "num_test": 100, **arguments})


def fit(
    model: HyperparameterOptimizer,
    estimator: GradientEstimator,
    *callbacks: Callback,
    data: Any = None,
    **arguments: Any,
) -> Trainer:
    trainer = make_trainer(estimator, *callbacks, **{"max_epochs": 3, "devices": 1, **arguments})
    trainer.fit(model, data or digits())
    return trainer


def learned(model: HyperparameterOptimizer) -> Tensor:
    return torch.cat([leaf.detach().flatten() for leaf in model.parameters() if leaf.requires_grad])


@pytest.mark.parametrize(
    "estimator",
    [BPTT(SOLVER), TBPTT(5, SOLVER), RBP(5, solver=SOLVER), NeumannRBP(5, SOLVER), CGRBP(5, solver=SOLVER)],
    ids=lambda estimator: type(estimator).__name__,
)
def test_every_estimator_lowers_the_outer_loss(estimator: GradientEstimator) -> None:
    class Losses(Callback):
        found: list[float]

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            self.found.append(float(trainer.callback_metrics["train/outer_loss"]))

    losses = Losses()
    losses.found = []
    model = optimizer()
    network = [leaf.clone() for leaf in model.objective.network.parameters()]
    fit(model, estimator, losses, max_epochs=12)
    assert losses.found[-1] < 0.97 * losses.found[0]
    assert all(torch.equal(a, b) for a, b in zip(network, model.objective.network.parameters(), strict=True))
    assert not torch.equal(model.trained[1].weight, model.objective.network[1].weight)


@pytest.mark.parametrize("objective", ["validation", "training"])
def test_the_outer_loss_is_the_unregularised_loss_of_its_split(objective: str) -> None:
    model, data = optimizer(outer_objective=objective), digits()
    trainer = fit(model, BPTT(SOLVER), data=data, max_epochs=1)
    split = data.splits["val" if objective == "validation" else "train"]
    exact = nn.functional.cross_entropy(model(split["images"]), split["labels"])
    assert float(trainer.callback_metrics["train/outer_loss"]) == pytest.approx(float(exact), rel=1e-5)
    (tested,) = trainer.test(model, data, verbose=False)
    held_out = data.splits["test"]
    right = (model(held_out["images"]).argmax(1) == held_out["labels"]).float().mean()
    assert tested["test/accuracy"] == pytest.approx(float(right))
    assert tested["test/loss"] == pytest.approx(
        float(nn.functional.cross_entropy(model(held_out["images"]), held_out["labels"])), rel=1e-5
    )


def test_inner_trainings_restart_or_continue_as_configured() -> None:
    data = digits()
    data.setup("fit")
    for start in ("restart", "last"):
        model = optimizer(inner_start=start, learn_optimizer=False)
        model.estimator = NeumannRBP(5, SOLVER)
        fit(model, NeumannRBP(5, SOLVER), data=data, max_epochs=1)
        reached = model.trained[1].weight.clone()
        fit(model, NeumannRBP(5, SOLVER), data=data, max_epochs=1)
        moved = float((model.trained[1].weight - reached).norm() / reached.norm())
        assert (moved < 0.01) == (start == "restart"), moved


class WithDropout(nn.Sequential):
    """A network with random draws."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 12), nn.Dropout(0.5), nn.Linear(12, 10))


@pytest.mark.parametrize("start", ["restart", "last"])
def test_a_resumed_run_equals_an_uninterrupted_one(start: str, tmp_path: Path) -> None:
    def model() -> HyperparameterOptimizer:
        seed_everything(0, verbose=False)
        return HyperparameterOptimizer(WithDropout(), [WeightDecay()], batch_size=20, inner_start=start)

    whole, half, resumed = model(), model(), model()
    fit(whole, RBP(5, solver=SOLVER), max_epochs=4)
    fit(half, RBP(5, solver=SOLVER), max_epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    torch.rand(7)  # other draws must not matter
    trainer = make_trainer(RBP(5, solver=SOLVER), max_epochs=4)
    trainer.fit(resumed, digits(), ckpt_path=tmp_path / "half.ckpt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert not torch.equal(learned(half), learned(whole))


def test_a_model_built_in_python_loads_with_given_objects(tmp_path: Path) -> None:
    model = optimizer()
    fit(model, NeumannRBP(5, SOLVER)).save_checkpoint(tmp_path / "one.ckpt")
    loaded = HyperparameterOptimizer.load_from_checkpoint(
        tmp_path / "one.ckpt", network=MLP([64, 12, 10]), hyperparameters=[WeightDecay(), LabelSmoothing()]
    )
    assert loaded.batch_size == 20
    assert torch.equal(learned(loaded), learned(model))


def test_examples_with_wrong_labels_get_small_weights() -> None:
    """Data cleaning on scikit-learn's digits."""
    data = digits(num_train=200, num_val=400, num_test=1000, label_noise=0.5)
    seed_everything(0, verbose=False)
    weights = ExampleWeights(200)
    model = HyperparameterOptimizer(
        MLP([64, 10]), [weights], batch_size=100, inner_learning_rate=1.0, learn_optimizer=False, learning_rate=0.5
    )
    trainer = fit(model, NeumannRBP(20, Picard(200, tol=0)), data=data, max_epochs=15)
    auroc = float(binary_auroc(weights.weights().detach(), data.splits["train"]["clean"].long()))
    assert float(trainer.callback_metrics["train/clean_auroc"]) == pytest.approx(
        auroc, abs=0.02
    )  # logged before the last step
    assert auroc > 0.95
    clean = data.splits["train"]["clean"]
    found = weights.weights().detach()
    assert float(found[clean].mean()) > 2 * float(found[~clean].mean())


def test_a_diverging_inner_training_names_the_step_and_the_learning_rate() -> None:
    model = optimizer(inner_learning_rate=0.1, loss="squared_error")
    with torch.no_grad():
        model.sgd.log_learning_rates[2] = 60.0
    message = r"step \d+ of 20.* outer step 1.*1.14e\+26 \(3.weight\).*inner_learning_rate"
    with pytest.raises(UserError, match=message):
        fit(model, NeumannRBP(5, SOLVER))
    assert bool(torch.cat([leaf.flatten() for leaf in model.trained.parameters()]).isfinite().all())


def test_a_diverging_inner_training_is_skipped_if_the_policy_says_so() -> None:
    model = optimizer(inner_learning_rate=0.1, loss="squared_error")
    with torch.no_grad():
        model.sgd.log_learning_rates[2] = 60.0
    before, network = learned(model), model.trained[1].weight.clone()
    trainer = fit(model, NeumannRBP(5, SOLVER), FailurePolicy(diverged="skip"), max_epochs=2)
    assert trainer.callback_metrics["train/skipped_steps"] == 2
    assert torch.equal(learned(model), before)
    assert torch.equal(model.trained[1].weight, network)


def test_nonfinite_inner_steps_are_found_even_if_the_last_state_is_finite() -> None:
    """A solver may return to its best iterate."""
    trainer, tensors = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False), {"a": torch.ones(3)}
    bad = {"a": torch.tensor([1.0, float("inf"), 1.0])}
    for losses, states, failed_at in (
        ([1.0, 1.0, 1.0], [tensors] * 3, None),
        ([1.0, float("nan"), 1.0], [tensors] * 3, 2),
        ([1.0, 1.0, 1.0], [tensors, tensors, bad], 3),
        ([float("inf"), 1.0, 1.0], [tensors, bad, tensors], 1),
        ([1.0, 1.0, 1.0, float("nan")], [tensors] * 4, None),  # an application by a monitor, after the training
    ):
        with InnerProgress(trainer, 3) as progress:
            for step, (loss, state) in enumerate(zip(losses, states, strict=True), 1):
                progress(step, torch.tensor(loss), {"parameters": state, "velocities": state})
        assert progress.failed_at(trainer) == failed_at


def test_nan_in_the_outer_images_is_not_blamed_on_the_inner_training() -> None:
    data = digits()
    data.setup("fit")
    data.splits["val"]["images"][0] = float("nan")
    with pytest.raises(UserError, match="outer loss is nan in outer step 1"):
        fit(optimizer(), NeumannRBP(5, SOLVER), data=data, num_sanity_val_steps=0)


def frozen_network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    network[1].requires_grad_(False)
    return network


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("estimator", [BPTT(SOLVER), CGRBP(5, solver=SOLVER)], ids=["BPTT", "CGRBP"])
def test_frozen_layers_stay_frozen(estimator: GradientEstimator, copied: bool, capsys: Any) -> None:
    network = frozen_network()
    model = optimizer(network=network, inner_start="last", hyperparameters=[WeightDecay()])
    if copied:
        model = copy.deepcopy(model)
    assert [parameter.requires_grad for parameter in network.parameters()] == [False, False, True, True]
    fit(model, estimator, RandomSearch(trials=1), max_epochs=2)
    assert torch.equal(model.trained[1].weight, network[1].weight)
    assert torch.equal(model.trained[1].bias, network[1].bias)
    assert not torch.equal(model.trained[3].weight, network[3].weight)
    kinds = ("learning_rate", "momentum", "weight_decay")
    names = [f"{kind}/{name}" for kind in kinds for name in ("3.weight", "3.bias")]
    assert list(model.hyperparameter_values()) == names
    assert learned(model).shape == (6,)
    # A second optimiser of the same network trains the same layers.
    assert list(optimizer(network=network, hyperparameters=[]).hyperparameter_values()) == names[:4]


def test_a_model_with_frozen_layers_loads_from_its_checkpoint(tmp_path: Path) -> None:
    model = optimizer(network=frozen_network(), hyperparameters=[])
    fit(model, NeumannRBP(5, SOLVER)).save_checkpoint(tmp_path / "one.ckpt")
    loaded = HyperparameterOptimizer.load_from_checkpoint(tmp_path / "one.ckpt", network=frozen_network())
    assert torch.equal(learned(loaded), learned(model))


@pytest.mark.parametrize("start", ["restart", "last"])
def test_the_inner_training_does_not_depend_on_estimator_or_grad_mode(start: str) -> None:
    """The minibatch of a step depends on the number of the step only."""
    data, states = digits(), []
    data.setup("fit")
    for estimator in (BPTT(SOLVER), TBPTT(5, SOLVER), NeumannRBP(5, SOLVER), CGRBP(5, solver=SOLVER)):
        for taped in (True, False):
            model = optimizer(linearization_batches=2, inner_start=start)
            model.estimator = estimator
            with torch.set_grad_enabled(taped):
                states.append(model.train_network(data.splits["train"]).state["parameters"]["3.weight"].detach())
    assert all(torch.equal(state, states[0]) for state in states)


@pytest.mark.parametrize(("batches", "size"), [("all", 60), (1, 20), (2, 40), (9, 60)])
@pytest.mark.parametrize("estimator", [BPTT(SOLVER), NeumannRBP(5, SOLVER)], ids=["BPTT", "NeumannRBP"])
def test_the_last_inner_step_uses_linearization_batches(estimator: Any, batches: Any, size: int) -> None:
    model, data, seen = optimizer(linearization_batches=batches), digits(), []
    data.setup("fit")
    model.objective.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[1]["labels"])))
    model.estimator = estimator
    model.train_network(data.splits["train"])
    assert seen == [20] * 19 + [size]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_fresh_minibatches_continue_in_the_products(momentum: float) -> None:
    model, data, seen = optimizer(linearization_batches="fresh", inner_momentum=momentum), digits(), []
    data.setup("fit")
    model.objective.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]["index"].tolist()))
    model.estimator = Implicit(StochasticNeumannSeries(6), SOLVER)
    state = model.train_network(data.splits["train"]).state
    assert [len(indices) for indices in seen] == [20] * 20
    state["parameters"]["3.weight"].sum().backward()
    assert [len(indices) for indices in seen] == [20] * 26
    for first in range(0, 24, 3):  # passes through all examples
        assert sorted(index for indices in seen[first : first + 3] for index in indices) == list(range(60))


@pytest.mark.parametrize(
    "options",
    [
        ["--estimator.linear_solver=Nystrom", "--estimator.linear_solver.rank=5", "--model.inner_momentum=0"],
        ["--estimator.linear_solver=StochasticNeumannSeries", "--model.linearization_batches=fresh"],
    ],
    ids=["Nystrom", "StochasticNeumannSeries"],
)
def test_solvers_for_hypergradients_on_the_command_line(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    solver = ["--estimator=Implicit", "--estimator.solver=Picard", "--estimator.solver.max_steps=20"]
    short = ["--trainer.max_epochs=2", f"--trainer.logger.save_dir={tmp_path}", "--trainer.enable_progress_bar=false"]
    short += ["--model.learn_optimizer=false", "--estimator.solver.tol=0", "--trainer.callbacks=null"]
    cli = main(["fit", f"--config={CONFIG}", *solver, *options, *short])
    assert f"Implicit(linear_solver={options[0].partition('=')[2]}(" in repr(cli.model.estimator)
    assert bool((cli.model.objective.hyperparameters[2].logits != 0).any())


def test_a_tolerance_needs_full_batches() -> None:
    data = digits()
    data.setup("fit")
    model = optimizer()
    model.estimator = NeumannRBP(solver=Picard(30, tol=1e-4))
    message = r"tol=0.0001.*batch_size=20 of 60.*max_steps=30"
    with pytest.raises(UserError, match=message):
        model.train_network(data.splits["train"])
    model = optimizer(batch_size=60)
    assert model.estimator.solver.tol == 0
    model.estimator = NeumannRBP(solver=Picard(30, tol=1e-1))
    assert model.train_network(data.splits["train"]).steps < 30


def test_an_overflowing_hypergradient_is_an_error() -> None:
    model = optimizer(inner_learning_rate=30.0)
    with pytest.raises(UserError, match=r"hypergradient of .* not finite in outer step 1"):
        fit(model, NeumannRBP(2000, Picard(2, tol=0)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizer(batch_size=0), "batch_size=0"),
        (lambda: optimizer(num_classes=1), "num_classes=1 "),
        (lambda: optimizer(loss="hinge"), "loss='hinge'.*cross_entropy, squared_error"),
        (lambda: optimizer(outer_objective="test"), "outer_objective='test'.*validation, training"),
        (lambda: optimizer(inner_start="warm"), "inner_start='warm'.*restart, last"),
        (lambda: optimizer(linearization_batches=0), "linearization_batches=0"),
        (lambda: optimizer(linearization_batches="whole"), "linearization_batches='whole'.*all, fresh"),
        (lambda: optimizer(inner_learning_rate=0.0), "inner_learning_rate=0.0 must be a number"),
        (lambda: optimizer(inner_momentum=1.0), "momentum=1.0 must be below 1"),
        (lambda: optimizer(learning_rate=-1.0), "learning_rate=-1.0 must be a number"),
        (lambda: optimizer(inner_curves_every=0), "inner_curves_every=0"),
        (
            lambda: HyperparameterOptimizer(nn.Sequential(nn.BatchNorm1d(3))),
            "has a BatchNorm1d with running statistics",
        ),
        (lambda: HyperparameterOptimizer(nn.Identity()), "the network has no parameters to train"),
        (lambda: HyperparameterOptimizer(nn.Sequential()), "the network has no parameters to train"),
        (lambda: HyperparameterOptimizer(MLP([4, 2]).requires_grad_(False)), "all 2 parameters .* are frozen"),
        (lambda: optimizer(hyperparameters=[LabelSmoothing(), LabelSmoothing()]), "label_smoothing occurs twice among"),
        (lambda: RandomSearch(spread=0.0), "spread=0.0 must be a number"),
        (lambda: RandomSearch(trials=0), "trials=0"),
    ],
)
def test_invalid_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 5}, "num_classes=5.*set num_classes to 10"),
        ({"num_classes": 12}, r"num_classes=12.*\(10,\)"),
        ({"hyperparameters": [ExampleWeights(3)]}, "num_examples=3.* 60 training examples"),
        ({"network": nn.Linear(64, 10)}, r"images of shape \(1, 8, 8\)"),
        ({"hyperparameters": [], "learn_optimizer": False}, "there is nothing to learn"),
    ],
)
def test_arguments_that_do_not_fit_the_data_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(optimizer(**arguments), NeumannRBP(5, SOLVER), num_sanity_val_steps=0)


SMALL = [
    "--model.batch_size=20",
    "--data.num_val=80",
    "--data.num_test=101",
    "--trainer.accelerator=cpu",
    "--trainer.enable_model_summary=false",
    "--estimator.steps=4",
    "--estimator.solver.max_steps=10",
]


def command(subcommand: str, folder: Path, *arguments: str) -> list[str]:
    return [subcommand, f"--config={CONFIG}", f"--trainer.logger.save_dir={folder}", *SMALL, *arguments]


def in_two_processes(zygote: Zygote, folder: Path, arguments: list[str]) -> str:
    """Runs the command line with two processes in a folder; returns its output."""
    run = Run(zygote, folder, [*arguments, "--trainer.devices=2", "--trainer.strategy=ddp_fork"], {})
    assert run.end(300) == 0, run.error()[-3000:]
    return run.printed()


def newest(folder: Path, name: str) -> Path:
    return max(folder.rglob(name), key=os.path.getmtime)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["TBPTT", "CGRBP"])  # CGRBP takes all kinds of products
def test_two_processes_give_the_weights_of_one(estimator: str, zygote: Zygote, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    # The second minibatch has only one example, so the second process has no share of it.
    same = [f"--estimator={estimator}", "--estimator.steps=4", "--estimator.solver.max_steps=10"]
    same += ["--trainer.max_epochs=3", "--trainer.precision=64-true", "--model.batch_size=299"]
    main(command("fit", tmp_path / "one", *same, "--trainer.devices=1"))
    printed = in_two_processes(zygote, tmp_path, command("fit", tmp_path / "two", *same))
    one, two = (torch.load(newest(tmp_path / folder, "last.ckpt"), weights_only=True) for folder in ("one", "two"))
    assert two["global_step"] == one["global_step"] == 3
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, rtol=1e-8, atol=1e-10)
    assert printed.count("| learned |") == 1


@pytest.mark.slow
def test_two_processes_predict_the_classes_of_an_odd_number_of_images(
    zygote: Zygote, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    main(command("fit", tmp_path, "--trainer.max_epochs=1", "--trainer.devices=1"))
    predict = command("predict", tmp_path, f"--ckpt_path={newest(tmp_path, 'last.ckpt')}")
    main([*predict, "--trainer.devices=1"])
    found = [newest(tmp_path, "classes.txt").read_text()]
    newest(tmp_path, "classes.txt").unlink()
    in_two_processes(zygote, tmp_path, predict)
    found.append(newest(tmp_path, "classes.txt").read_text())
    assert len(found[0].split()) == 101
    assert found[1] == found[0]


def test_both_loops_log_to_tensorboard(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    extra = ["--trainer.max_epochs=3", "--model.inner_curves_every=2", "--trainer.devices=1"]
    main(command("fit", tmp_path, *extra))
    folder = tmp_path / "hypergrad/version_0"
    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()
    tensors = ["1.weight", "1.bias", "3.weight", "3.bias"]
    curves = [
        f"hyperparameters/{kind}/{name}" for kind in ("learning_rate", "momentum", "weight_decay") for name in tensors
    ]
    curves += ["hyperparameters/label_smoothing", "hyperparameters/example_weight/mean", "train/outer_loss"]
    curves += ["val/accuracy", "hypergradient/sgd.log_learning_rates"]
    curves += [
        f"hypergradient/objective.hyperparameters.{name}" for name in ("0.log_coefficients", "1.logit", "2.logits")
    ]
    for curve in curves:
        assert curve in tags["scalars"], curve
        assert len(events.Scalars(curve)) == 3
    assert tags["histograms"] == ["hyperparameters/example_weight"]
    rates = [event.value for event in events.Scalars("hyperparameters/learning_rate/1.weight")]
    assert rates[0] == pytest.approx(0.1)
    assert len(set(rates)) == 3
    inner = sorted(path.name for path in (folder / "inner").iterdir())
    assert inner == ["outer_step_00000", "outer_step_00002"]
    losses = EventAccumulator(str(folder / "inner" / inner[0])).Reload().Scalars("inner/loss")
    assert [event.step for event in losses] == list(range(1, 11))
    assert losses[-1].value < losses[0].value
    assert "| learned |" in capsys.readouterr().out
    main(command("predict", tmp_path, *extra, f"--ckpt_path={folder}/checkpoints/last.ckpt"))
    (predicted,) = tmp_path.rglob("classes.txt")
    assert len(predicted.read_text().split()) == 101


def test_random_search_compares_learned_starting_and_random_hyperparameters(capsys) -> None:
    model, data = optimizer(), digits()
    model.estimator = TBPTT(10, SOLVER)
    data.setup("fit")
    start = model.train_network(data.splits["train"]).state["parameters"]
    loss = float(model.objective.plain(start, data.splits["val"], 80).detach())
    search = RandomSearch(trials=3)
    fit(model, TBPTT(10, SOLVER), search, data=data, max_epochs=2)
    before = learned(model)
    printed = capsys.readouterr().out
    found = {
        name: float(value) for name, value in re.findall(r"^\| ([a-z0-9, ]+) \| ([\d.]+) \|", printed, re.MULTILINE)
    }
    assert found["starting"] == pytest.approx(loss, abs=1e-4)
    assert found["learned"] < found["starting"]
    assert "random search, 3 trials" in found
    assert torch.equal(learned(model), before)
    assert float(
        model.objective.plain(dict(model.trained.named_parameters()), data.splits["val"], 80)
    ) == pytest.approx(found["learned"], abs=1e-4)


def test_random_search_takes_no_longer_than_the_optimisation(capsys) -> None:
    search = RandomSearch()
    begin = time.perf_counter()
    fit(optimizer(), TBPTT(10, SOLVER), search, max_epochs=3)
    assert 0 < search.seconds < time.perf_counter() - begin
    (trials,) = re.findall(r"random search, (\d+) trials", capsys.readouterr().out)
    assert int(trials) >= 1
    with pytest.raises(UserError, match=r"RandomSearch: .*HyperparameterOptimizer"):
        RandomSearch().setup(Trainer(logger=False), nn.Module(), "fit")  # type: ignore[arg-type]
