"""Back-propagation through time with activation checkpointing."""

import copy

from rbp_lightning.errors import UserError
from rbp_lightning.estimators.bptt import BPTT
from rbp_lightning.estimators.replay import Replay
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers import FixedPointSolver, Picard, Solve
from rbp_lightning.solvers.frozen_samples import FrozenSamples
from rbp_lightning.state_function import StateFunction


class CheckpointedBPTT(BPTT):
    """Back-propagation through time that stores only some states, and recomputes the steps between them.

    The gradient is that of ``BPTT``. Memory grows with the square root of the number T of steps, and F is applied T
    more times in the backward pass (Chen et al., Training deep nets with sublinear memory cost, 2016). Since T is not
    known in advance, states are stored after segments of 1, 2, 3, ... steps, so that the number of states and the
    length of the longest segment are both about the square root of 2 T.

    F must compute the same values when it is applied again; PyTorch's random numbers are replayed. The first step is
    not recomputed, so F may cache values in it. Derivatives of order 2 and transforms of torch.func store all steps.

    Args:
        solver: Forward solver with plain steps; ``None`` is ``Picard()``.

    Raises:
        UserError: If the solver does not take plain steps.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> CheckpointedBPTT(Picard(tol=1e-7))(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # h* = 1 / (1 - weight)
        tensor(4.0000)
    """

    def __init__(self, solver: FixedPointSolver | None = None) -> None:
        super().__init__(solver)
        if type(self.solver).step is not Picard.step:
            raise UserError(
                f"CheckpointedBPTT: solver={type(self.solver).__name__} does not take plain steps: use Picard (damp "
                "the update itself if needed), or BPTT."
            )

    def iterate(self, solve: Solve) -> Vector:
        """Runs the solver in segments that the backward pass recomputes."""
        replay, watch, device = Replay(), solve.step_hook, solve.start[0].device
        frozen, length = copy.copy(solve.frozen), 0
        segment = _Steps(solve.function, solve.start)  # without steps

        def after_step(step: int, image: Vector) -> Vector:
            nonlocal frozen, length, segment
            replay.release()
            if frozen.mask is not solve.frozen.mask:  # more samples were frozen before this step
                frozen = copy.copy(solve.frozen)
            if length > 0:
                segment.frozen.append(frozen)
            image = image if watch is None else watch(step, image)
            if len(segment.frozen) == length:
                length, segment = length + 1, _Steps(solve.function, image)
                replay.begin(segment.run, device)
            return image

        solve.step_hook = after_step
        with replay:
            return super().iterate(solve)


class _Steps:
    """A segment: the steps from a stored state.

    Args:
        function: F on leaves.
        start: Leaves of the stored state.

    Attributes:
        frozen: The frozen samples at each step.
    """

    def __init__(self, function: StateFunction, start: Vector) -> None:
        self._function = function
        self._start = [leaf.detach().requires_grad_(leaf.requires_grad) for leaf in start]
        self.frozen: list[FrozenSamples] = []

    def run(self) -> None:
        """Takes the steps."""
        vector: Vector = self._start
        for frozen in self.frozen:
            vector = frozen.apply(self._function, vector)[1]
