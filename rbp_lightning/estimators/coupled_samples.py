"""Finding samples of a batch that act on each other although ``batch_dims`` says that they do not."""

import torch

from rbp_lightning.estimators.adjoint_record import FindParameters
from rbp_lightning.failures import Failure
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.pytree import norm, where
from rbp_lightning.reporting import Place, report

FIRST_CHECKS = 4
"""The first backward passes of a line of the user's code are checked."""

CHECK_EVERY = 97
"""After those, one in so many is."""

_passes: dict[Place, int] = {}
_coupled: set[Place] = set()


def samples_are_coupled(operator: JacobianOperator, name: str, place: Place, parameters: FindParameters) -> bool:
    """Whether samples act on each other, as batch normalisation makes them.

    J^T v of a v that is 0 in some samples is 0 there too where they do not. It takes one product, with other samples
    each time, in the first backward passes of each line that calls a solve, and in one of about a hundred after that. A
    line that was found to couple samples once is taken to do so from then on.

    Args:
        operator: The Jacobian.
        name: The estimator's name, for messages.
        place: The line that called the solve.
        parameters: Finds the parameters whose gradient the solve makes.

    Raises:
        ConvergenceError: If they do and the policy is to raise.
    """
    samples = operator.batch_shape.numel()
    if samples < 2:
        return False
    count = _passes[place] = _passes.get(place, 0) + 1
    if count > FIRST_CHECKS and count % CHECK_EVERY:
        return place in _coupled
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(count))
    chosen = (order < (samples + 1) // 2).reshape(operator.batch_shape)
    probe = operator.unravel(operator.random_unit_vector(seed=count))
    chosen = chosen.to(probe[0].device)
    product = operator.vjp(where(chosen, probe, [torch.zeros_like(leaf) for leaf in probe]))
    elsewhere = norm(product, operator.batch_dims).masked_fill(chosen, 0.0)
    if not bool((elsewhere > 0).any()):
        return place in _coupled
    _coupled.add(place)
    report(
        Failure.COUPLED_SAMPLES,
        f"{name}: batch_dims={operator.batch_dims}, but a sample's next state depends on the states of others; the "
        "adjoint equation is solved for the batch as one",
        parameters(),
    )
    return True
