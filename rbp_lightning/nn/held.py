"""Holds random numbers and parametrized weights of an update constant during a solve."""

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
    """Returns an update for one solve that uses the same random numbers and weights in every application.

    - Random numbers are drawn once: dropout, stochastic depth and attention dropout use one mask in all applications,
      in the products of the backward pass and in derivatives of any order, and new masks in the next solve; see
      ``SameDraws``.
    - Parametrized weights of the module, such as those with norm bounds, are computed once, when they are first read,
      with their graph if gradients are enabled when ``held`` is called. This includes PyTorch's ``spectral_norm``,
      which would otherwise do another power iteration at each reading.
    - The parameters are those at the time of the call: a backward pass that applies the update again after
      ``torch.func.functional_call`` has ended uses the parameters that were passed to it.

    ``torch.utils.checkpoint`` within the module is not supported with parametrized weights, which it would recompute;
    use it around the whole layer. For a module sharded by ``fully_shard``, whose parameters are gathered for each
    application, only the random numbers are held. Under torch.compile, torch.export and torch.jit.trace nothing is
    held.

    All state belongs to the returned update, so nested solves, and several solves before one backward pass, do not
    interfere. ``FixedPointLayer`` calls ``held`` for its cell.

    Args:
        update: The function F.
        module: The module that it applies.

    Returns:
        The update to solve with.

    Raises:
        UserError: If an argument is invalid.

    Example:
        >>> cell = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
        >>> update, other, state = held(cell, cell), held(cell, cell), torch.ones(8, 4)
        >>> torch.equal(update(state), update(state)), torch.equal(update(state), other(state))
        (True, False)
    """
    if not callable(update):
        raise UserError(f"held: update={update!r} is not a function: pass one that maps a state to the next state.")
    return _Held(update, check_instance(held, "module", module, nn.Module, "the module that the update applies"))


class _Held:
    """The update of one solve, with its random numbers, weights and parameters."""

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
        if is_traced():  # a traced graph cannot read random generators
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
        """A parametrized weight; ``None`` if it belongs to another module. An outer solve takes precedence."""
        found = self._weights.get(parametrization)
        if found is None and self._outer is not None:
            found = self._outer.weight(parametrization)
        if found is None and parametrization in self._parametrizations:
            # A solve in forward mode runs without tangents, but a cached weight must have them.
            with torch.set_grad_enabled(self._taped), forward_ad._set_fwd_grad_enabled(True):
                found = self._weights[parametrization] = ParametrizationList.forward(parametrization)
        return found


class _Active(threading.local):
    """The update that this thread is applying."""

    held: _Held | None = None


_active = _Active()


class _HeldParametrization(ParametrizationList):
    """Returns the held weight of the solve whose update is being applied, if any."""

    def forward(self) -> Any:
        """The weight."""
        # Compiled code computes the weight itself, because a held one would cause a recompilation in each solve.
        solve = None if torch.compiler.is_compiling() else _active.held
        found = None if solve is None else solve.weight(self)
        return super().forward() if found is None else found


class _Calling(nn.Module):
    """An update as a module, for ``functional_call``."""

    def __init__(self, update: Update, module: nn.Module) -> None:
        super().__init__()
        self._update, self.module = update, module

    def forward(self, state: State) -> State:
        return self._update(state)
