"""Reported residuals, error bounds and statuses match those of the returned states, in float64."""

import random

import pytest
import torch
from torch import Tensor

from rbp_lightning import (
    BPTT,
    CGRBP,
    GMRES,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    Anderson,
    Auto,
    BiCGSTAB,
    Broyden,
    Damped,
    ExactAdjoint,
    FixedPoint,
    FixedPointSolver,
    GradientEstimator,
    Implicit,
    NeumannRBP,
    Picard,
    ReducedRankExtrapolation,
    ignoring,
)

SAMPLES, SIZE = 64, 6

SLACK = 1 + 1e-6
"""Allows for rounding of a residual in float64."""


def maps(draw: random.Random) -> Tensor:
    """One matrix per sample, many of them far from normal: random, triangular, or nilpotent."""
    generator = torch.Generator().manual_seed(draw.randrange(2**32))
    matrices = torch.randn(SAMPLES, SIZE, SIZE, generator=generator, dtype=torch.float64)
    kind = draw.choice(["random", "triangular", "nilpotent"])
    if kind == "random":
        radius = torch.linalg.eigvals(matrices).abs().amax(-1)
        return matrices * (draw.uniform(0.2, 0.97) / radius)[:, None, None]
    matrices = draw.uniform(0.1, 3) * matrices.triu(1)
    if kind == "triangular":
        matrices = matrices + draw.uniform(0.1, 0.9) * torch.eye(SIZE, dtype=torch.float64)
    return matrices


def solvers_of(draw: random.Random) -> FixedPointSolver:
    kind = draw.choice([Picard, Picard, Auto, Auto, Anderson, ReducedRankExtrapolation, Broyden])
    solver = kind(draw.choice([8, 40, 400, 3000]), 10 ** draw.uniform(-10, -1), draw.choice([1, 3, 10]), atol=0.0)
    return draw.choice([solver, solver, solver, Damped(solver)])


def estimators_of(draw: random.Random) -> GradientEstimator:
    solver, steps, tol = solvers_of(draw), draw.choice([5, 50, 500]), 10 ** draw.uniform(-10, -1)
    return draw.choice(
        [
            lambda: RBP(steps, tol, start=draw.choice(["uniform", "gradient"]), solver=solver),
            lambda: NeumannRBP(steps, solver),
            lambda: CGRBP(steps, tol, solver=solver),
            lambda: AdaptiveNeumann(tol, steps, solver=solver),
            lambda: ExactAdjoint(solver=solver),
            lambda: Implicit(Auto(steps, tol), solver),
            lambda: Implicit(Anderson(steps, tol), solver),
            lambda: Implicit(GMRES(steps, tol), solver),
            lambda: Implicit(BiCGSTAB(steps, tol), solver),
            lambda: BPTT(solver if solver.differentiable else Picard(solver.max_steps, solver.tol, atol=0.0)),
            lambda: TBPTT(min(steps, 7), solver),
        ]
    )()


def relative(left: Tensor, right: Tensor) -> Tensor:
    """Ratios of norms per sample; 0 if both are 0."""
    return torch.where(left == 0, 0.0, left / right)


def check_forward(found: FixedPoint, update, state: Tensor) -> int:
    """Checks the residual of the forward solve; returns how many converged samples are above the tolerance."""
    image = update(state)
    true = relative((image - state).norm(dim=-1), image.norm(dim=-1))
    torch.testing.assert_close(found.residual, true, rtol=1e-6, atol=1e-13)
    return int(((found.sample_status == 0) & (true > found.tol * SLACK)).sum())


def check_adjoint(found: FixedPoint, matrices: Tensor, gradient: Tensor, adjoint: Tensor) -> int:
    """Checks the residual of the adjoint solve; returns how many samples are above their bound or tolerance."""
    solution = found.adjoint
    assert solution is not None
    transposed = (matrices.mT @ adjoint[..., None]).squeeze(-1)
    true = relative((gradient - adjoint + transposed).norm(dim=-1), gradient.norm(dim=-1))
    missed = torch.zeros(SAMPLES, dtype=torch.bool)
    if solution.error_bound is not None:
        exact = torch.linalg.solve(torch.eye(SIZE, dtype=torch.float64) - matrices.mT, gradient)
        error = relative((adjoint - exact).norm(dim=-1), exact.norm(dim=-1))
        missed = error > solution.error_bound * SLACK + 1e-13  # False for NaN, which is no bound
    elif solution.tol:
        # Rounding errors of the products in this function.
        rounding = 1e-15 * (1 + matrices.norm(dim=(-2, -1))) * (1 + adjoint.norm(dim=-1) / gradient.norm(dim=-1))
        assert bool(((solution.residual - true).abs() <= 1e-6 * true + 10 * rounding).all())
        if solution.status.value == "converged":
            missed = true > solution.tol * SLACK + rounding
    return int(missed.sum())


def test_reported_residuals_and_bounds_match_the_returned_states(cases, figures) -> None:
    missed = {"states": 0, "adjoints": 0}
    tried = 0
    for seed in range(cases(60, 1000)):
        draw = random.Random(seed)
        matrices, estimator = maps(draw), estimators_of(draw)
        generator = torch.Generator().manual_seed(seed)
        inputs, gradient = torch.randn(2, SAMPLES, SIZE, generator=generator, dtype=torch.float64)
        inputs.requires_grad_()
        squash = draw.choice([torch.tanh, lambda h: h])

        def update(h: Tensor, matrices=matrices, inputs=inputs, squash=squash) -> Tensor:
            return (matrices @ squash(h)[..., None]).squeeze(-1) + inputs

        with ignoring():
            found = estimator(update, torch.zeros(SAMPLES, SIZE, dtype=torch.float64), batch_dims=1)
            (adjoint,) = torch.autograd.grad(found.state, inputs, gradient)
        state = found.state.detach()
        healthy = found.sample_status < 3
        tried += int(healthy.sum())
        if not bool(healthy.all()):
            continue
        with torch.no_grad():
            below = check_forward(found, update, state)
            slopes = matrices * (1 - torch.tanh(state) ** 2)[:, None, :] if squash is torch.tanh else matrices
            wrong = check_adjoint(found, slopes, gradient, adjoint)
        missed["states"] += below
        missed["adjoints"] += wrong
        assert not below, f"seed {seed}: {estimator}"
        assert not wrong, f"seed {seed}: {estimator}"
    figures["samples"] = tried
    figures.update({f"{name} above their promise": count for name, count in missed.items()})


def test_the_adjoint_residual_of_a_highly_non_normal_map_is_the_true_one() -> None:
    """The change is below the tolerance in one step and large in the next."""
    matrix = torch.zeros(3, 3, dtype=torch.float64)
    matrix[2, 1], matrix[1, 0] = 5e-5, 1e4
    gradient = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    for estimator in (RBP(500, 1e-4, "gradient", check_every=1), CGRBP(50, 1e-4), ExactAdjoint()):
        drive = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        with ignoring():
            found = estimator(lambda h, drive=drive: matrix @ h + drive, torch.zeros(3, dtype=torch.float64))
            (adjoint,) = torch.autograd.grad(found.state, drive, gradient)
        assert found.adjoint is not None
        true = (gradient - adjoint + matrix.T @ adjoint).norm()
        assert float(true) == pytest.approx(float(found.adjoint.residual), rel=1e-6, abs=1e-11)
