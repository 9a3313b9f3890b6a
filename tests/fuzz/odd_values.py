"""Valid and invalid states, updates and arguments, to test the API with."""

import dataclasses
import itertools
import math
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_structure

Pair = namedtuple("Pair", ["one", "other"])


@dataclasses.dataclass
class Record:
    """A dataclass."""

    state: Tensor


class Subclass(Tensor):
    """A subclass of Tensor."""


class OddShape:
    """An object with an attribute ``shape`` that is not a shape."""

    shape = 5


class Unprintable:
    """An object whose ``repr`` fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class OwnError(Exception):
    """An error raised by user code."""


def inference_tensor() -> Tensor:
    with torch.inference_mode():
        return torch.ones(2, 3)


def cyclic() -> list[Any]:
    state: list[Any] = [torch.ones(2)]
    state.append(state)
    return state


def shared() -> list[Tensor]:
    leaf = torch.ones(2, 3)
    return [leaf, leaf]


GOOD_STATES: dict[str, Callable[[], Any]] = {
    "matrix": lambda: torch.zeros(2, 3),
    "vector": lambda: torch.ones(4),
    "float64": lambda: torch.zeros(2, 3, dtype=torch.float64),
    "scalar": lambda: torch.zeros(()),
    "half": lambda: torch.zeros(2, 3, dtype=torch.float16),
    "bfloat16": lambda: torch.zeros(2, 3, dtype=torch.bfloat16),
    "transposed": lambda: torch.ones(3, 2).T,
    "expanded": lambda: torch.ones(1, 3).expand(2, 3),
    "many dimensions": lambda: torch.zeros([1] * 20 + [2]),
    "requires a gradient": lambda: torch.zeros(2, 3, requires_grad=True),
    "inference": inference_tensor,
    "parameter": lambda: nn.Parameter(torch.zeros(2, 3)),
    "subclass": lambda: torch.zeros(2, 3).as_subclass(Subclass),
    "odd keys": lambda: {1: torch.zeros(2, 3), "a": torch.zeros(2), None: torch.zeros(2, 1), (1, 2): torch.ones(2)},
    "ordered": lambda: OrderedDict(b=torch.zeros(2, 3), a=torch.zeros(2, 3)),
    "nested": lambda: [(torch.zeros(2, 3), []), {"x": {}, "y": [torch.ones(2, 1)]}, None],
    "named tuple": lambda: Pair(torch.zeros(2, 3), torch.zeros(2, 3)),
    "shared leaves": shared,
    "two precisions": lambda: [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64)],
    "an empty leaf": lambda: [torch.zeros(2, 3), torch.zeros(2, 0)],
    "large": lambda: torch.full((2, 3), 1e30),
    "NaN": lambda: torch.tensor([[math.nan, 1.0], [0.0, 1.0]]),
    "infinite": lambda: torch.tensor([[math.inf, 1.0], [0.0, 1.0]]),
    "complex": lambda: torch.zeros(2, 3, dtype=torch.complex64),
    "dataclass": lambda: Record(torch.zeros(2, 3)),
}

BAD_STATES: dict[str, Callable[[], Any]] = {
    "integers": lambda: torch.zeros(2, 3, dtype=torch.int64),
    "bool": lambda: torch.zeros(2, 3, dtype=torch.bool),
    "float8": lambda: torch.zeros(2, 3, dtype=torch.float8_e4m3fn),
    "empty": lambda: torch.zeros(0, 3),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "mkldnn": lambda: torch.eye(3).to_mkldnn(),
    "meta": lambda: torch.zeros(2, 3, device="meta"),
    "two devices": lambda: [torch.zeros(2, 3), torch.zeros(2, 3, device="meta")],
    "array": lambda: np.zeros((2, 3), dtype=np.float32),
    "number": lambda: 1.0,
    "nothing": lambda: None,
    "text": lambda: "state",
    "empty dict": lambda: {},
    "a None leaf": lambda: {"a": torch.zeros(2, 3), "b": "x"},
    "generator": lambda: (torch.zeros(2) for _ in range(2)),
    "cyclic": cyclic,
    "odd shape": OddShape,
    "unprintable": Unprintable,
    "a class": lambda: Tensor,
    "an integer leaf": lambda: [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int32)],
}

STATES = GOOD_STATES | BAD_STATES


def each(function: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
    """An update that applies a function to each tensor."""
    return lambda state: tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, state)


def raising(error: BaseException) -> Callable[[Any], Any]:
    """An update that fails."""

    def update(state: Any) -> Any:
        raise error

    return update


def later(first: Callable[[Any], Any], then: Callable[[Any], Any], calls: int) -> Callable[[Any], Any]:
    """An update that uses ``first`` for some calls, and ``then`` after them."""
    counted = itertools.count(1)
    return lambda state: (first if next(counted) <= calls else then)(state)


def good_updates(weight: Tensor) -> dict[str, Callable[[Any], Any]]:
    """Valid updates, most of them with a parameter."""
    return {
        "linear": each(lambda h: 0.5 * h + weight.to(h.dtype)),
        "tanh": each(lambda h: torch.tanh(0.7 * h + weight.to(h.dtype))),
        "constant": each(lambda h: torch.ones_like(h) * weight.to(h.dtype)),
        "without parameters": each(lambda h: 0.5 * h + 1),
        "detaching": each(lambda h: 0.5 * h.detach() + weight.to(h.dtype)),
        "cut off": each(lambda h: (0.5 * h + weight.to(h.dtype)).detach()),
        "wider": each(lambda h: 0.5 * h.double() + weight.double()),
        "narrower": each(lambda h: (0.5 * h + weight.to(h.dtype)).half()),
        "slow": each(lambda h: 0.99 * h + weight.to(h.dtype)),
        "growing": each(lambda h: 3 * h + weight.to(h.dtype)),
        "turning": each(lambda h: -h + weight.to(h.dtype)),
        "overflowing": each(lambda h: h.square() * h + 2 + weight.to(h.dtype)),
        "NaN": each(lambda h: h * math.nan + weight.to(h.dtype)),
        "infinite": each(lambda h: h + math.inf + weight.to(h.dtype)),
        "a step function": each(lambda h: (h > 0.5).to(h.dtype) + weight.to(h.dtype)),
        "parameter twice": each(lambda h: 0.25 * h + 0.25 * h.clone() + weight.to(h.dtype)),
        "expanded": each(lambda h: (0.0 * h.sum() + weight.to(h.dtype)).expand(h.shape)),
    }


def odd_updates(weight: Tensor) -> dict[str, Any]:
    """Invalid updates, and updates that raise."""
    linear = each(lambda h: 0.5 * h + weight.to(h.dtype))
    integers = each(lambda h: h.round().long())
    return {
        "random": each(lambda h: 0.5 * h + torch.rand_like(h.float()).to(h.dtype)),
        "integers": integers,
        "integers later": later(linear, integers, 4),
        "bool": each(lambda h: h > 0),
        "complex": each(lambda h: torch.complex(h.float(), h.float())),
        "complex later": later(linear, each(lambda h: h.to(torch.complex64)), 2),
        "float8": each(lambda h: h.to(torch.float8_e5m2)),
        "sparse": each(lambda h: h.to_sparse()),
        "other shape": each(lambda h: torch.cat([h.reshape(-1), h.reshape(-1)])),
        "other shape later": later(linear, each(lambda h: h.sum()), 6),
        "meta": each(lambda h: h.to("meta")),
        "number": lambda state: 1.0,
        "array": each(lambda h: h.detach().float().numpy()),
        "nothing": lambda state: None,
        "nothing later": later(linear, lambda state: None, 5),
        "tuple": lambda state: (state, state),
        "list of itself": lambda state: [state],
        "generator": lambda state: (leaf for leaf in [state]),
        "structure": lambda state: {"structure": tree_structure(state)},
        "odd shape": lambda state: OddShape(),
        "odd leaves": each(lambda h: OddShape()),
        "unprintable": lambda state: Unprintable(),
        "itself": lambda state: state,
        "a view of itself": each(lambda h: h.view_as(h)),
        "in place": each(lambda h: h.mul_(0.5).add_(1)),
        "raises": raising(OwnError("own")),
        "raises later": later(linear, raising(OwnError("own")), 3),
        "stops": raising(StopIteration("own")),
        "interrupted": raising(KeyboardInterrupt("own")),
        "exits": raising(SystemExit("own")),
        "type error": raising(TypeError("own")),
        "key error": raising(KeyError("own")),
        "out of memory": raising(MemoryError("own")),
        "not callable": 5,
        "no update": None,
        "a class": nn.Linear,
        "no argument": lambda: None,
        "two arguments": lambda state, other: state,
        "wrong operation": lambda state: torch.zeros(2, 3) @ torch.zeros(2, 3),
        "in-place on the weight": each(lambda h: 0.5 * h + weight.detach().mul_(1).to(h.dtype)),
    }


def numbers(random: Random) -> Any:
    """A number, or something else where a number is expected."""
    return random.choice(
        [
            *(None, "x", "", b"5", [], [3], {}, (), True, False, 0, 1, 2, 3, 50, -1, 10**30, 10**400, -(10**400)),
            *(0.0, 0.5, 1.0, 1e-6, 3.7, -0.5, 1e300, 5e-324, math.nan, math.inf, -math.inf, 1j),
            *(np.int64(3), np.float32(0.5), np.float64(0.5), np.bool_(True), np.array([1, 2]), np.array(3)),
            *(torch.tensor(3), torch.tensor(0.5), torch.tensor([1, 2]), torch.tensor(3, device="meta")),
            *(object(), Unprintable(), OddShape(), int, "steps", "uniform", "raise", "skip"),
        ]
    )
