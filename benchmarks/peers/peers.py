"""Methods of other packages, as far as these are installed."""

import functools
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.peers.methods import MAX_STEPS, Method, picard_by_hand
from benchmarks.peers.networks import Case
from benchmarks.peers.silva import SILVA


def torchdeq(solver: str, max_steps: int = MAX_STEPS) -> Method:
    """Torchdeq's implicit differentiation, with relative tolerances and the same solver for both passes.

    Args:
        solver: Torchdeq's name of the solver.
        max_steps: Step limit of each pass.
    """

    @functools.cache
    def made(tol: float) -> torch.nn.Module:
        from torchdeq import get_deq

        limits = {"f_max_iter": max_steps, "b_max_iter": max_steps, "f_tol": tol, "b_tol": tol}
        modes = {"f_stop_mode": "rel", "b_stop_mode": "rel"}
        found: torch.nn.Module = get_deq(f_solver=solver, b_solver=solver, ift=True, no_stat=True, **limits, **modes)
        return found

    def method(case: Case, tol: float, radius: float) -> Tensor:
        update = case.update(case.prepare(*case.parameters))
        start = case.start if case.batch_dims else case.start[None]  # its first dimension counts samples
        found = made(tol)(update if case.batch_dims else lambda state: update(state[0])[None], start)[0][-1]
        return found if case.batch_dims else found[0]

    return method


def torchopt(case: Case, tol: float, radius: float) -> Tensor:
    """Torchopt's implicit differentiation of a Picard loop, with its default linear solver."""
    from torchopt.diff.implicit import custom_root
    from torchopt.linear_solve import solve_normal_cg

    prepared = case.prepare(*case.parameters)

    def optimality(state: Tensor, *prepared: Tensor) -> Tensor:
        return case.step(state, *prepared) - state

    def solve(state: Tensor, *prepared: Tensor) -> Tensor:
        with torch.no_grad():
            return picard_by_hand(case.update(prepared), state, tol)

    argnums = tuple(range(1, len(prepared) + 1))
    root = custom_root(optimality, argnums=argnums, solve=solve_normal_cg(rtol=tol, maxiter=MAX_STEPS))(solve)
    found: Tensor = root(case.start.clone(), *prepared)
    return found


def xitorch(case: Case, tol: float, radius: float) -> Tensor:
    """Xitorch's equilibrium with Anderson acceleration, and BiCGSTAB in the backward pass.

    Its default, Broyden's method, gets no closer than 5% to the gradient of the convolution in 200 steps.
    """
    from xitorch.optimize import equilibrium

    prepared = case.prepare(*case.parameters)
    size = float(case.start.numel()) ** 0.5  # its tolerances on the state are absolute
    found: Tensor = equilibrium(
        case.step,
        case.start,
        params=prepared,
        method="anderson_acc",
        maxiter=500,
        f_tol=tol * size,
        bck_options={"method": "bicgstab", "rtol": tol, "max_niter": MAX_STEPS},
    )
    return found


def installed() -> dict[str, Method]:
    """The methods of the packages that are installed."""
    peers: dict[str, dict[str, Method]] = {
        "torchdeq": {
            "torchdeq, fixed point": torchdeq("fixed_point_iter"),
            "torchdeq, Anderson": torchdeq("anderson"),
            "torchdeq, Broyden": torchdeq("broyden", 200),  # allocates two states for each step of its limit
        },
        "torchopt": {"torchopt, normal CG": torchopt},
        "xitorch": {"xitorch, Anderson": xitorch},
        "silva_networks": SILVA,
    }
    return {
        name: method for package, methods in peers.items() if find_spec(package) for name, method in methods.items()
    }
