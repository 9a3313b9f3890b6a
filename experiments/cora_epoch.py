"""An epoch on Cora by the method of the paper's released code and by this project."""

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch_geometric.data import Data

from benchmarks.report import markdown
from datamodules import CitationGraph
from experiments.runs import Row, config_keys, mean_and_spread, run_missing
from models import CitationGNN, GRUPropagation
from models.propagation.prepared_graph import PreparedGraph
from rbp_lightning import RBP, ConvergenceWarning, GradientEstimator, NeumannRBP, Picard, UserError

CONFIG = Path(__file__).parents[1] / "configs" / "paper" / "cora.yaml"
STEPS, PRODUCTS = 100, 20

RELEASED = "released code, written plainly"

ESTIMATORS: dict[str, Callable[[], GradientEstimator]] = {
    "NeumannRBP(20)": lambda: NeumannRBP(PRODUCTS, Picard(STEPS, tol=0)),
    "NeumannRBP(20), tolerance 0.01, warm start": lambda: NeumannRBP(PRODUCTS, Picard(STEPS, 0.01, check_every=2)),
    "NeumannRBP(6), tolerance 0.03, warm start": lambda: NeumannRBP(6, Picard(STEPS, 0.03, check_every=1)),
    "RBP(2), tolerance 0.01, warm start": lambda: RBP(2, 0, "gradient", solver=Picard(STEPS, 0.01, check_every=2)),
}
"""This project's ways; under a warm start ``RBP`` goes on from the adjoint of the last epoch."""

METHODS = [RELEASED, *ESTIMATORS]


def plain_gradient(model: CitationGNN, graph: Data, prepared: PreparedGraph) -> tuple[int, int]:
    """Leaves the gradient as the released code takes it in the parameters; returns the steps and products it took."""
    update, state = model.cell.start(prepared.features, prepared.adjacency)
    states = [state]  # with the tape of all of them, as there
    for _ in range(STEPS - 1):
        states.append(update(states[-1]))
    previous = states[-1].detach().requires_grad_()
    last = update(previous)
    final = last.detach().requires_grad_()
    model.cross_entropy(model.cell.scores(final), graph, graph.train_mask).backward()
    adjoint = term = final.grad
    for _ in range(PRODUCTS):
        (term,) = torch.autograd.grad(last, previous, term, retain_graph=True)
        adjoint = adjoint + term
    last.backward(adjoint)
    return STEPS, PRODUCTS


class Training:
    """A training by one of ``METHODS`` that is run a block of epochs at a time; the seed is also that of the split."""

    def __init__(self, method: str, seed: int, dtype: torch.dtype = torch.float32) -> None:
        config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        data = CitationGraph(**config["data"]["init_args"], split_seed=seed)
        data.prepare_data()
        data.setup("fit")
        self.graph = data.graph
        torch.manual_seed(seed)
        arguments = config["model"]["init_args"]
        cell = GRUPropagation(**arguments.pop("cell")["init_args"])
        self.model = CitationGNN(cell, **arguments, warm_start="warm start" in method).to(dtype)
        self.prepared = PreparedGraph(self.graph, cell.aggregation, dtype)
        self.plainly = method == RELEASED
        # Validation and test of the released code take all the steps, too.
        self.model.estimator = ESTIMATORS.get(method, ESTIMATORS["NeumannRBP(20)"])()
        self.optimizer = self.model.configure_optimizers()
        self.steps: list[int] = []
        self.products: list[int] = []
        self.best_validation = self.test_accuracy = -1.0

    def gradient(self) -> tuple[int, int]:
        """Leaves the gradient in the parameters; returns the steps and products it took."""
        self.model.train()
        self.optimizer.zero_grad()
        if self.plainly:
            return plain_gradient(self.model, self.graph, self.prepared)
        _, fixed_point = self.model(self.graph)
        scores = self.model.cell.scores(fixed_point.state)
        self.model.cross_entropy(scores, self.graph, self.graph.train_mask).backward()
        adjoint = fixed_point.adjoint
        assert adjoint is not None  # there was a backward pass
        return fixed_point.steps, adjoint.steps

    def block(self, epochs: int) -> tuple[float, float]:
        """Trains and validates; returns the median time of a training epoch and the time of it all, in seconds."""
        times = []
        begin = time.perf_counter()
        for _ in range(epochs):
            start = time.perf_counter()
            steps, products = self.gradient()
            self.optimizer.step()
            times.append(time.perf_counter() - start)
            self.steps.append(steps)
            self.products.append(products)
        self.model.eval()
        with torch.no_grad():
            right = self.model.class_scores(self.graph, "predict").argmax(1) == self.graph.y
        validation, test = (float(right[mask].double().mean()) for mask in (self.graph.val_mask, self.graph.test_mask))
        if validation > self.best_validation:
            self.best_validation, self.test_accuracy = validation, test
        return statistics.median(times), time.perf_counter() - begin


QUANTITIES = ["steps", "products", "seconds", "faster", "faster 25%", "faster 75%", "training faster", "accuracy"]
"""What is measured: quartiles of an epoch's time are over the blocks; a training's has its validations."""


def compare(keys: Row) -> dict[str, float]:
    """Trains by all methods in turn, and returns of each what ``QUANTITIES`` names."""
    trainings = {method: Training(method, int(keys["seed"])) for method in METHODS}
    times: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of loose tolerances, which accuracy is to judge here
        for _ in range(int(keys["epochs"]) // int(keys["block"])):
            for method, training in trainings.items():
                times[method].append(training.block(int(keys["block"])))
    found: dict[str, float] = {}
    for method, training in trainings.items():
        pairs = list(zip(times[RELEASED], times[method], strict=True))
        low, middle, high = statistics.quantiles([plain[0] / own[0] for plain, own in pairs], n=4)
        whole = sum(plain[1] for plain, _ in pairs) / sum(own[1] for _, own in pairs)
        seconds = statistics.median(own[0] for own in times[method])
        counts = statistics.mean(training.steps), statistics.mean(training.products)
        values = [*counts, seconds, middle, low, high, whole, 100 * training.test_accuracy]
        found |= {f"{method}: {name}": round(value, 4) for name, value in zip(QUANTITIES, values, strict=True)}
    return found


def table(rows: list[Row]) -> str:
    """Lays means or medians over the seeds out as Markdown; the difference is to the same seed of the released code."""
    columns = ["method", "steps an epoch", "products an epoch", "epoch faster by", "with validation faster by"]
    columns += ["test accuracy", "difference ± standard error", "seeds"]
    lines = []
    for method in METHODS:
        values = {name: [float(row[f"{method}: {name}"]) for row in rows] for name in QUANTITIES}
        middle = {name: statistics.median(values[name]) for name in QUANTITIES}
        differences = [float(row[f"{method}: accuracy"]) - float(row[f"{RELEASED}: accuracy"]) for row in rows]
        deviation = statistics.stdev(differences) if len(rows) > 1 else float("nan")
        cells = [
            *(f"{statistics.mean(values[name]):.2f}" for name in ("steps", "products")),
            f"{middle['faster']:.2f} ({middle['faster 25%']:.2f}–{middle['faster 75%']:.2f})",  # noqa: RUF001
            f"{middle['training faster']:.2f}",
            f"{mean_and_spread(values['accuracy'])} %",
            f"{statistics.mean(differences):+.2f} ± {deviation / len(rows) ** 0.5:.2f}",
        ]
        lines.append([method, *cells, len(rows)])
    return markdown(columns, lines)


def cora_epoch(
    epochs: PositiveInt = 100,
    block: PositiveInt = 5,
    seeds: PositiveInt = 5,
    first_seed: NonNegativeInt = 0,
    csv: Path = Path("logs/cora_epoch.csv"),
) -> None:
    """An epoch on Cora by the method of the paper's released code and by this project.

    The released code takes all 100 steps of the forward solve on the tape, and then 20 products through the last one.
    Here that is written plainly and put beside this project's estimators in one training loop: the same network, data,
    seeds and optimiser, validation every few epochs, and the test accuracy of the epoch that did best in it. The
    trainings take turns, a block of epochs each, and the time of a block is divided into that of the released code's
    way next to it. The settings were chosen on the seeds 0 to 6; a first seed of 7 looks at others. Finished seeds are
    kept in a CSV file and not run again unless the config changed; delete it when the code did.

    Args:
        epochs: Epochs of a training, at least two blocks.
        block: Epochs between two validations.
        seeds: How many seeds.
        first_seed: The first of them.
        csv: File of finished seeds.

    Raises:
        UserError: If there are fewer than two blocks.
    """
    if epochs < 2 * block:
        raise UserError(f"--epochs={epochs} gives no spread: give two blocks or more, {2 * block}.")
    torch.set_num_threads(1)
    ours = {**config_keys(str(CONFIG)), "epochs": str(epochs), "block": str(block)}
    wanted = [{**ours, "seed": str(seed)} for seed in range(first_seed, first_seed + seeds)]
    measured = [f"{method}: {name}" for method in METHODS for name in QUANTITIES]
    print(table(run_missing(csv, wanted, measured, compare)))
