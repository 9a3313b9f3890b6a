"""Detects parameters whose data was replaced between a solve and its backward pass."""

from collections.abc import Iterable

import torch
from torch import Tensor

from rbp_lightning.estimators.adjoint_record import parameters_of
from rbp_lightning.failures import Failure
from rbp_lightning.pytree import Vector
from rbp_lightning.reporting import SolveContext, in_context, report


class ParameterStorage:
    """Remembers the storages of some parameters.

    Autograd saves the parameters themselves. If one is assigned other data by ``parameter.data = ...``, which bypasses
    autograd's version check, the backward pass differentiates a step that was never taken. Values written into the same
    storage through ``.data`` are not detected.

    Args:
        parameters: The parameters; those that are not dense are ignored.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> storage = ParameterStorage([weight])
        >>> weight.data = torch.zeros(2)
        >>> storage.replaced()
        True
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        # FSDP frees and refills the memory of a storage, but the storage object stays the same. Holding it prevents
        # another storage from getting its address.
        self._storages = [(one, one.untyped_storage()) for one in parameters if one.layout is torch.strided]

    def replaced(self) -> bool:
        """Whether any of the parameters has another storage now."""
        return any(one.untyped_storage()._cdata != storage._cdata for one, storage in self._storages)


def watch_parameters(name: str, image: Vector, state: Vector, context: SolveContext) -> None:
    """Makes the backward pass of a solve report parameters that were assigned other data since the solve.

    Args:
        name: The estimator's name, for messages.
        image: Leaves of the fixed point, with their graph.
        state: Leaves of the argument of the last step, which are not parameters.
        context: The failure handler, and the line that called the solve.
    """
    parameters = [one for one in parameters_of(image) if all(one is not leaf for leaf in state)]
    storage = ParameterStorage(parameters)

    def check(gradient: Tensor) -> None:
        if storage.replaced():
            with in_context(context):
                report(Failure.REPLACED, f"{name}: The gradient is that of a step with other parameters", parameters)

    for leaf in image:
        if leaf.requires_grad:
            leaf.register_hook(check)  # type: ignore[no-untyped-call]
