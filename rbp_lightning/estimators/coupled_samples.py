"""Detects samples that act on each other although ``batch_dims`` declares them independent."""

import torch

from rbp_lightning.agreement import anywhere
from rbp_lightning.estimators.adjoint_record import FindParameters
from rbp_lightning.estimators.spot_checks import SpotChecks
from rbp_lightning.failures import Failure
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.pytree import norm, where
from rbp_lightning.reporting import Place, report

_checks = SpotChecks()


def samples_are_coupled(operator: JacobianOperator, name: str, place: Place, parameters: FindParameters) -> bool:
    """Whether samples act on each other, such as through batch normalisation.

    If they are independent and v is 0 in some samples, J^T v is 0 in those samples. The test takes one product with a
    random half of the samples, so it is done in only some backward passes. Once a line is found to couple samples, all
    its later solves are assumed to.

    Args:
        operator: The Jacobian.
        name: The estimator's name, for messages.
        place: The line that called the solve.
        parameters: Finds the parameters whose gradient the solve computes.

    Raises:
        ConvergenceError: If samples are coupled and the policy is to raise.
    """
    samples = operator.batch_shape.numel()
    if not anywhere(samples >= 2):
        return False
    count = _checks.next(place)
    if count is None:
        return place in _checks.found
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(count))
    chosen = (order < (samples + 1) // 2).reshape(operator.batch_shape)
    probe = operator.unravel(operator.random_unit_vector(seed=count))
    chosen = chosen.to(probe[0].device)
    product = operator.vjp(where(chosen, probe, [torch.zeros_like(leaf) for leaf in probe]))
    elsewhere = norm(product, operator.batch_dims).masked_fill(chosen, 0.0)
    if not anywhere((elsewhere > 0).any()):
        return place in _checks.found
    _checks.found.add(place)
    report(
        Failure.COUPLED_SAMPLES,
        f"{name}: batch_dims={operator.batch_dims}, but a sample's next state depends on the states of others; the "
        "adjoint equation is solved for the whole batch as one sample",
        parameters(),
    )
    return True
