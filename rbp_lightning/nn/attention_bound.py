"""A bound on the Lipschitz constant of dot-product attention on bounded tokens."""

import math

import torch
from torch import Tensor, nn

from rbp_lightning.errors import UserError, check_number
from rbp_lightning.nn.norm_bounds import InfinityNormBound, NormBound

Bound = tuple[nn.Module, str, nn.Module]
"""A module, the name of one of its tensors, and the parametrization that bounds this tensor."""


def attention_bounds(
    attention: nn.MultiheadAttention, bound: float, kind: type[NormBound], token_norm: float | None
) -> list[Bound]:
    """Bounds on the projections of an attention module that bound its Lipschitz constant on bounded tokens.

    Without a bound on the tokens, dot-product attention is not Lipschitz continuous (Kim, Papamakarios and Mnih, ICML
    2021, arXiv 2006.04710). For tokens of norm at most R, query and key projections of norm b, and query biases of norm
    b R, a change of all tokens by at most 1 changes a score by at most 3 b^2 R / sqrt(d) in a head of dimension d. The
    output of a head is an average of values. A change of the weights changes it by the covariance of values and scores,
    so that the total change is at most ||V|| (1 + 3 b^2 R^2 / sqrt(d)). Here b is chosen to make this 2 ||V||, and the
    value and output projections share the rest of the bound, for H heads whose norms add up to sqrt(H) times that of
    one head. In the maximum norm, d replaces 1 / d, and the norms of heads do not add up.

    The distance of two states is the largest distance between corresponding tokens. Masks must be constant.

    Args:
        attention: The attention module.
        bound: The bound on its Lipschitz constant.
        kind: Bounds the matrices. It also decides the norm of a token: Euclidean, or the maximum norm for
            ``InfinityNormBound``.
        token_norm: Largest norm of a token, for queries, keys and values.

    Returns:
        The parametrizations to register.

    Raises:
        UserError: If there is no such bound.
    """
    if token_norm is None:
        raise UserError(
            "contractive: dot-product attention is a contraction only for bounded tokens: pass token_norm, the largest "
            "norm of a token (after a normalisation, the square root of its size), and keep all tokens within it."
        )
    radius = check_number(attention_bounds, "token_norm", token_norm, 0.0, low_allowed=False)
    if attention.bias_k is not None or attention.add_zero_attn or attention.dropout > 0:
        raise UserError(
            "contractive: MultiheadAttention with add_bias_kv, add_zero_attn or dropout has no known bound: create it "
            "without them; a Dropout module may follow it."
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
        # Key and value biases need no bound: they add the same to all scores of a query, and to all values.
        query = _ThreeParts(kind(score * radius), nn.Identity(), nn.Identity())
        named.append((attention, "in_proj_bias", query))
    return named


class _ThreeParts(nn.Module):
    """A parametrization of the joint projection of queries, keys and values, which are stacked in rows."""

    def __init__(self, *bounds: nn.Module) -> None:
        super().__init__()
        self.bounds = nn.ModuleList(bounds)

    def forward(self, weight: Tensor) -> Tensor:
        """Bounds each part; parts of a vector are treated as columns."""
        parts = weight.reshape(len(weight), -1).chunk(3)
        return torch.cat([bound(part) for bound, part in zip(self.bounds, parts, strict=True)]).reshape(weight.shape)
