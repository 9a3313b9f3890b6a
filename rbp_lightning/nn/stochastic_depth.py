"""Stochastic depth: randomly drops residual branches."""

import torch
from torch import Tensor, nn

from rbp_lightning.errors import check_number


class StochasticDepth(nn.Module):
    """Drops a residual branch per sample with probability p in training, and scales the others by 1 / (1 - p).

    ``h + StochasticDepth(0.2)(branch(h))`` is the stochastic depth of Huang et al. (Deep Networks with Stochastic
    Depth, ECCV 2016, arXiv 1603.09382), scaled in training instead of in evaluation. In the cell of a
    ``FixedPointLayer``, the branch of a sample is dropped in all steps of a solve or in none.

    Args:
        p: Probability that a branch is dropped, from 0 to 1.

    Raises:
        UserError: If ``p`` is not such a number.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> StochasticDepth(0.5)(torch.ones(4, 2))
        tensor([[0., 0.],
                [0., 0.],
                [2., 2.],
                [0., 0.]])
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = check_number(self, "p", p, 0.0, 1.0)

    def forward(self, branch: Tensor) -> Tensor:
        """Drops the branch for some samples.

        Args:
            branch: Output of the branch, of shape ``[batch, ...]``.
        """
        ones = torch.ones(branch.shape[:1] + (1,) * (branch.dim() - 1), dtype=branch.dtype, device=branch.device)
        return branch * nn.functional.dropout(ones, self.p, self.training)

    def extra_repr(self) -> str:
        """The drop probability, for ``repr``."""
        return f"p={self.p}"
