"""A Lipschitz constant of dot-product attention, on tokens that are bounded."""

import math

import torch
from torch import Tensor, nn

from rbp_lightning.errors import UserError, check_number
from rbp_lightning.nn.norm_bounds import InfinityNormBound, NormBound

Bound = tuple[nn.Module, str, nn.Module]
"""A module, the name of one of its tensors, and the parametrization that bounds this one."""


def attention_bounds(
    attention: nn.MultiheadAttention, bound: float, kind: type[NormBound], token_norm: float | None
) -> list[Bound]:
    """Bounds on the projections of an attention, with which it has a Lipschitz constant where its tokens are bounded.

    Dot-product attention has no Lipschitz constant on all of space (Kim, Papamakarios and Mnih, ICML 2021, arXiv
    2006.04710). On tokens of norm R at most, with projections of norm b to queries and keys, and biases of
    queries of norm b R, a move of all tokens by at most 1 moves a score by at most 3 b^2 R / sqrt(d) in a head of d
    dimensions. An output of a head is an average of values; as weights change it moves by the covariance of values and
    scores, hence altogether by at most ||V|| (1 + 3 b^2 R^2 / sqrt(d)). Here b makes that 2 ||V||, and the projections
    of values and outputs share what is left of the bound, for H heads whose sizes add up to sqrt(H) times a head's. In
    the norm of largest entries d takes the place of 1 / d, and heads do not add up.

    The distance of two states is that of their tokens that are furthest apart. Masks may be anything that is constant.

    Args:
        attention: The attention.
        bound: Its largest Lipschitz constant.
        kind: Bounds the matrices, and says in which norm tokens are measured: the Euclidean one or, with
            ``InfinityNormBound``, that of largest entries.
        token_norm: Largest norm of a token, of queries, keys and values alike.

    Returns:
        What to parametrize.

    Raises:
        UserError: If the attention has no such constant.
    """
    if token_norm is None:
        raise UserError(
            "contractive: dot-product attention is a contraction only where its tokens are bounded: pass token_norm, "
            "the largest norm of a token, such as the root of their size after a normalisation, and keep them within."
        )
    radius = check_number(attention_bounds, "token_norm", token_norm, 0.0, low_allowed=False)
    if attention.bias_k is not None or attention.add_zero_attn or attention.dropout > 0:
        raise UserError(
            "contractive: MultiheadAttention with add_bias_kv, add_zero_attn or dropout is not bounded: make it "
            "without them; a Dropout may follow it."
        )
    in_entries = kind is InfinityNormBound
    root = math.sqrt(attention.head_dim)
    score = math.sqrt((1 / root if in_entries else root) / 3) / radius
    value = math.sqrt(bound / 2 / (1.0 if in_entries else math.sqrt(attention.num_heads)))
    named: list[Bound] = [(attention.out_proj, "weight", kind(value))]
    if attention.in_proj_weight is None:
        each = {"q_proj_weight": score, "k_proj_weight": score, "v_proj_weight": value}
        named += [(attention, name, kind(limit)) for name, limit in each.items()]
    else:
        named.append((attention, "in_proj_weight", _ThreeParts(kind(score), kind(score), kind(value))))
    if attention.in_proj_bias is not None:
        # Those of keys and values cancel: they add the same to all scores, and to all values.
        query = _ThreeParts(kind(score * radius), nn.Identity(), nn.Identity())
        named.append((attention, "in_proj_bias", query))
    return named


class _ThreeParts(nn.Module):
    """A parametrization of joint projections: of queries, keys and values, one below the other."""

    def __init__(self, *bounds: nn.Module) -> None:
        super().__init__()
        self.bounds = nn.ModuleList(bounds)

    def forward(self, weight: Tensor) -> Tensor:
        """Bounds each part; a vector's are columns."""
        parts = weight.reshape(len(weight), -1).chunk(3)
        return torch.cat([bound(part) for bound, part in zip(self.bounds, parts, strict=True)]).reshape(weight.shape)
