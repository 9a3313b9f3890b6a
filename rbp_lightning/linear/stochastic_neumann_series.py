"""The Neumann series of an update that draws a minibatch each time."""

from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.neumann_series import NeumannSeries


class StochasticNeumannSeries(NeumannSeries):
    """The truncated series z = g + J_1^T g + J_2^T J_1^T g + ..., with F evaluated again for each product.

    For hypergradients, where F is a training step and draws the next minibatch each time it is applied (stocBiO: Ji,
    Yang and Liang, ICML 2021, arXiv 2010.07962, where J_k = I - eta times the Hessian of minibatch k).
    Where the minibatches are independent of each other, the mean of z over them is ``NeumannSeries`` of the mean J.
    A term costs an evaluation of F on a minibatch and a product with its J^T, whatever the size of the whole data.

    An update that draws has no fixed point, so the forward solver is to take a number of steps (``tol=0``). The
    estimated error is that of the truncation; it knows nothing of the variance.

    Args:
        steps: K, the number of products with J^T; the sum has K + 1 terms.

    Raises:
        UserError: If ``steps`` is negative or not a whole number.

    Example:
        >>> batches = iter([0.5, 0.4, 0.6])
        >>> operator = JacobianOperator.at(lambda h: next(batches) * h, torch.zeros(2), batch_dims=0)
        >>> StochasticNeumannSeries(steps=2).solve(operator, [torch.ones(2)]).vector  # 1 + 0.4 + 0.6 * 0.4
        [tensor([1.6400, 1.6400])]
    """

    def next_tape(self, operator: JacobianOperator) -> JacobianOperator:
        """What the next product is taken with: F evaluated again.

        Args:
            operator: What the last one was taken with.
        """
        return operator.retaped()
