"""Finding samples of a batch that act on each other although ``batch_dims`` says that they do not."""

import torch

from rbp_lightning.failures import Failure
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.pytree import norm, where
from rbp_lightning.reporting import Place, report

FIRST_CHECKS = 2
"""The first backward passes of a line of the user's code are checked."""

CHECK_EVERY = 100
"""After those, one in so many is."""

_passes: dict[Place, int] = {}
_coupled: set[Place] = set()


def samples_are_coupled(operator: JacobianOperator, name: str, place: Place) -> bool:
    """Whether samples act on each other, as batch normalisation makes them.

    J^T v of a v that is 0 in every other sample is 0 there too where they do not. It takes one product, in the first
    backward passes of each line that calls a solve, and in one of a hundred after that.

    Args:
        operator: The Jacobian.
        name: The estimator's name, for messages.
        place: The line that called the solve.

    Raises:
        ConvergenceError: If they do and the policy is to raise.
    """
    count = _passes[place] = _passes.get(place, 0) + 1
    if count > FIRST_CHECKS and count % CHECK_EVERY:
        return place in _coupled
    if operator.batch_shape.numel() < 2:
        return False
    every_other = torch.arange(operator.batch_shape.numel()).reshape(operator.batch_shape) % 2 == 0
    probe = operator.unravel(operator.random_unit_vector(seed=0))
    every_other = every_other.to(probe[0].device)
    product = operator.vjp(where(every_other, probe, [torch.zeros_like(leaf) for leaf in probe]))
    elsewhere = norm(product, operator.batch_dims).masked_fill(every_other, 0.0)
    if not bool((elsewhere > 0).any()):
        _coupled.discard(place)
        return False
    _coupled.add(place)
    report(
        Failure.COUPLED_SAMPLES,
        f"{name}: batch_dims={operator.batch_dims}, but a sample's next state depends on the states of others; the "
        "adjoint equation is solved for the batch as one",
    )
    return True
