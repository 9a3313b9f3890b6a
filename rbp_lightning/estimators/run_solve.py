"""Runs one call of an estimator."""

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch._functorch.config
from torch.utils._pytree import tree_leaves, tree_unflatten

from rbp_lightning.errors import UserError
from rbp_lightning.estimators.adjoint_record import AdjointRecord
from rbp_lightning.estimators.attach_adjoint import watch_gradient
from rbp_lightning.estimators.derivative_request import Attach, DerivativeRequest
from rbp_lightning.estimators.estimator_protocol import Estimator
from rbp_lightning.estimators.intermediate_states import intermediate_states, tape_start
from rbp_lightning.estimators.observer import SolveObserver, observers_of_solve
from rbp_lightning.estimators.options import Options
from rbp_lightning.estimators.parameter_storage import watch_parameters
from rbp_lightning.estimators.progress import showing_progress
from rbp_lightning.estimators.random_draws import RandomnessCheck
from rbp_lightning.estimators.solve_result import solve_result
from rbp_lightning.estimators.transforms import Transforms
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.pytree import State, Vector
from rbp_lightning.reporting import current_context
from rbp_lightning.solvers import Solve, Update


def run_solve(estimator: Estimator, update: Update, initial_state: State, options: Options) -> FixedPoint:
    """Finds a fixed point and attaches its gradient.

    Args:
        estimator: The estimator.
        update: The function F.
        initial_state: The initial state.
        options: The options of the call.

    Raises:
        UserError: If an argument or the update is invalid.
        ConvergenceError: If the solve fails and the policy is to raise.
    """
    name, solver, order, warm_start = type(estimator).__name__, estimator.solver, options.order, options.warm_start
    transforms = Transforms.around_call()
    taped = torch.is_grad_enabled() or (transforms is not None and transforms.forward_mode)
    if options.max_steps is not None and taped:
        estimator.check_max_steps(options.max_steps)
    if warm_start is not None:
        if transforms is not None:
            raise UserError(f"{name}: warm_start cannot be used within torch.func: leave it out.")
        initial_state = warm_start.state_like(initial_state)
    request = DerivativeRequest(order, transforms) if transforms is not None or (taped and order > 1) else None
    start, function, batch_dims = initial_state, update, options.batch_dims
    if transforms is not None:
        start, function = transforms.lowered_state(initial_state), transforms.lowered(update)
        batch_dims += len(transforms.batch_sizes)
    context = current_context()
    if request is not None and context.sharing is not None:
        raise UserError(
            f"{name}: PyTorch's sharded modules have only first derivatives in reverse mode: leave order at 1 and "
            "do not use torch.func, or do not shard the module."
        )
    observers = observers_of_solve() if taped else []
    record = AdjointRecord(name, context, observers, warm_start) if taped else None
    randomness = RandomnessCheck(function, context.place, taped, solver.tol)
    record_all = options.history or any(observer.record for observer in observers)
    bar = showing_progress(name, solver.tol) if options.progress else nullcontext()
    outside = nullcontext if transforms is None else transforms.outside
    with outside(), bar as at_check:
        solve = Solve(randomness.update, start, batch_dims, solver, options.max_steps, record_all)
        solve.at_check = at_check
        solve.growth_fails &= options.growth_fails
        solve.save_at = [tape_start(estimator, step, taped) for step in options.states_at]
        solve.save_next = solve.save_at != list(options.states_at)
        attach = _attach(estimator, solve, record, request)
        if at_check is not None and solve.test.last is not None:
            at_check(solve.steps, float(solve.test.last.residual.max()))
    if request is None:
        image = attach(solve.function, solve.start)
    else:
        image = attach(request.function(update, solve), tree_leaves(initial_state))
    if record is not None and transforms is None and randomness.due:
        watch_parameters(name, image, solve.last_taped[0], context)
    with outside():
        is_random = randomness.is_random(solve)
        fixed_point = solve_result(name, solve, image, context, record, is_random)
        if observers:
            operator = JacobianOperator(_refuse_evaluation, *solve.last_taped, batch_dims, solver.per_leaf)
            for observer in observers:
                observer.on_solve_end(fixed_point, operator)
    if warm_start is not None:
        warm_start.keep_state(fixed_point)
    if observers and request is None:
        image = watch_gradient(_notifying(observers), image)
        fixed_point = replace(fixed_point, state=tree_unflatten(image, solve.structure))
    if transforms is not None:
        fixed_point = transforms.lifted_figures(fixed_point)
    if options.states_at:
        again = functools.partial(run_solve, estimator, update)
        states = intermediate_states(estimator, solve, again, initial_state, fixed_point.state, options, request, taped)
        fixed_point = replace(fixed_point, states=states)
    return fixed_point


def _attach(
    estimator: Estimator, solve: Solve, record: AdjointRecord | None, request: DerivativeRequest | None
) -> Attach:
    """Finds the fixed point, and returns a function that attaches its derivatives within the transforms."""
    if record is None:
        image = solve.values(solve.freezing_failures(lambda: solve.iterate(solve.max_steps)))
        leaves = [leaf.clone() for leaf in image]
        return lambda *_: leaves if request is None else request.lift(leaves)
    _keep_saved_tensors()
    if request is not None:
        with torch.enable_grad():  # it may be disabled in forward mode
            return estimator.differentiate_to_order(solve, record, request)
    taped = estimator.differentiate(solve, record)
    if taped[0] is solve.last_taped[1][0]:
        taped = watch_gradient(lambda gradient: None, taped, solve.values(taped))
    return lambda *_: taped


@functools.cache
def _keep_saved_tensors() -> None:
    """Disables donated buffers of compiled updates in this process.

    After one backward pass without ``retain_graph``, a compiled update would otherwise be cached, also on disk, in a
    form that does not allow the repeated products of implicit estimators.
    """
    torch._functorch.config.donated_buffer = False


def _refuse_evaluation(vector: Vector) -> Vector:
    """Replaces the update in the Jacobian of observers: evaluating it again could change what they observe."""
    raise NotImplementedError("observers must not evaluate the update again")


def _notifying(observers: Sequence[SolveObserver]) -> Callable[[Vector], None]:
    def notify(gradient: Vector) -> None:
        for observer in observers:
            observer.on_gradient(gradient)

    return notify
