"""Samples of a solve that have failed, each held at its best iterate."""

from collections.abc import Callable

import torch
from torch import Tensor

from rbp_lightning.agreement import everywhere
from rbp_lightning.pytree import Vector, norm, where


class FrozenSamples:
    """Keeps the best iterates of a solve, and freezes the samples that fail there, so that the others are not affected.

    The best iterate is the one of the least relative residual, of those whose change ||F(h) - h|| is the least as well.
    The relative residual alone falls, a little, while a sample diverges.

    Args:
        start: Leaves of the initial state, the best iterate before there is another.
        batch_dims: The number of leading dimensions that index independent samples.

    Attributes:
        mask: Which samples are frozen, bool per sample; ``None`` for none.

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

    def keep(self, residual: Tensor, change: Tensor, vector: Vector) -> None:
        """Keeps an iterate that was checked.

        The best of them is chosen at every check whose number is a power of two, and when a sample fails; the newest is
        kept besides. Most solves end before there is anything to choose.

        Args:
            residual: Its residual per sample.
            change: Norm of its change per sample.
            vector: Its leaves.
        """
        newest = residual, change, [leaf.detach() for leaf in vector]
        self._checks += 1
        if self._checks > 2 and self._checks & (self._checks - 1) == 0:
            self._choose()
        self._candidates[1:] = [newest]

    @torch.no_grad()
    def _choose(self) -> None:
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
            failed: Which ones, bool per sample.
            codes: How each sample ended, as ``FixedPoint.sample_status``.
        """
        self._choose()
        self._codes = self.merge_codes(codes)
        self.mask = failed if self.mask is None else self.mask | failed

    def apply(self, function: Callable[[Vector], Vector], vector: Vector) -> tuple[Vector, Vector]:
        """Applies F, to the best iterate, a constant, where a sample is frozen.

        Where even F of that is not finite, as with NaN in its input, the sample stays at the iterate itself.

        Args:
            function: F on leaves.
            vector: Leaves of h.

        Returns:
            What F was applied to, and F of it.
        """
        if self.mask is None:
            return vector, function(vector)
        vector = where(self.mask, self._best, vector)
        image = function(vector)
        not_finite = self.mask & ~norm([leaf.detach() for leaf in image], self._batch_dims).isfinite()
        return vector, where(not_finite, self._best, image)

    def merge_codes(self, codes: Tensor) -> Tensor:
        """How each sample ended: as it did when it was frozen, where it is.

        Args:
            codes: How each would have ended otherwise.
        """
        return codes if self.mask is None or self._codes is None else torch.where(self.mask, self._codes, codes)

    def mapped(self, function: Callable[[Tensor], Tensor], batch_dims: int) -> "FrozenSamples":
        """The same frozen samples, of tensors in another form.

        Args:
            function: Brings a tensor into that form.
            batch_dims: The number of leading dimensions that index independent samples there.
        """
        other = FrozenSamples([function(leaf) for leaf in self._best], batch_dims)
        other.mask = None if self.mask is None else function(self.mask)
        return other

    def all(self) -> bool:
        """Whether every sample is frozen, in all processes that share the solve; waits for the device if some are."""
        return self.mask is not None and everywhere(self.mask.all())
