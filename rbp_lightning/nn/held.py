"""Holding over a solve what an update draws at random and what it computes from its parameters alone."""

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.utils.parametrize import ParametrizationList

from rbp_lightning.agreement import fully_sharded_parts
from rbp_lightning.errors import UserError, check_instance
from rbp_lightning.nn.same_draws import SameDraws
from rbp_lightning.pytree import State
from rbp_lightning.state_function import Update
from rbp_lightning.tracing import is_traced


def held(update: Update, module: nn.Module) -> Update:
    """Returns the update of one solve, with what is constant over a solve held.

    - Random numbers are drawn once: dropout, stochastic depth and attention's dropout have one mask in all
      applications, in the products of the backward pass and in derivatives of any order, and new masks in the next
      solve. ``SameDraws`` says how.
    - Parametrized weights of the module, as norm bounds make them, are computed when they are first read, with their
      graph if gradients were enabled here. So are those that an update computes anew each time, such as PyTorch's
      own ``spectral_norm``, which iterates once more whenever it is read.
    - The parameters are those of now: a backward pass that applies the update once more after
      ``torch.func.functional_call`` has ended finds the ones that were passed to that.

    A ``torch.utils.checkpoint`` within the module does not go with held weights, which its recomputation would compute
    anew; around the whole layer it does. Of a module that ``fully_shard`` has sharded, whose parameters come and go
    with each application, the random numbers alone are held.

    Within a graph of torch.compile, torch.export or torch.jit.trace nothing is held.

    All this belongs to what is returned, so that nested solves, and several solves before one backward pass, do not
    disturb each other. ``FixedPointLayer`` does it for its cell.

    Args:
        update: The map F.
        module: The module that it applies.

    Returns:
        The update to solve with.

    Raises:
        UserError: If an argument is not as described.

    Example:
        >>> cell = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
        >>> update, other, state = held(cell, cell), held(cell, cell), torch.ones(8, 4)
        >>> torch.equal(update(state), update(state)), torch.equal(update(state), other(state))
        (True, False)
    """
    if not callable(update):
        raise UserError(f"held: update={update!r} is no function: pass one from a state to the next state.")
    return _Held(update, check_instance(held, "module", module, nn.Module, "the module that the update applies"))


class _Held:
    """The update of one solve, and what it holds."""

    def __init__(self, update: Update, module: nn.Module) -> None:
        self._update, self._module = update, module
        self._outer = _active.held
        self._taped = torch.is_grad_enabled()
        self._draws = SameDraws()
        self._weights: dict[ParametrizationList, Tensor] = {}
        self._parametrizations: set[ParametrizationList] = set()
        self._parameters: list[tuple[dict[str, nn.Parameter | None], str, Tensor | None]] = []
        self._by_name: dict[str, nn.Parameter] = {}
        if fully_sharded_parts(module):
            return
        for owner in module.modules():
            self._parameters += [(owner._parameters, name, one) for name, one in owner._parameters.items()]
            if isinstance(owner, ParametrizationList):
                owner.__class__ = _HeldParametrization
                self._parametrizations.add(owner)
        self._by_name = dict(module.named_parameters(remove_duplicate=False))

    def __call__(self, state: State) -> State:
        if is_traced():  # a graph reads no generator
            return self._update(state)
        before, _active.held = _active.held, self
        try:
            if all(owner.get(name) is one for owner, name, one in self._parameters):
                return self._draws(self._update, state)
            return self._draws(self._with_parameters, state)
        finally:
            _active.held = before

    def _with_parameters(self, state: State) -> State:
        named: dict[str, Tensor] = {f"module.{name}": one for name, one in self._by_name.items()}
        return functional_call(_Calling(self._update, self._module), named, (state,), strict=False)

    def weight(self, parametrization: ParametrizationList) -> Tensor | None:
        """A parametrized weight, or ``None`` if it belongs to another module. What an outer solve holds stays."""
        found = self._weights.get(parametrization)
        if found is None and self._outer is not None:
            found = self._outer.weight(parametrization)
        if found is None and parametrization in self._parametrizations:
            # A solve in forward mode runs without tangents, but what is kept has to have them.
            with torch.set_grad_enabled(self._taped), forward_ad._set_fwd_grad_enabled(True):
                found = self._weights[parametrization] = ParametrizationList.forward(parametrization)
        return found


class _Active(threading.local):
    """The update that this thread is applying."""

    held: _Held | None = None


_active = _Active()


class _HeldParametrization(ParametrizationList):
    """Returns what the solve holds, if its update is being applied."""

    def forward(self) -> Any:
        """The weight."""
        # What is compiled computes it anew: it would be compiled once more for each solve.
        holding = None if torch.compiler.is_compiling() else _active.held
        found = None if holding is None else holding.weight(self)
        return super().forward() if found is None else found


class _Calling(nn.Module):
    """An update as a module, which is what ``functional_call`` takes."""

    def __init__(self, update: Update, module: nn.Module) -> None:
        super().__init__()
        self._update, self.module = update, module

    def forward(self, state: State) -> State:
        return self._update(state)
