"""One forward solve: the loop that all solvers share."""

import math
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from rbp_lightning.agreement import anywhere, everywhere, largest
from rbp_lightning.check_schedule import CheckSchedule
from rbp_lightning.pytree import State, Vector, flatten_state, norm, subtract
from rbp_lightning.reporting import current_context
from rbp_lightning.solvers.base import FixedPointSolver
from rbp_lightning.solvers.convergence import ConvergenceTest
from rbp_lightning.solvers.frozen_samples import FrozenSamples
from rbp_lightning.solvers.picard import Picard
from rbp_lightning.state_function import StateFunction, Update, continues, outside_autocast, precision
from rbp_lightning.status import Status
from rbp_lightning.steps_ahead import StepsAhead

Result = TypeVar("Result")


class Solve:
    """One solve of h = F(h): applies F, checks for convergence and freezes samples that fail.

    A sample that diverged or ceased to be finite is frozen at its best iterate: F is applied to that iterate, a
    constant, from then on, and its gradient is that of one step. Where F of it is not finite, as with NaN in its input,
    it has none; but what all samples share, such as a weight, receives 0 times NaN from it and has no finite gradient
    either. That is for the policy to skip.

    Args:
        update: The map F.
        initial_state: Where to start.
        batch_dims: The number of leading dimensions that index independent samples.
        solver: How the next iterate is made.
        max_steps: Most applications of F; ``None`` takes the solver's.
        record: Whether to observe every step, for ``history``.

    Attributes:
        function: F on leaves; counts how often it was applied.
        start: Leaves of the initial state.
        frozen: The samples that have failed.
        settled: Whether the loop has found every sample converged or stalled, so that nothing need be observed.
        growth_fails: Whether a sample that grows from step to step at the end has failed.
        at_check: Takes the number of each step that was checked, and the largest residual.
        at_end: Takes what the solver remembers after its last step.
        tap: Takes the number of each step and F(h), and returns what to continue with.
        keep_at: Numbers of steps whose F(h) is kept.
        kept: These, by the number of the step; a solve may end before.
        last_taped: What F was applied to last, and F of it, as they are on the tape.
        measured: Leaves of the iterate whose residual was observed last.
    """

    def __init__(
        self,
        update: Update,
        initial_state: State,
        batch_dims: int,
        solver: FixedPointSolver,
        max_steps: int | None = None,
        record: bool = False,
    ) -> None:
        self.start, self.structure = flatten_state(initial_state, batch_dims)
        self.function = StateFunction(update, self.structure)
        # Of one tensor, the usual state, there are no leaves to pair.
        self._update = update if self.structure.is_leaf() else None
        self._ahead: StepsAhead | None = None
        if isinstance(solver, Picard) and solver.graph_steps:
            self._ahead = StepsAhead(self.function, solver.graph_steps, current_context().place)
        self.batch_dims, self.solver, self.record = batch_dims, solver, record
        self.max_steps = max_steps or solver.max_steps
        atol = solver.tol / 1000 if solver.atol is None else solver.atol
        self.test = ConvergenceTest(solver.tol, atol, batch_dims, precision(self.start), solver.per_leaf)
        self.frozen = FrozenSamples(self.start, batch_dims)
        self.settled = self._stalled = False
        self.growth_fails = solver.tol > 0  # else a number of steps was asked for
        self._left_at = 0
        self.at_check: Callable[[int, float], None] | None = None
        self.at_end: Callable[[Any], None] | None = None
        self.tap: Callable[[int, Vector], Vector] | None = None
        self.keep_at: Collection[int] = ()
        self.kept: dict[int, Vector] = {0: self.start}
        self.last_taped: tuple[Vector, Vector] = self.start, self.start
        self.measured: Vector = self.start

    @property
    def steps(self) -> int:
        """How often F was applied."""
        return self.function.calls

    def apply(self, vector: Vector) -> tuple[Vector, Vector]:
        """Applies F, to the best iterate where a sample is frozen.

        Args:
            vector: Leaves of h.

        Returns:
            What F was applied to, and F of it.
        """
        if self.frozen.mask is not None:
            return self.frozen.apply(self.function, vector)
        if self._ahead is not None:
            calls = self.function.calls
            image = self._ahead(vector)
            self.function.calls = calls + 1  # of a graph's steps those that are wanted
            return vector, image
        if self._update is None:
            return vector, self.function(vector)
        self.function.calls += 1
        leaf, image = vector[0], self._update(vector[0])
        alike = isinstance(image, Tensor) and image.shape == leaf.shape and image.dtype is leaf.dtype
        if not alike and not continues(leaf, image):
            self.function.refuse(vector, [image])
        return vector, [image]

    def values(self, image: Vector) -> list[Tensor]:
        """Leaves of the fixed point, detached, in the dtypes of F(h); they can be the update's own tensors.

        They are those of the iterate whose residual is reported, which another step could increase where the update is
        no contraction in the norm. Where a number of steps is asked for, they are those of F(h).

        Args:
            image: Leaves of the last F(h).
        """
        chosen = image if self.solver.tol == 0 else self.measured
        return [leaf.detach().to(other.dtype) for leaf, other in zip(chosen, image, strict=True)]

    def iterate(self, max_steps: int, steps_after: int = 0, first_taped: bool = False) -> Vector:
        """Runs the solver until every sample has converged or ``max_steps`` are spent.

        Args:
            max_steps: Most applications of F.
            steps_after: How many more steps the caller takes; the last two of all tell whether they grow.
            first_taped: Whether to apply F with gradients enabled at first, and drop the tape. What F computes once and
                keeps, as torch.nn.utils.parametrize.cached does, is then kept with its graph.

        Returns:
            Leaves of the last F(h).
        """
        vector: Vector = self.start
        found = image = vector
        solver = self.solver
        plain = type(solver).step is Picard.step  # h <- F(h)
        memory = None if plain else solver.init(vector, self.batch_dims)
        if self.frozen.mask is not None and self.frozen.all():
            max_steps = min(max_steps, 1)  # more steps would change nothing
        observed_from = max_steps - 1 + steps_after if steps_after < 2 else max_steps + 1
        for step in range(1, max_steps + 1):
            probe = not plain and solver.is_probe(memory)
            if step == 1:
                applied, image = self._first_step(vector, first_taped)
                schedule = CheckSchedule(solver.check_every, solver.tol, self.test.epsilon)
            else:
                applied, image = self.apply(vector)
                if step <= 3 and any(one is other for one, other in zip(applied, image, strict=True)):
                    self.function.check_reuse(applied)
            if self.tap is not None:
                self.last_taped = vector, image
                image = self.tap(step, image)
            if not probe:
                found = image
                if step in self.keep_at:
                    self.kept[step] = image
                if step == 1 or step >= schedule.next_check:
                    if step > 1:
                        schedule.next_check = step
                    self._observe(step, applied, image)
                    if self._check(schedule, step, applied, plain):
                        break
                    if self.at_check is not None:
                        self.at_check(step, schedule.largest)
                    if step > 1 and not plain and math.isfinite(schedule.largest):
                        with outside_autocast(vector[0].device.type):
                            memory = solver.after_check(step, schedule, vector, image, memory)
                elif self.record or step >= observed_from or solver.probes:
                    self._observe(step, applied, image)
            if step == max_steps:
                break
            if plain:
                vector = image
            else:
                with outside_autocast(vector[0].device.type):
                    vector, memory = solver.step(vector, image, memory)
        if self.tap is None:
            self.last_taped = vector, found
        if self.at_end is not None:
            self.at_end(memory)
        return found

    def _first_step(self, vector: Vector, taped: bool) -> tuple[Vector, Vector]:
        if self.frozen.mask is not None:
            return self.apply(vector)
        with torch.set_grad_enabled(taped or torch.is_grad_enabled()):
            image = self.function.checked(vector)
        self.test.epsilon = precision([*vector, *image])
        return vector, [leaf.detach() for leaf in image] if taped else image

    def without_tape(self, steps_after: int) -> list[Tensor]:
        """Iterates without a tape, before some steps that the caller tapes.

        Args:
            steps_after: How many steps the caller takes.

        Returns:
            Detached leaves of where the tape is to begin: the last F(h), or of several steps an iterate that has
            converged.
        """
        with torch.no_grad():
            image = self.iterate(max(self.max_steps - steps_after, 0), steps_after, first_taped=True)
        if steps_after > 1:
            if self.settled and self.solver.tol > 0:
                image = self.measured
            self.settled = False  # what has converged may yet be left: an unstable mode takes time to grow
        return [leaf.detach() for leaf in image]

    def last_steps(self, vector: Vector, count: int) -> Vector:
        """Applies F some more times, and observes the changes unless the solve has settled.

        Args:
            vector: Leaves of h.
            count: How often, at least 1.

        Returns:
            Leaves of the last F(h).
        """
        image = vector
        for index in range(count):
            vector = image
            applied, image = self.apply(vector) if self.steps else (vector, self.function.checked(vector))
            self.last_taped = vector, image
            if self.tap is not None:
                image = self.tap(index + 1, image)
            if self.test.first is None:
                self.test.epsilon = precision([*vector, *image])
            if not self.settled and (index >= count - 2 or self.record or self.test.first is None):
                self._observe(self.steps, applied, image)
            elif self.settled and self.solver.tol > 0:
                image = self._step_after_convergence(applied, image)
        return image

    def _step_after_convergence(self, vector: Vector, image: Vector) -> Vector:
        """Observes a step after convergence, or takes one from what has converged where this iterate has not.

        A step may increase the residual where the update is no contraction in the norm.

        Args:
            vector: Leaves of h.
            image: Leaves of F(h).

        Returns:
            Leaves of F of the iterate that stays.
        """
        converged, allowed = self.measured, self.test.last
        assert allowed is not None  # it has converged
        self._observe(self.steps, vector, image)
        assert self.test.last is not None
        if everywhere((self.test.last.residual <= allowed.residual.clamp_min(self.solver.tol)).all()):
            return image
        self.test.forget_last()
        taped = vector[0].requires_grad
        self.measured = vector = [leaf.detach().requires_grad_(taped) for leaf in converged]
        image = self.function(vector)
        self.last_taped = vector, image
        return image

    def _observe(self, step: int, vector: Vector, image: Vector) -> None:
        if self.frozen.mask is None:
            self._last = vector, image
        self.measured = vector
        with torch.no_grad():
            self.test.observe(step, vector, image)

    def _check(self, schedule: CheckSchedule, step: int, vector: Vector, plain: bool) -> bool:
        """Whether to stop; freezes what has ceased to be finite, and keeps the best iterates.

        An accelerated step may leave the domain of F; the next one, which the solver takes back, decides.
        """
        assert self.test.last is not None  # the step was observed
        residual, change = self.test.last.residual, self.test.last.change
        if self.frozen.mask is not None:
            residual = residual.masked_fill(self.frozen.mask, 0.0)
        finished = schedule.is_finished(step, residual)
        if not math.isfinite(schedule.largest):
            if not plain and self._left_at != step - 1:
                self._left_at = schedule.next_check = step
                schedule.next_check += 1
                return False
            self.frozen.freeze(~residual.isfinite(), self.test.codes(stalled=False))
            if self.frozen.all():
                return True
            finished = schedule.decide(step, float(largest(residual.nan_to_num(0.0, 0.0, 0.0).max())))
        if finished:
            self.settled, self._stalled = self.frozen.mask is None, schedule.stalled
            return True
        self.frozen.keep(residual, change, vector)
        return False

    def freezing_failures(self, run: Callable[[], Result]) -> Result:
        """Runs the end of a solve, and once more where samples fail in it, with these frozen.

        Args:
            run: The end: the steps on the tape, or the whole solve.
        """
        before = self.frozen.mask
        result = run()
        if self.settled:
            return result
        codes = self.test.codes(self._stalled)
        if int(largest(codes.max())) >= Status.DIVERGED.code:
            failed = codes >= Status.DIVERGED.code
            if not self.growth_fails:
                assert self.test.last is not None  # every solve observes its last step
                failed &= ~self.test.last.residual.isfinite()
            if self.frozen.mask is not None:
                failed &= ~self.frozen.mask
            if anywhere(failed.any()):
                self.frozen.freeze(failed, codes)
        return result if self.frozen.mask is before else run()

    def is_stochastic(self, times: int = 1, tol: float = 0.0) -> bool:
        """Whether F differs from call to call, as it does where it draws a dropout mask; applies it again.

        The global random numbers go on as if it had not been asked.

        Args:
            times: How often to apply it.
            tol: Relative difference that does not count.
        """
        vector, image = self._last
        # Kernels that sum in any order differ by rounding.
        limit = max(tol, 100 * self.test.epsilon) * norm(image, 0)
        with torch.no_grad(), isolate_rng():
            differences = [norm(subtract(self.function(vector), image), 0) for _ in range(times)]
        return anywhere((torch.stack(differences) > limit).any())  # never where there is NaN

    def status(self) -> tuple[Status, Tensor]:
        """How the solve ended in all processes that share it, and each sample here, as ``FixedPoint.sample_status``."""
        assert self.test.last is not None  # every solve observes its last step
        if self.settled and not self._stalled:
            return Status.CONVERGED, torch.zeros_like(self.test.last.residual, dtype=torch.int64)
        codes = self.frozen.merge_codes(self.test.codes(self._stalled))
        return Status.of_code(int(largest(codes.max()))), codes
