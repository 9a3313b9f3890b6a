"""The truncated Neumann series with another minibatch for each product."""

from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.neumann_series import NeumannSeries


class StochasticNeumannSeries(NeumannSeries):
    """The truncated series z = g + J_1^T g + J_2^T J_1^T g + ..., with F evaluated again for each product.

    For hypergradients, where F is a training step that draws the next minibatch each time it is applied (stocBiO: Ji,
    Yang and Liang, ICML 2021, arXiv 2010.07962, with J_k = I - eta times the Hessian of minibatch k). If minibatches
    are independent, the expectation of z is the ``NeumannSeries`` of the expected J. A term costs one evaluation of F
    on a minibatch and one product with its J^T, independent of the size of the data set.

    A stochastic update has no fixed point, so give the forward solver a fixed number of steps (``tol=0``). The
    estimated error is that of the truncation and does not include the variance.

    Args:
        steps: K, the number of products with J^T; the sum has K + 1 terms.

    Raises:
        UserError: If ``steps`` is not an integer of at least 0.

    Example:
        >>> batches = iter([0.5, 0.4, 0.6])
        >>> operator = JacobianOperator.at(lambda h: next(batches) * h, torch.zeros(2), batch_dims=0)
        >>> StochasticNeumannSeries(steps=2).solve(operator, [torch.ones(2)]).vector  # 1 + 0.4 + 0.6 * 0.4
        [tensor([1.6400, 1.6400])]
    """

    def next_operator(self, operator: JacobianOperator) -> JacobianOperator:
        """The operator of the next product: F evaluated again.

        Args:
            operator: The operator of the last product.
        """
        return operator.reevaluated()
