"""Sums the first terms of a series."""

from collections import deque
from collections.abc import Callable

from torch import Tensor

from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.truncation import truncation_error
from rbp_lightning.pytree import Vector


def sum_of_terms(
    next_term: Callable[[Vector], Vector], gradient: Vector, count: int, operator: JacobianOperator
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Sums g and the terms that follow it, and estimates the truncation error.

    Args:
        next_term: Computes the next term from a term.
        gradient: Leaves of g, the first term.
        count: Number of terms after g.
        operator: The operator that computes the terms.

    Returns:
        Leaves of the sum, and the residual and error estimate of ``truncation_error``.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> sum_of_terms(operator.vjp, [torch.ones(2)], 2, operator)[0]
        [tensor([1.7500, 1.7500])]
    """
    terms: deque[Vector] = deque([gradient], maxlen=3)
    total = [leaf.clone() for leaf in gradient]
    for _ in range(count):
        terms.append(next_term(terms[-1]))
        for leaf, other in zip(total, terms[-1], strict=True):
            leaf += other  # in place, to move less memory
    residual, estimate = truncation_error(list(terms), gradient, count, operator.batch_dims, operator.epsilon, total)
    return total, residual, estimate
