"""The loop of a forward solve, which all solvers share."""

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

    A sample that diverges or becomes non-finite is frozen at its best iterate: from then on F is applied to that
    constant, and its gradient is that of one step. If F is not finite there, such as for an input with NaN, the sample
    has no gradient; but parameters that all samples share receive 0 times NaN from it, so their gradient is not finite
    either. ``FailurePolicy`` can skip such training steps.

    Args:
        update: The function F.
        initial_state: The initial state.
        batch_dims: The number of leading dimensions that index independent samples.
        solver: Computes the next iterate.
        max_steps: Maximum number of applications of F; ``None`` is the solver's.
        record: Whether to compute the residual of every step, for ``history``.

    Attributes:
        function: F on leaves; counts its applications.
        start: Leaves of the initial state.
        frozen: The samples that have failed.
        settled: Whether every sample has converged or stalled, so that no more residuals are needed.
        growth_fails: Whether a residual that grows at the end is a failure.
        at_check: Called with the number of each checked step and the largest residual.
        at_end: Called with the solver's memory after the last step.
        step_hook: Called with the number of each step and F(h); returns the value to continue with.
        save_at: Numbers of the steps after which a state is saved.
        save_next: Whether the saved states are the solver's next iterates, from which more steps are taken, or F(h).
        saved: The saved states, by the number of the step; the solve may end before some of them.
        last_taped: The last argument of F, and F of it, with their graph.
        measured: Leaves of the iterate whose residual was computed last.
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
        # Fast path: if the state is a single tensor, there is no structure to match.
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
        self.growth_fails = solver.tol > 0  # tol=0 asks for a number of steps
        self._left_at = 0
        self.at_check: Callable[[int, float], None] | None = None
        self.at_end: Callable[[Any], None] | None = None
        self.step_hook: Callable[[int, Vector], Vector] | None = None
        self.save_at: Collection[int] = ()
        self.save_next = False
        self.saved: dict[int, Vector] = {0: self.start}
        self.last_taped: tuple[Vector, Vector] = self.start, self.start
        self.measured: Vector = self.start

    @property
    def steps(self) -> int:
        """Number of applications of F."""
        return self.function.calls

    def apply(self, vector: Vector) -> tuple[Vector, Vector]:
        """Applies F, for frozen samples to their best iterate.

        Args:
            vector: Leaves of h.

        Returns:
            The argument of F, and F of it.
        """
        if self.frozen.mask is not None:
            return self.frozen.apply(self.function, vector)
        if self._ahead is not None:
            calls = self.function.calls
            image = self._ahead(vector)
            self.function.calls = calls + 1  # count only the steps of a graph that are used
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
        """Leaves of the fixed point, detached, in the dtypes of F(h); they may be tensors of the update.

        They are the iterate whose residual is reported, since another step could increase the residual if F is not a
        contraction in the norm. If ``tol`` is 0, they are F(h).

        A solve whose last step is recorded ends with the same iterate as one without gradients, since it records that
        step and not an additional one. Two cases differ: a solve that converges records one more step, if that does not
        raise the residual above ``tol``; and ``TBPTT`` records several steps, which are plain ones for every solver.

        Args:
            image: Leaves of the last F(h).
        """
        chosen = image if self.solver.tol == 0 else self.measured
        return [leaf.detach().to(other.dtype) for leaf, other in zip(chosen, image, strict=True)]

    def iterate(self, max_steps: int, steps_after: int = 0, first_taped: bool = False) -> Vector:
        """Runs the solver until every sample has converged, for at most ``max_steps`` steps.

        Args:
            max_steps: Maximum number of applications of F.
            steps_after: Number of plain steps that the caller takes afterwards; the last two steps of all show whether
                the residual grows.
            first_taped: Whether to enable gradients in the first application of F. Values that F caches, such as in
                torch.nn.utils.parametrize.cached, are then cached with their graph.

        Returns:
            Leaves of the last F(h), or, if the caller takes more steps before every sample has converged, of the
            iterate to which the solver would apply F next; where that is a probe, of the last iterate.
        """
        vector: Vector = self.start
        found = image = accepted = vector
        solver = self.solver
        plain = type(solver).step is Picard.step  # h <- F(h)
        memory = None if plain else solver.init(vector, self.batch_dims)
        if self.frozen.mask is not None and self.frozen.all():
            max_steps = min(max_steps, 1)  # more steps would change nothing
        observed_from = max_steps - 1 + steps_after if steps_after < 2 else max_steps + 1
        probe = not plain and solver.is_probe(memory)
        for step in range(1, max_steps + 1):
            if step == 1:
                applied, image = self._first_step(vector, first_taped)
                schedule = CheckSchedule(solver.check_every, solver.tol, self.test.epsilon)
            else:
                applied, image = self.apply(vector)
                if step <= 3 and any(one is other for one, other in zip(applied, image, strict=True)):
                    self.function.check_reuse(applied)
            if self.step_hook is not None:
                self.last_taped = vector, image
                image = self.step_hook(step, image)
            if not probe:
                found, accepted = image, vector
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
            if step == max_steps and steps_after == 0:
                break
            if not probe and not self.save_next and step in self.save_at:
                self.saved[step] = image
            if plain:
                vector = image
            else:
                with outside_autocast(vector[0].device.type):
                    vector, memory = solver.step(vector, image, memory)
                probe = solver.is_probe(memory)
            if not probe and self.save_next and step in self.save_at:
                self.saved[step] = vector
        else:
            found = accepted if probe else vector
            if probe:
                self.test.forget_last()  # the last iterate is observed again
        if self.step_hook is None:
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
        """Iterates without gradients, except for the last steps, which the caller takes with gradients.

        Args:
            steps_after: Number of steps that the caller takes.

        Returns:
            Detached leaves of the iterate at which these steps start: the solver's next iterate, or, after convergence,
            the last F(h) for one step, and the converged iterate for several.
        """
        with torch.no_grad():
            image = self.iterate(max(self.max_steps - steps_after, 0), steps_after, first_taped=True)
        if steps_after > 1:
            if self.settled and self.solver.tol > 0:
                image = self.measured
            self.settled = False  # several more steps may leave an unstable fixed point again
        return [leaf.detach() for leaf in image]

    def last_steps(self, vector: Vector, count: int) -> Vector:
        """Applies F a number of times, and computes the residuals unless the solve has settled.

        Args:
            vector: Leaves of h.
            count: Number of applications, at least 1.

        Returns:
            Leaves of the last F(h).
        """
        image = vector
        for index in range(count):
            vector = image
            applied, image = self.apply(vector) if self.steps else (vector, self.function.checked(vector))
            self.last_taped = vector, image
            if self.step_hook is not None:
                image = self.step_hook(index + 1, image)
            if self.test.first is None:
                self.test.epsilon = precision([*vector, *image])
            if not self.settled and (index >= count - 2 or self.record or self.test.first is None):
                self._observe(self.steps, applied, image)
            elif self.settled and self.solver.tol > 0:
                image = self._step_after_convergence(applied, image)
        return image

    def _step_after_convergence(self, vector: Vector, image: Vector) -> Vector:
        """Computes the residual of a step after convergence; if it has risen, returns to the converged iterate.

        A step may increase the residual if F is not a contraction in the norm.

        Args:
            vector: Leaves of h.
            image: Leaves of F(h).

        Returns:
            Leaves of F at the accepted iterate.
        """
        converged, allowed = self.measured, self.test.last
        assert allowed is not None  # the solve has converged
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
        """Whether to stop; freezes non-finite samples, and tracks the best iterates.

        A non-finite value after an accelerated step is tolerated once, since the solver undoes that step.
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
        self.frozen.add_candidate(residual, change, vector)
        return False

    def freezing_failures(self, run: Callable[[], Result]) -> Result:
        """Runs the last part of a solve, and repeats it with failed samples frozen if any sample fails.

        Args:
            run: The last part: the steps with gradients, or the whole solve.
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
        """Whether F differs from call to call, such as by drawing dropout masks; applies it again.

        The global random generators are left unchanged.

        Args:
            times: Number of applications.
            tol: Relative difference that is ignored.
        """
        vector, image = self._last
        # Non-deterministic kernels differ by rounding.
        limit = max(tol, 100 * self.test.epsilon) * norm(image, 0)
        with torch.no_grad(), isolate_rng():
            differences = [norm(subtract(self.function(vector), image), 0) for _ in range(times)]
        return anywhere((torch.stack(differences) > limit).any())  # False for NaN

    def status(self) -> tuple[Status, Tensor]:
        """The status over all processes that share the solve, and the status codes of this process's samples."""
        assert self.test.last is not None  # every solve observes its last step
        if self.settled and not self._stalled:
            return Status.CONVERGED, torch.zeros_like(self.test.last.residual, dtype=torch.int64)
        codes = self.frozen.merge_codes(self.test.codes(self._stalled))
        return Status.of_code(int(largest(codes.max()))), codes
