"""The pairs of solvers and estimators to measure."""

from collections.abc import Callable

from rbp_lightning import (
    CGRBP,
    GMRES,
    RBP,
    Anderson,
    Auto,
    FixedPointSolver,
    GradientEstimator,
    Implicit,
    Picard,
    ReducedRankExtrapolation,
)

MAX_STEPS = 20_000


def rbp(solver: FixedPointSolver) -> GradientEstimator:
    """Recurrent back-propagation to the solver's tolerance."""
    return RBP(MAX_STEPS, solver.tol, start="gradient", solver=solver)


PAIRS: dict[str, Callable[[float], GradientEstimator]] = {
    "Picard, RBP": lambda tol: rbp(Picard(MAX_STEPS, tol)),
    "Auto, Auto": lambda tol: Implicit(Auto(MAX_STEPS, tol), Auto(MAX_STEPS, tol)),
    "Anderson, GMRES": lambda tol: Implicit(GMRES(MAX_STEPS, tol), Anderson(MAX_STEPS, tol)),
    "Picard, CGRBP": lambda tol: CGRBP(MAX_STEPS, tol, solver=Picard(MAX_STEPS, tol)),
}
"""Functions of the tolerance that make an estimator with its solver, by name."""

WINDOWED: dict[str, Callable[[float, int], GradientEstimator]] = {
    "Anderson": lambda tol, count: rbp(Anderson(MAX_STEPS, tol, window=count)),
    "ReducedRankExtrapolation": lambda tol, count: rbp(ReducedRankExtrapolation(MAX_STEPS, tol, cycle=count)),
    "GMRES": lambda tol, count: Implicit(GMRES(MAX_STEPS, tol, restart=count), Picard(MAX_STEPS, tol)),
}
"""The same for solvers that keep a number of iterates: functions of the tolerance and that number."""
