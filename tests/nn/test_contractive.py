"""``contractive`` bounds all layers of a module."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rbp_lightning import (
    FixedPointLayer,
    FrobeniusNormBound,
    Implicit,
    InfinityNormBound,
    Picard,
    SpectralNormBound,
    UserError,
    contractive,
)
from rbp_lightning.nn import FrobeniusConvolutionBound


class ConvolutionalCell(nn.Module):
    """A convolution with relu, a linear layer per pixel with tanh, and the input."""

    def __init__(self, padding_mode: str = "zeros") -> None:
        super().__init__()
        options: dict[str, Any] = {"padding_mode": padding_mode, "dtype": torch.float64}
        self.convolution = nn.Conv2d(3, 3, 3, padding=1, **options)
        self.pixels = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.pixels(torch.relu(self.convolution(h)).movedim(1, -1))).movedim(-1, 1) + x


class AttentiveCell(nn.Module):
    """Self-attention on clamped tokens, and the input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        h = h.clamp(-1, 1)  # does not increase distances
        return self.attention(h, h, h, need_weights=False)[0] + x


def enlarged(module: nn.Module, factor: float = 20.0) -> nn.Module:
    """Sets the parameters to random values far above any bound; returns the module."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(factor * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("norm", ["spectral", "frobenius", "infinity"])
@pytest.mark.parametrize(
    ("make", "shape", "token_norm"), [(ConvolutionalCell, (2, 3, 6, 6), None), (AttentiveCell, (2, 5, 8), 8**0.5)]
)
def test_solves_with_a_contractive_cell_converge_to_the_same_state(
    make: Any, shape: tuple[int, ...], token_norm: float | None, norm: str
) -> None:
    torch.manual_seed(0)
    cell = contractive(enlarged(make()), 0.9, norm, token_norm=token_norm)
    layer = FixedPointLayer(cell, Implicit(solver=Picard(2000, 1e-13)))
    x = torch.randn(shape, dtype=torch.float64)
    starts = torch.zeros_like(x), 10 * torch.randn_like(x)
    found = [layer.solve(x, initial_state=start) for start in starts]
    assert all(one.converged for one in found)
    torch.testing.assert_close(found[0].state, found[1].state, rtol=1e-9, atol=1e-9)


def test_each_layer_gets_the_bound_of_its_kind() -> None:
    cell = ConvolutionalCell()
    assert contractive(cell, 0.8, "frobenius") is cell
    for layer, kind in ((cell.convolution, FrobeniusConvolutionBound), (cell.pixels, FrobeniusNormBound)):
        (bound,) = layer.parametrizations.weight
        assert isinstance(bound, kind)
        assert bound.bound == 0.8
    # The weights stay trainable, and are in checkpoints.
    assert "pixels.parametrizations.weight.original" in cell.state_dict()
    torch.testing.assert_close(copy.deepcopy(cell).pixels.weight, cell.pixels.weight)


# --- attention


def largest_growth(jacobian: Tensor, steps: int = 30) -> float:
    """Largest Euclidean change of an output token for changes of at most 1 of every input token.

    A lower bound, by ascent from several directions. The Jacobian is ``[out, d, in, d]``.
    """
    found = 0.0
    for rows in jacobian:
        for start in torch.eye(rows.shape[0], dtype=rows.dtype):
            target = start
            for _ in range(steps):
                moves = nn.functional.normalize(torch.einsum("o,ond->nd", target, rows), dim=1)
                image = torch.einsum("ond,nd->o", rows, moves)
                target = nn.functional.normalize(image, dim=0)
            found = max(found, float(image.norm()))
    return found


@pytest.mark.parametrize("kind", [SpectralNormBound, FrobeniusNormBound, InfinityNormBound])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 6, "vdim": 5}])
@pytest.mark.parametrize("radius", [0.5, 3.0])
def test_attention_on_bounded_tokens_is_within_the_bound(kind: type, options: dict[str, Any], radius: float) -> None:
    norm = {SpectralNormBound: "spectral", FrobeniusNormBound: "frobenius", InfinityNormBound: "infinity"}[kind]
    for seed in range(2):
        torch.manual_seed(seed)
        attention = enlarged(nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64, **options))
        contractive(attention, 0.9, norm, token_norm=radius)
        sizes = [4, attention.kdim, attention.vdim]

        def attend(joined: Tensor, attention: nn.Module = attention, sizes: list[int] = sizes) -> Tensor:
            if "kdim" not in options:  # self-attention: query, key and value are the same token
                joined = torch.cat([joined] * 3, dim=1)
            query, key, value = (one[None] for one in joined.split(sizes, dim=1))
            return attention(query, key, value)[0][0]

        tokens = torch.randn(3, sum(sizes) if "kdim" in options else 4, dtype=torch.float64)
        pieces = tokens.split(sizes, dim=1) if "kdim" in options else [tokens]
        order = float("inf") if norm == "infinity" else 2
        tokens = torch.cat([radius * one / one.norm(order, dim=1, keepdim=True) for one in pieces], dim=1)
        jacobian = torch.autograd.functional.jacobian(attend, tokens)
        if norm == "infinity":
            assert float(jacobian.abs().sum(dim=(2, 3)).max()) <= 0.9 * (1 + 1e-9)
        elif "kdim" not in options:
            assert 0.01 < largest_growth(jacobian) <= 0.9 * (1 + 1e-9)
        else:
            # Queries, keys and values are separate tokens.
            apart = torch.cat([nn.functional.pad(one, (0, 6 - one.shape[-1])) for one in jacobian.split(sizes, 3)], 2)
            assert 0.01 < largest_growth(apart) <= 0.9 * (1 + 1e-9)


def test_bounded_attention_still_distinguishes_tokens() -> None:
    # The bound on the scores that makes attention a contraction leaves room for different weights.
    torch.manual_seed(0)
    attention = enlarged(nn.MultiheadAttention(4, 1, bias=False, batch_first=True, dtype=torch.float64))
    contractive(attention, 0.9, token_norm=1.0)
    tokens = nn.functional.normalize(torch.randn(1, 6, 4, dtype=torch.float64), dim=2)
    weights = attention(tokens, tokens, tokens)[1].detach()
    assert float(weights.max() / weights.min()) > 1.2


# --- invalid arguments


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    ("module", "options", "what"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.GRUCell(2, 2)), {}, r"Sequential\.1 \(GRUCell\) has no known bound"),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2, elementwise_affine=False)), {}, "LayerNorm.* no known bound"),
        (nn.ConvTranspose2d(2, 2, 3), {}, "ConvTranspose2d.* no known bound"),
        (OwnParameter(), {}, r"OwnParameter \(OwnParameter\) has no known bound: call contractive on each"),
        (nn.Tanh(), {}, "Tanh has no weight to bound"),
        (nn.LazyLinear(2), {}, "no weight yet"),
        (nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"), {}, "padding_mode='reflect', which repeats pixels"),
        (nn.Conv1d(2, 2, 3, padding=2, padding_mode="circular"), {}, "lower the padding"),
        (nn.MultiheadAttention(4, 2), {}, "pass token_norm"),
        (nn.MultiheadAttention(4, 2), {"token_norm": 0.0}, "token_norm=0.0"),
        (nn.MultiheadAttention(4, 2, dropout=0.1), {"token_norm": 1.0}, "dropout has no known bound"),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), {"token_norm": 1.0}, "add_bias_kv"),
        (nn.MultiheadAttention(4, 2, add_zero_attn=True), {"token_norm": 1.0}, "add_zero_attn"),
        (nn.Linear(2, 2), {"bound": 0.0}, "bound=0.0"),
        (nn.Linear(2, 2), {"norm": "max"}, "norm='max' must be one of spectral, frobenius, infinity"),
        (torch.tanh, {}, "is not of type Module"),
    ],
)
def test_unsuitable_modules_are_refused_and_not_changed(module: Any, options: dict[str, Any], what: str) -> None:
    before = repr(module)
    with pytest.raises(UserError, match=what):
        contractive(module, **{"bound": 0.9, **options})
    assert repr(module) == before


def test_shared_layers_are_bounded_once_and_bounds_can_be_stacked() -> None:
    linear = enlarged(nn.Linear(3, 3))
    contractive(nn.Sequential(linear, nn.Tanh(), linear), 0.9)
    assert len(linear.parametrizations.weight) == 1
    contractive(linear, 0.5, "infinity")
    assert len(linear.parametrizations.weight) == 2
    assert float(linear.weight.detach().abs().sum(1).max()) <= 0.5 * (1 + 1e-6)
