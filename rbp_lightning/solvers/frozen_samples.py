"""Freezes failed samples of a solve at their best iterates."""

from collections.abc import Callable

import torch
from torch import Tensor

from rbp_lightning.agreement import everywhere
from rbp_lightning.pytree import Vector, norm, where


class FrozenSamples:
    """Tracks the best iterate of each sample, and freezes failed samples there, so that they do not affect the others.

    An iterate is better if both its relative and its absolute residual are smaller: the relative residual alone can
    decrease slightly while a sample diverges.

    Args:
        start: Leaves of the initial state, the first best iterate.
        batch_dims: The number of leading dimensions that index independent samples.

    Attributes:
        mask: Which samples are frozen, bool per sample; ``None`` if none is.

    Example:
        >>> frozen = FrozenSamples([torch.ones(2, 1)], batch_dims=1)
        >>> frozen.freeze(torch.tensor([False, True]), codes=torch.tensor([0, 3]))
        >>> frozen.apply(lambda vector: [2 * vector[0]], [torch.full((2, 1), 4.0)])[1]
        [tensor([[8.],
                [2.]])]
    """

    def __init__(self, start: Vector, batch_dims: int) -> None:
        self.mask: Tensor | None = None
        self._codes: Tensor | None = None
        self._best = start
        self._batch_dims = batch_dims
        self._candidates: list[tuple[Tensor, Tensor, Vector]] = []
        self._checks = 0

    def add_candidate(self, residual: Tensor, change: Tensor, vector: Vector) -> None:
        """Adds an iterate that was checked.

        To save work, candidates are only compared at checks whose number is a power of two, and when a sample fails.

        Args:
            residual: Relative residual per sample.
            change: Absolute residual per sample.
            vector: Leaves of the iterate.
        """
        newest = residual, change, [leaf.detach() for leaf in vector]
        self._checks += 1
        if self._checks > 2 and self._checks & (self._checks - 1) == 0:
            self._update_best()
        self._candidates[1:] = [newest]

    @torch.no_grad()
    def _update_best(self) -> None:
        if not self._candidates:
            return
        least, smallest, best = self._candidates[0]
        least, smallest = (figure.nan_to_num(float("inf"), float("inf")) for figure in (least, smallest))
        for residual, change, vector in self._candidates[1:]:
            better = (residual < least) & (change < smallest)
            if self.mask is not None:
                better &= ~self.mask
            least, smallest = torch.where(better, residual, least), torch.where(better, change, smallest)
            best = where(better, vector, best)
        self._candidates, self._best = [(least, smallest, best)], best

    def freeze(self, failed: Tensor, codes: Tensor) -> None:
        """Freezes samples at their best iterates.

        Args:
            failed: The samples to freeze, bool per sample.
            codes: Status codes of all samples, as in ``FixedPoint.sample_status``.
        """
        self._update_best()
        self._codes = self.merge_codes(codes)
        self.mask = failed if self.mask is None else self.mask | failed

    def apply(self, function: Callable[[Vector], Vector], vector: Vector) -> tuple[Vector, Vector]:
        """Applies F, for frozen samples to their best iterate, a constant.

        If F is not finite there either, such as for an input with NaN, the sample stays at that iterate.

        Args:
            function: F on leaves.
            vector: Leaves of h.

        Returns:
            The argument of F, and F of it.
        """
        if self.mask is None:
            return vector, function(vector)
        vector = where(self.mask, self._best, vector)
        image = function(vector)
        not_finite = self.mask & ~norm([leaf.detach() for leaf in image], self._batch_dims).isfinite()
        return vector, where(not_finite, self._best, image)

    def merge_codes(self, codes: Tensor) -> Tensor:
        """Status codes of all samples; frozen samples have the status with which they were frozen.

        Args:
            codes: The status codes of the samples that are not frozen.
        """
        return codes if self.mask is None or self._codes is None else torch.where(self.mask, self._codes, codes)

    def mapped(self, function: Callable[[Tensor], Tensor], batch_dims: int) -> "FrozenSamples":
        """The same frozen samples with transformed tensors.

        Args:
            function: Transforms a tensor.
            batch_dims: The number of leading dimensions of the result that index independent samples.
        """
        other = FrozenSamples([function(leaf) for leaf in self._best], batch_dims)
        other.mask = None if self.mask is None else function(self.mask)
        return other

    def all(self) -> bool:
        """Whether all samples, of all processes that share the solve, are frozen; synchronises if some are."""
        return self.mask is not None and everywhere(self.mask.all())
