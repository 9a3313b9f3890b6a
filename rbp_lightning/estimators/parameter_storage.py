"""Noticing parameters whose data was replaced between a solve and its backward pass."""

from collections.abc import Iterable

import torch
from torch import Tensor

from rbp_lightning.estimators.adjoint_record import parameters_of
from rbp_lightning.failures import Failure
from rbp_lightning.pytree import Vector
from rbp_lightning.reporting import SolveContext, in_context, report


class ParameterStorage:
    """Remembers where some parameters keep their data.

    The tape of a step holds the parameters themselves: where one gets other data by ``parameter.data = ...``, which
    bypasses autograd's own check, the backward pass differentiates a step that was never taken. What is written into
    the same storage through ``.data`` cannot be told.

    Args:
        parameters: The parameters; those that are not dense are left out.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> storage = ParameterStorage([weight])
        >>> weight.data = torch.zeros(2)
        >>> storage.replaced()
        True
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        # The storage stays the same object where its memory is freed and fetched again, as FSDP does. It is kept, so
        # that no other one gets its address.
        self._storages = [(one, one.untyped_storage()) for one in parameters if one.layout is torch.strided]

    def replaced(self) -> bool:
        """Whether one of them has other data by now."""
        return any(one.untyped_storage()._cdata != storage._cdata for one, storage in self._storages)


def watch_parameters(name: str, image: Vector, state: Vector, context: SolveContext) -> None:
    """Has the backward pass of a solve report parameters that got other data since the solve.

    Args:
        name: The estimator's name, for messages.
        image: Leaves of the fixed point, on the tape.
        state: Leaves that the last step was taped from, which are no parameters.
        context: Who decides about failures, and where the solve was called.
    """
    parameters = [one for one in parameters_of(image) if all(one is not leaf for leaf in state)]
    storage = ParameterStorage(parameters)

    def look(gradient: Tensor) -> None:
        if storage.replaced():
            with in_context(context):
                report(Failure.REPLACED, f"{name}: The gradient is that of another step", parameters)

    for leaf in image:
        if leaf.requires_grad:
            leaf.register_hook(look)  # type: ignore[no-untyped-call]
