"""Methods of silva-networks: its forward solvers and gradients."""

from typing import Any

from torch import Tensor

from benchmarks.peers.methods import MAX_STEPS, Method, terms
from benchmarks.peers.networks import Case

SPACE = 200
"""Limit on the vectors that its GMRES keeps; each step solves a least-squares problem with all of them."""


def silva(solver: str, gradient: str, **options: Any) -> Method:
    """Silva-networks' equilibrium, with relative tolerances.

    The ridge of its Anderson acceleration is absolute, and by default far above small residuals, which the solve would
    then not reach. It is reduced here. Its Broyden's method treats a batch as one state.

    Args:
        solver: Its name of the forward solver.
        gradient: Its name of the gradient.
        **options: Further settings.
    """

    def method(case: Case, tol: float, radius: float) -> Tensor:
        from silva_networks.solvers import SolverConfig, solve_equilibrium

        prepared = case.prepare(*case.parameters)
        config = SolverConfig(
            solver=solver,
            max_iter=MAX_STEPS,
            tol=tol,
            stop_mode="relative",
            ridge=1e-10,
            anderson_batch_dims=0 if solver == "broyden" else case.batch_dims,
            track_residuals=False,
            backward_mode=gradient,
            backward_max_iter=SPACE,
            backward_tol=tol,
            backward_stop_mode="relative",
            backward_relative_eps=1e-30,
            neumann_terms=terms(tol, radius),
            phantom_steps=terms(tol, radius),
            shine_refine_steps=SPACE,
            **options,
        )
        found: Tensor = solve_equilibrium(case.update(prepared), case.start, config, tensors=prepared).z
        return found

    return method


SILVA: dict[str, Method] = {
    "silva, Picard, implicit": silva("picard", "implicit"),
    "silva, Anderson, implicit": silva("anderson", "implicit"),
    "silva, Broyden, implicit": silva("broyden", "implicit", history=20),
    "silva, Picard, Neumann": silva("picard", "neumann"),
    "silva, Picard, phantom": silva("picard", "phantom"),
    "silva, Picard, JFB": silva("picard", "jfb"),
    "silva, Broyden, SHINE": silva("broyden", "shine", history=20),
}
