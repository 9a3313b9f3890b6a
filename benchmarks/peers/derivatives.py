"""Second derivatives by this project and by other packages, compared with the closed form."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers.methods import OURS, Method, ours
from benchmarks.peers.networks import Case
from benchmarks.peers.peers import installed
from benchmarks.report import as_written, write_csv
from rbp_lightning import BPTT, GMRES, RBP, Implicit

TOL = 1e-12

Loss = Callable[[Tensor, Tensor], Tensor]
"""From a fixed point and the weight to a loss, all scalars."""

LOSSES: dict[str, Loss] = {
    "h": lambda state, weight: state,
    "h²": lambda state, weight: state.square(),
    "h + w²": lambda state, weight: state + weight.square(),
}


def weight_of(state: Tensor, drive: float) -> Tensor:
    """The weight w for which a state h is the fixed point of h <- tanh(w h + x)."""
    return (state.atanh() - drive) / state


def exact(loss: Loss, state: float, drive: float) -> tuple[float, float]:
    """First and second derivative of a loss with respect to the weight.

    The weight is a function of the fixed point. With derivatives w' and L' with respect to h, the first derivative is
    L' / w' and the second (L' / w')' / w'.

    Args:
        loss: The loss.
        state: The fixed point, in (-1, 1) and not 0.
        drive: The input x.

    Example:
        >>> first, second = exact(lambda state, weight: weight**3, 0.8, 0.5)
        >>> w = float(weight_of(torch.tensor(0.8), 0.5))
        >>> abs(first - 3 * w**2) < 1e-6, abs(second - 6 * w) < 1e-6
        (True, True)
    """
    point = torch.tensor(state, dtype=torch.float64, requires_grad=True)
    weight = weight_of(point, drive)
    (slope,) = torch.autograd.grad(weight, point, create_graph=True)
    (change,) = torch.autograd.grad(loss(point, weight), point, create_graph=True)
    first = change / slope
    (second,) = torch.autograd.grad(first, point)
    return float(first.detach()), float((second / slope).detach())


def case_of(state: float, drive: float) -> Case:
    """The network h <- tanh(w h + x) with one unit, in float64, and with the weight for a given fixed point.

    Args:
        state: The fixed point.
        drive: The input x.
    """
    return Case(
        [weight_of(torch.tensor(state, dtype=torch.float64), drive).requires_grad_()],
        lambda weight: (weight,),
        lambda state, weight: torch.tanh(weight * state + drive),
        torch.zeros(1, 1, dtype=torch.float64),
        batch_dims=1,
    )


def derivative_ratios(method: Method, loss: Loss, state: float, drive: float) -> tuple[float, float]:
    """First and second derivative by a method, relative to the exact ones.

    Args:
        method: The method.
        loss: The loss.
        state: The fixed point.
        drive: The input x.

    Raises:
        Exception: Whatever the method or autograd raises if there is no second derivative.
    """
    case = case_of(state, drive)
    (weight,) = case.parameters
    radius = abs(float(weight.detach())) * (1 - state**2)
    found = loss(method(case, TOL, radius).squeeze(), weight)
    (first,) = torch.autograd.grad(found, weight, create_graph=True)
    (second,) = torch.autograd.grad(first, weight)
    exact_first, exact_second = exact(loss, state, drive)
    return float(first.detach()) / exact_first, float(second) / exact_second


def verdict(method: Method, loss: Loss, state: float, drive: float) -> str:
    """The ratio of the second derivative, or the name of the exception."""
    try:
        return f"{derivative_ratios(method, loss, state, drive)[1]:.3f}"
    except Exception as reason:  # packages raise exceptions of their own
        return f"{type(reason).__name__}"


TO_ORDER_2: dict[str, Method] = {
    "RBP, order=2": ours(lambda solver, tol, radius: RBP(solver.max_steps, tol, start="gradient", solver=solver), 2),
    "Implicit(GMRES), order=2": ours(lambda solver, tol, radius: Implicit(GMRES(tol=tol), solver), 2),
    "BPTT, order=2": ours(lambda solver, tol, radius: BPTT(solver), 2),
}
"""Some of this project's estimators with second derivatives."""


def derivatives(out: Path = Path("logs/derivatives")) -> None:
    """Second derivatives through a fixed point, relative to the exact ones.

    The network is h <- tanh(w h + x) with one unit, at h = 0.8 and x = 0.5 in float64. There w is a function of h in
    closed form, which gives the exact derivatives. Prints a table with a column for each loss, and writes it to a CSV
    file. 1 is right, a name is the exception that was raised, and any other number is wrong without a warning.

    Args:
        out: Folder to write to.
    """
    methods = {**OURS, **TO_ORDER_2, **installed()}
    rows = [
        {"second derivative of": name, **{loss: verdict(method, LOSSES[loss], 0.8, 0.5) for loss in LOSSES}}
        for name, method in methods.items()
    ]
    write_csv(out / "derivatives.csv", rows)
    print(as_written(rows))
