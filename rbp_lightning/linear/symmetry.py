"""Tests whether a Jacobian is symmetric."""

from torch import Tensor
from torch.linalg import vecdot

from rbp_lightning.linear.jacobian import JacobianOperator

ROUNDING = 16
"""Assumed rounding error of an inner product with J, in units of the precision."""


def is_asymmetric(operator: JacobianOperator) -> Tensor:
    """Whether J is not symmetric, bool per sample, by two products with J^T.

    For a random v, ``v . J^T J^T v`` is ``||J^T v||^2`` if J is symmetric, and almost surely only then.

    Args:
        operator: Products with J^T.

    Example:
        >>> turn = torch.tensor([[0.0, 0.5], [-0.5, 0.0]])
        >>> is_asymmetric(JacobianOperator.at(lambda h: turn @ h, torch.zeros(2), batch_dims=0))
        tensor(True)
    """
    vector = operator.random_unit_vector(0)
    image = operator.flat_vjp(vector)
    second = operator.flat_vjp(image)
    square = vecdot(image, image)
    allowed = ROUNDING * operator.epsilon * (square + second.norm(dim=-1))
    asymmetric: Tensor = (vecdot(vector, second) - square).abs() > allowed
    return asymmetric
