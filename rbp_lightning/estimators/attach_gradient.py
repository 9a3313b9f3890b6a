"""Attaches the implicit gradient to a solution that was found elsewhere."""

import torch
from torch.utils._pytree import tree_map

from rbp_lightning.errors import UserError, check_instance
from rbp_lightning.estimators.implicit import Implicit
from rbp_lightning.estimators.state_form import StateForm
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.linear.gmres import GMRES
from rbp_lightning.pytree import State
from rbp_lightning.state_function import Update


def attach_gradient(
    function: Update,
    solution: State,
    estimator: Implicit | None = None,
    batch_dims: int = 0,
    order: int = 1,
    optimality: bool = False,
) -> FixedPoint:
    """Makes a solution from SciPy, a closed form or another program differentiable.

    The function is applied once, to compute the residual and the gradient of the implicit function theorem, which does
    not depend on how the solution was found. If the residual is above the estimator's forward tolerance, it is reported
    like a solve that has not converged. Blondel et al., Efficient and Modular Implicit Differentiation, NeurIPS 2022
    (arXiv 2105.15183) call this custom_fixed_point and custom_root.

    Args:
        function: The function F with h = F(h), or with ``optimality`` the condition G with G(h) = 0, such as the
            gradient of a loss. Gradients reach every tensor it uses.
        solution: h, a tensor or a pytree of tensors; treated as a constant.
        estimator: Solves the adjoint equation; ``None`` is ``Implicit(GMRES())``, which does not need a contraction.
        batch_dims: Number of leading dimensions of every leaf that index independent samples.
        order: The highest order of derivatives, at least 1.
        optimality: Whether ``function`` is an optimality condition.

    Returns:
        The differentiable solution, with its residual and status; for an optimality condition the residual is that of
        h = h - G(h).

    Raises:
        UserError: If an argument or the function is invalid.
        ConvergenceError: If it is not a solution and the policy is to raise.

    Example:
        >>> c = torch.tensor([2.0, 9.0], requires_grad=True)
        >>> root = attach_gradient(lambda h: h**2 - c, c.detach().sqrt(), optimality=True)
        >>> root.state.sum().backward()
        >>> c.grad  # 1 / (2 sqrt(c))
        tensor([0.3536, 0.1667])
    """
    estimator = Implicit(GMRES()) if estimator is None else estimator
    check_instance(attach_gradient, "estimator", estimator, Implicit, "an implicit one, such as Implicit(GMRES())")
    if estimator.solver.tol == 0:
        raise UserError(
            "attach_gradient: the estimator's solver has tol=0, which no solution satisfies: give it a tolerance."
        )
    update = _step_of(function, solution) if optimality else function
    return estimator(update, solution, batch_dims, max_steps=1, order=order)


def _step_of(condition: Update, solution: State) -> Update:
    """The update h - G(h), whose fixed points are the solutions of G(h) = 0."""
    form = StateForm(solution)

    def update(state: State) -> State:
        try:
            return form.original(tree_map(torch.sub, form.plain(state), form.plain(condition(state))))
        except ValueError as error:
            raise UserError(
                f"attach_gradient: the optimality condition has another structure than the solution ({error}): return "
                "a value for each entry of the solution."
            ) from error

    return update
