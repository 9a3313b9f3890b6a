"""Methods for a fixed point and its gradient in JAX: by hand, with jaxopt and with optimistix."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import lineax
import optimistix
from jax import Array
from jaxopt import linear_solve

from benchmarks.jax_peers.networks import Case

Prepared = tuple[Array, ...]

Method = Callable[[Case, Prepared, Array], Array]
"""From a case, what was prepared and a tolerance to the fixed point, differentiable with respect to the prepared."""

MAX_STEPS = 5000
"""The same limit as in PyTorch."""


def iterated(update: Callable[[Array], Array], start: Array, tol: Array, scale: Callable[[Array], Array]) -> Array:
    """Iterates until the norm of a change is within a tolerance.

    Args:
        update: The map to iterate.
        start: The first iterate.
        tol: The tolerance.
        scale: Maps an iterate to the value that the tolerance is relative to.
    """

    def go_on(carry: tuple[Array, Array, Array]) -> Array:
        steps, iterate, change = carry
        return (steps < MAX_STEPS) & (change > tol * scale(iterate))

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        steps, iterate, _ = carry
        following = update(iterate)
        return steps + 1, following, jnp.linalg.norm(following - iterate)

    found: Array = jax.lax.while_loop(go_on, body, (0, start, jnp.inf))[1]
    return found


def by_hand(case: Case, prepared: Prepared, tol: Array) -> Array:
    """What one would write: Picard iteration, and recurrent back-propagation in the backward pass."""
    step = case.step_by_hand or case.step

    def solve(prepared: Prepared, tol: Array) -> Array:
        return iterated(lambda state: step(state, *prepared), case.start, tol, jnp.linalg.norm)

    def forward(prepared: Prepared, tol: Array) -> tuple[Array, Any]:
        state = solve(prepared, tol)
        return state, (prepared, state, tol)

    def backward(kept: Any, gradient: Array) -> tuple[Prepared, None]:
        prepared, state, tol = kept
        _, product = jax.vjp(lambda state: step(state, *prepared), state)
        size = jnp.linalg.norm(gradient)
        adjoint = iterated(lambda adjoint: product(adjoint)[0] + gradient, gradient, tol, lambda _: size)
        return jax.vjp(lambda prepared: step(state, *prepared), prepared)[1](adjoint)[0], None

    fixed_point = jax.custom_vjp(solve)
    fixed_point.defvjp(forward, backward)
    found: Array = fixed_point(prepared, tol)
    return found


def by_jaxopt(solver: Any, linear: Callable[..., Any], case: Case, prepared: Prepared, tol: Array) -> Array:
    """Jaxopt's implicit differentiation; its tolerances on the state are absolute.

    Args:
        solver: Class of its forward solver.
        linear: Its linear solver.
        case: The case.
        prepared: What was prepared.
        tol: The tolerance.
    """
    made = solver(
        lambda state, prepared: case.step(state, *prepared),
        maxiter=MAX_STEPS,
        tol=tol * case.start.size**0.5,
        implicit_diff_solve=partial(linear, tol=tol, maxiter=MAX_STEPS),
    )
    found: Array = made.run(case.start, prepared).params
    return found


def by_optimistix(case: Case, prepared: Prepared, tol: Array) -> Array:
    """Optimistix's fixed-point iteration and implicit adjoint, with lineax's GMRES.

    Its BiCGSTAB takes small absolute values for a breakdown. The gradients of these losses are small, so it would stop
    after one step.
    """
    linear = lineax.GMRES(rtol=tol, atol=tol * 1e-3, norm=optimistix.two_norm, max_steps=MAX_STEPS)
    found: Array = optimistix.fixed_point(
        lambda state, prepared: case.step(state, *prepared),
        optimistix.FixedPointIteration(rtol=tol, atol=tol, norm=optimistix.rms_norm),
        case.start,
        prepared,
        max_steps=MAX_STEPS,
        adjoint=optimistix.ImplicitAdjoint(linear),
        throw=False,
    ).value
    return found


METHODS: dict[str, Method] = {
    "JAX, Picard + RBP by hand": by_hand,
    "jaxopt, fixed point, normal CG": partial(by_jaxopt, jaxopt.FixedPointIteration, linear_solve.solve_normal_cg),
    "jaxopt, Anderson, normal CG": partial(by_jaxopt, jaxopt.AndersonAcceleration, linear_solve.solve_normal_cg),
    "jaxopt, Anderson, BiCGSTAB": partial(by_jaxopt, jaxopt.AndersonAcceleration, linear_solve.solve_bicgstab),
    "optimistix, fixed point, GMRES": by_optimistix,
}
