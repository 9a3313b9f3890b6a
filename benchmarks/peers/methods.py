"""Methods for a fixed point and its gradient: by hand, and with this project."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.networks import Case
from rbp_lightning import (
    BPTT,
    CGRBP,
    GMRES,
    RBP,
    Anderson,
    Auto,
    GradientEstimator,
    Implicit,
    NeumannRBP,
    Picard,
)
from rbp_lightning.solvers import Update

Method = Callable[[Case, float, float], Tensor]
"""From a case, a tolerance and the spectral radius to the fixed point, differentiable w.r.t. the parameters."""

MAX_STEPS = 5000


class _BackPropagation(torch.autograd.Function):
    """The identity, whose backward pass iterates z <- J^T z + g."""

    @staticmethod
    def forward(ctx: Any, following: Tensor, taped: list[Tensor], tol: float) -> Tensor:
        ctx.taped, ctx.tol = taped, tol
        return following.view_as(following)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        following, state = ctx.taped
        adjoint, limit = gradient, ctx.tol * gradient.norm()
        for _ in range(MAX_STEPS):
            previous = adjoint
            adjoint = torch.autograd.grad(following, state, adjoint, retain_graph=True)[0] + gradient
            if (adjoint - previous).norm() <= limit:
                break
        return adjoint, None, None


def picard_by_hand(update: Update, state: Tensor, tol: float) -> Tensor:
    """A Picard loop that stops when the relative change of the whole state is small.

    Args:
        update: The map F.
        state: The initial state.
        tol: Norm of the change over that of the state.
    """
    for _ in range(MAX_STEPS):
        previous, state = state, update(state)
        with torch.no_grad():
            if (state - previous).norm() <= tol * state.norm():
                break
    return state


def rbp_by_hand(case: Case, tol: float, radius: float) -> Tensor:
    """What one would write: Picard iteration without a tape, one taped step, and RBP in the backward pass."""
    update = case.update(case.prepare(*case.parameters))
    with torch.no_grad():
        state = picard_by_hand(update, case.start, tol)
    state = state.requires_grad_()
    following = update(state)
    found: Tensor = _BackPropagation.apply(following, [following, state], tol)  # type: ignore[no-untyped-call]
    return found


def unrolled_by_hand(case: Case, tol: float, radius: float) -> Tensor:
    """The simplest version: the same loop on the tape."""
    return picard_by_hand(case.update(case.prepare(*case.parameters)), case.start, tol)


def ours(make: Callable[[Picard, float, float], GradientEstimator], order: int = 1) -> Method:
    """A method of this project, with one estimator for all solves.

    Args:
        make: Makes the estimator from a solver, the tolerance and the spectral radius.
        order: The highest order of derivatives.
    """
    made = functools.cache(lambda tol, radius: make(Picard(MAX_STEPS, tol), tol, radius))

    def method(case: Case, tol: float, radius: float) -> Tensor:
        update = case.update(case.prepare(*case.parameters))
        state: Tensor = made(tol, radius)(update, case.start, batch_dims=case.batch_dims, order=order).state
        return state

    return method


def terms(tol: float, radius: float) -> int:
    """The number of terms after which the last one of a Neumann series is within a tolerance."""
    return max(1, math.ceil(math.log(tol) / math.log(radius)))


BY_HAND: dict[str, Method] = {"Picard + RBP by hand": rbp_by_hand, "unrolled by hand": unrolled_by_hand}

PAPER: dict[str, Method] = {
    "RBP": ours(lambda solver, tol, radius: RBP(MAX_STEPS, tol, start="gradient", solver=solver)),
    "NeumannRBP": ours(lambda solver, tol, radius: NeumannRBP(terms(tol, radius), solver)),
    "CGRBP": ours(lambda solver, tol, radius: CGRBP(MAX_STEPS, tol, solver=solver)),
    "BPTT": ours(lambda solver, tol, radius: BPTT(solver)),
}
"""The paper's estimators, with Picard iteration."""

OURS: dict[str, Method] = {
    "Implicit, the default": ours(lambda solver, tol, radius: Implicit(Auto(MAX_STEPS, tol), Auto(MAX_STEPS, tol))),
    "Anderson, GMRES": ours(lambda solver, tol, radius: Implicit(GMRES(MAX_STEPS, tol), Anderson(MAX_STEPS, tol))),
    **PAPER,
}
