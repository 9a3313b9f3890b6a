"""Solves with compiled steps or under autocast, and their gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers.measure import gradient
from benchmarks.peers.networks import Case
from rbp_lightning import Implicit, NeumannRBP, Picard, WarmStart

STEPS, PRODUCTS = 61, 20
ENOUGH = 1000
"""Steps and products after which only rounding errors are left."""

Step = Callable[..., Tensor]


def ten(step: Step) -> Step:
    """Ten steps as one function."""

    def ten_steps(state: Tensor, *prepared: Tensor) -> Tensor:
        for _ in range(10):
            state = step(state, *prepared)
        return state

    return ten_steps


def solved(
    case: Case,
    step: Step,
    ten_steps: Step | None = None,
    low: bool = False,
    steps: int = STEPS,
    products: int = PRODUCTS,
    warm_start: WarmStart | None = None,
) -> Tensor:
    """The gradient of a case's loss by ``NeumannRBP``.

    Args:
        case: The case.
        step: Its step, compiled or not.
        ten_steps: Ten of its steps, or ``None``.
        low: Whether to compute under autocast to bfloat16.
        steps: Steps of the forward solve.
        products: Products of the adjoint.
        warm_start: Where to keep the adjoint.
    """
    with torch.autocast(case.start.device.type, torch.bfloat16, enabled=low):
        prepared = case.prepare(*case.parameters)
        state, left = case.start, steps
        if ten_steps is not None:
            with torch.no_grad():
                for _ in range((steps - 1) // 10):  # the last step is left to the solver, for the tape
                    state = ten_steps(state, *prepared)
            left = (steps - 1) % 10 + 1
        estimator = NeumannRBP(products, Picard(left, tol=0))
        fixed_point = estimator(
            lambda state: step(state, *prepared), state, batch_dims=case.batch_dims, warm_start=warm_start
        )
    return gradient(case, fixed_point.state.float())


def summed_in_bfloat16(case: Case) -> Tensor:
    """The same under autocast, but with the adjoint kept and summed in bfloat16."""
    with torch.autocast(case.start.device.type, torch.bfloat16):
        prepared = case.prepare(*case.parameters)
        state = case.start
        with torch.no_grad():
            for _ in range(ENOUGH - 1):
                state = case.step(state, *prepared)
        state = state.detach().requires_grad_()
        following = case.step(state, *prepared)
    final = following.detach().float().requires_grad_()
    term = adjoint = torch.autograd.grad(case.loss(final), final)[0].bfloat16()
    for _ in range(ENOUGH):
        (term,) = torch.autograd.grad(following, state, term.to(following.dtype), retain_graph=True)
        term = term.bfloat16()
        adjoint = adjoint + term
    leaves = torch.autograd.grad(following, case.parameters, adjoint.to(following.dtype))
    return torch.cat([leaf.flatten() for leaf in leaves])


def solved_in_graphs(case: Case, graph_steps: int) -> Tensor:
    """The gradient of a case's loss, solved to a tolerance, with steps and products in CUDA graphs.

    Args:
        case: The case.
        graph_steps: Steps in a graph; 0 for none.
    """
    forward, adjoint = (Picard(ENOUGH, tol, graph_steps=graph_steps) for tol in (1e-5, 1e-4))
    update = case.update(case.prepare(*case.parameters))
    return gradient(case, Implicit(adjoint, forward)(update, case.start, batch_dims=case.batch_dims).state)
