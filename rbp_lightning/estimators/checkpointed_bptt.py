"""Back-propagation through time with checkpoints."""

import copy

from rbp_lightning.errors import UserError
from rbp_lightning.estimators.bptt import BPTT
from rbp_lightning.estimators.replay import Replay
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers import FixedPointSolver, Picard, Solve
from rbp_lightning.solvers.frozen_samples import FrozenSamples
from rbp_lightning.state_function import StateFunction


class CheckpointedBPTT(BPTT):
    """Back-propagation through time that keeps a few of the states, and takes the steps between them once more.

    The gradient is that of ``BPTT``, its memory grows with the square root of the number T of steps, and F is applied
    T more times, in the backward pass (Chen et al., Training deep nets with sublinear memory cost, 2016). A solve does
    not know its T before it ends: one state is kept after 1, 2, 3, ... more steps, so that the states and the steps of
    the longest segment are about the square root of 2 T each.

    What F computes must be the same when it is applied again. Random numbers of PyTorch are drawn as they were. The
    first step stays on the tape, with what F computes once and keeps. Derivatives of order 2 and transforms of
    torch.func take all steps on a tape.

    Args:
        solver: Forward solver of plain steps; ``None`` is ``Picard()``.

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
                f"CheckpointedBPTT: solver={type(self.solver).__name__} takes no plain steps: use Picard, and damp the "
                "update itself, or BPTT."
            )

    def iterate(self, solve: Solve) -> Vector:
        """Runs the solver, on a tape of segments that are run again."""
        replay, watch, device = Replay(), solve.tap, solve.start[0].device
        frozen, length = copy.copy(solve.frozen), 0
        segment = _Steps(solve.function, solve.start)  # of no steps

        def after_step(step: int, image: Vector) -> Vector:
            nonlocal frozen, length, segment
            replay.release()
            if frozen.mask is not solve.frozen.mask:  # samples have failed before this step
                frozen = copy.copy(solve.frozen)
            if length > 0:
                segment.frozen.append(frozen)
            image = image if watch is None else watch(step, image)
            if len(segment.frozen) == length:
                length, segment = length + 1, _Steps(solve.function, image)
                replay.begin(segment.run, device)
            return image

        solve.tap = after_step
        with replay:
            return super().iterate(solve)


class _Steps:
    """Steps from a state that was kept.

    Args:
        function: F on leaves.
        start: Leaves of the state.

    Attributes:
        frozen: The samples that had failed at each step.
    """

    def __init__(self, function: StateFunction, start: Vector) -> None:
        self._function = function
        self._start = [leaf.detach().requires_grad_(leaf.requires_grad) for leaf in start]
        self.frozen: list[FrozenSamples] = []

    def run(self) -> None:
        """Takes them."""
        vector: Vector = self._start
        for frozen in self.frozen:
            vector = frozen.apply(self._function, vector)[1]
