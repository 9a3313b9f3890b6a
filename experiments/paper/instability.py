"""The instability of recurrent back-propagation that the paper reports (section 4), compared with a Neumann series."""

import statistics
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import markdown
from experiments.paper.findings import UNSTABLE, Errors, Finding, less, percent
from experiments.paper.runs import Curve, Measured, Scale, fit, values_of, watched
from experiments.runs import Row, estimators_in, label, mean_and_spread
from rbp_lightning import Implicit, NeumannRBP, Richardson, attach_gradient, ignoring
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers import FixedPointSolver

NAME = "Instability"
RADII = (0.5, 0.9, 0.99, 1.01, 1.1)
SIZE = 100
"""Size of the maps' state."""

STEPS = (10, 20, 40)


class UnscaledStart(Richardson):
    """Richardson iteration from a draw of U[0, 1] whatever the size of g, as in the paper's released code."""

    def _first(self, gradient: Vector, batch_dims: int) -> Vector:
        drawn = torch.Generator().manual_seed(self.seed)
        return [torch.rand(leaf.shape, dtype=leaf.dtype, generator=drawn).to(leaf.device) for leaf in gradient]


class UnscaledRBP(Implicit):
    """``RBP`` from a draw of U[0, 1] that is not scaled by g.

    Args:
        steps: Number of products with J^T.
        solver: Forward solver; ``None`` is ``Auto()``.
    """

    def __init__(self, steps: int = 20, solver: FixedPointSolver | None = None) -> None:
        super().__init__(UnscaledStart(steps, tol=0, start="uniform"), solver)
        self.steps = steps


UNSCALED = f"{__name__}.{UnscaledRBP.__name__}"
ESTIMATORS = [f"{name}:{steps}" for steps in STEPS for name in (UNSCALED, "RBP", "NeumannRBP")]
SMALL = "--data.source=digits --model.num_pixels=64 --model.num_hidden=128 --trainer.limit_val_batches=0"
FULL = Scale(["configs/paper/hopfield.yaml"], ESTIMATORS, f"{SMALL} --trainer.max_epochs=100", seeds=5)
QUICK = Scale(["configs/paper/hopfield.yaml"], ESTIMATORS, f"{SMALL} --trainer.max_epochs=20", seeds=2)
ERRORS = [f"error_{radius:g}" for radius in RADII]
BELOW = [radius for radius in RADII if 0.9 <= radius < 1]
BEYOND = [radius for radius in RADII if radius > 1]
"""Spectral radii close to 1 for which the series converges, and those for which it diverges."""

MEASURED = [*ERRORS, "loss", "warnings", "minutes", "version"]


def map_with_radius(radius: float, seed: int) -> tuple[Tensor, Tensor]:
    """A linear map h <- J h + x: its J, and the gradient of a mean over the state.

    Args:
        radius: Spectral radius of J, which is not symmetric.
        seed: Seed of the draw.

    Returns:
        J, float64 of shape ``[SIZE, SIZE]``, and g of shape ``[SIZE]``.
    """
    drawn = torch.Generator().manual_seed(seed)
    matrix = torch.randn(SIZE, SIZE, generator=drawn, dtype=torch.float64)
    target = torch.randn(SIZE, generator=drawn, dtype=torch.float64)
    return radius * matrix / torch.linalg.eigvals(matrix).abs().max(), target / SIZE


def adjoint_error(estimator: Implicit, radius: float, seed: int) -> float:
    """Relative error of an estimator's adjoint of a linear map, against the dense solution.

    Args:
        estimator: The estimator.
        radius: Spectral radius of the map.
        seed: Seed of the map.
    """
    matrix, gradient = map_with_radius(radius, seed)
    inputs = torch.zeros(SIZE, dtype=torch.float64, requires_grad=True)
    with ignoring():  # the numbers of steps are fixed
        state = attach_gradient(lambda h: matrix @ h + inputs, torch.zeros_like(inputs), estimator).state
        (state @ gradient).backward()
    assert inputs.grad is not None  # it equals the adjoint
    orthogonal, triangular = torch.linalg.qr(torch.eye(SIZE, dtype=torch.float64) - matrix.T)
    exact = torch.linalg.solve_triangular(triangular, (orthogonal.T @ gradient)[:, None], upper=True)[:, 0]
    return float((inputs.grad - exact).norm() / exact.norm())


def _estimator(name: str) -> Implicit:
    kind, _, steps = name.partition(":")
    if kind == "NeumannRBP":
        return NeumannRBP(int(steps))
    return Implicit((UnscaledStart if kind == UNSCALED else Richardson)(int(steps), tol=0, start="uniform"))


@watched
def run(keys: Row) -> Measured:
    """Measures an estimator's adjoint on maps of several spectral radii, and trains a small memory with it.

    Args:
        keys: Path of a config, further arguments of the command line, estimator and seed.

    Returns:
        The values of ``MEASURED``: relative errors of the adjoint, and the last training loss.
    """
    estimator, seed = _estimator(keys["estimator"]), int(keys["seed"])
    errors = {name: adjoint_error(estimator, radius, seed) for name, radius in zip(ERRORS, RADII, strict=True)}
    curve = Curve("train/loss")
    fit(keys, f"--data.corruption_seed={seed}", callbacks=[curve])
    return {**{name: f"{error:.4g}" for name, error in errors.items()}, "loss": curve.values[-1]}


def called(name: str) -> str:
    """The name of ``NAME:STEPS`` in tables."""
    return label(name.replace(UNSCALED, "unscaled RBP"))


def _power(values: list[float]) -> str:
    """Formats the geometric mean, with the geometric standard deviation in brackets."""
    logs = torch.tensor(values).log()
    spread = float(logs.std().exp()) if len(values) > 1 else 1.0
    return f"{float(logs.mean().exp()):.1e} ({spread:.1f})"


def section(rows: list[Row], folder: Path) -> str:
    """The section of the report.

    Args:
        rows: The runs.
        folder: The folder of the pictures; there are none.
    """
    lines = []
    for name in estimators_in(rows):
        losses = values_of(rows, name, "loss")
        errors = [_power(values_of(rows, name, error)) for error in ERRORS]
        lines.append([called(name), *errors, mean_and_spread(losses, 4), len(losses)])
    header = ["gradient", *(f"radius {radius:g}" for radius in RADII), "training loss", "seeds"]
    return f"""Relative error of the adjoint of linear maps with {SIZE} elements, where the loss is a mean, by spectral
radius: geometric mean over the seeds, with the geometric standard deviation in brackets. The unscaled start is drawn
from U[0, 1], as in the paper; `RBP` scales the draw by the gradient. The training loss is that of a memory of ten
8 x 8 digits, trained with the same estimator.

{markdown(header, lines)}

{_beyond(rows)}"""


def _beyond(rows: list[Row]) -> str:
    """Says how the errors change with the steps where the series diverges."""
    few, many = STEPS[0], STEPS[-1]
    lines = []
    for name in ("NeumannRBP", "RBP", UNSCALED):
        changes = []
        for radius in BEYOND:
            values = [values_of(rows, f"{name}:{steps}", f"error_{radius:g}") for steps in (few, many)]
            before, after = (percent(statistics.geometric_mean(one)) for one in values)
            changes.append(f"from {before} to {after} with radius {radius:g}")
        lines.append(f"- {called(name)}: {', '.join(changes)}.")
    return "\n".join(
        [f"Beyond radius 1 the series diverges in the end. From {few} to {many} steps the error changes:", "", *lines]
    )


def findings(rows: list[Row]) -> list[Finding]:
    """Compares these runs with the paper's findings."""
    found = []
    for steps in STEPS:
        for name, start in ((UNSCALED, "unscaled start"), ("RBP", "scaled start")):
            pair = f"NeumannRBP:{steps}", f"{name}:{steps}"
            found += [_on_maps(rows, pair, radius, start, steps) for radius in BELOW + BEYOND]
            losses = {called(one): values_of(rows, one, "loss") for one in pair}
            found.append(less(UNSTABLE, f"training loss of the memory of digits, {start}, {steps} steps", losses))
    return found


def _on_maps(rows: list[Row], pair: tuple[str, str], radius: float, start: str, steps: int) -> Finding:
    """Compares the errors of the adjoints of two estimators."""
    errors = {called(name): values_of(rows, name, f"error_{radius:g}") for name in pair}
    diverges = radius in BEYOND
    kind = f"Linear maps with spectral radius {' and '.join(f'{one:g}' for one in (BEYOND if diverges else BELOW))}"
    kind += ", where the series diverges" * diverges
    where = f"linear maps of radius {radius:g}, {start}, {steps} steps"
    finding = less(UNSTABLE, where, errors, digits=2 if diverges else 4, kind=kind)
    neumann, rbp = map(statistics.geometric_mean, errors.values())
    return replace(finding, errors=Errors(neumann, rbp, start))
