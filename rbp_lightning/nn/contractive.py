"""Adds norm bounds to all layers of a module."""

from collections.abc import Iterator
from typing import Literal, TypeVar

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import register_parametrization

from rbp_lightning.errors import UserError, check_choice, check_instance, check_number
from rbp_lightning.nn.attention_bound import Bound, attention_bounds
from rbp_lightning.nn.convolution_bounds import (
    ConvolutionBound,
    FrobeniusConvolutionBound,
    InfinityConvolutionBound,
    SpectralConvolutionBound,
)
from rbp_lightning.nn.norm_bounds import FrobeniusNormBound, InfinityNormBound, NormBound, SpectralNormBound

Module = TypeVar("Module", bound=nn.Module)

_MATRICES: dict[str, type[NormBound]] = {
    "spectral": SpectralNormBound,
    "frobenius": FrobeniusNormBound,
    "infinity": InfinityNormBound,
}
_CONVOLUTIONS: dict[str, type[ConvolutionBound]] = {
    "spectral": SpectralConvolutionBound,
    "frobenius": FrobeniusConvolutionBound,
}
# Normalisations without weights are not contractions either.
_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def contractive(
    module: Module,
    bound: float,
    norm: Literal["spectral", "frobenius", "infinity"] = "spectral",
    token_norm: float | None = None,
) -> Module:
    """Bounds the Lipschitz constant of every layer of a module, so that an update of these layers can be a contraction.

    Every ``Linear``, ``Conv1d``, ``Conv2d``, ``Conv3d`` and ``MultiheadAttention`` gets parametrizations that bound its
    Lipschitz constant by ``bound``; ``print(module)`` shows them. The constants of layers in sequence multiply, and
    those of branches that are added add up: ``h <- phi(layer(h)) + x`` is a contraction for a bound below 1 if the
    slopes of phi are at most 1, as for tanh and ReLU (those of GELU reach 1.13, those of SiLU 1.1). Dropout with rate p
    multiplies the constant by up to 1 / (1 - p). Weights within the bound are used as they are. Others are projected
    when they are used; the trained parameter itself is not changed.

    Args:
        module: The module, a cell or a part of one. It is changed in place.
        bound: Bound on the Lipschitz constant of each layer, above 0.
        norm: The norm in which distances are measured, and how its bound is computed: ``"spectral"`` is the Euclidean
            norm, by singular values; ``"frobenius"`` the same norm with a cheaper and stricter bound; ``"infinity"``
            the maximum norm.
        token_norm: For attention, the largest norm of its input tokens, which ``attention_bounds`` needs. The cell must
            keep its tokens within this norm.

    Returns:
        The module.

    Raises:
        UserError: If an argument is invalid, or a layer cannot be bounded; nothing is changed then.

    Example:
        >>> linear = contractive(torch.nn.Linear(4, 4), bound=0.9)
        >>> with torch.no_grad():
        ...     _ = linear.parametrizations.weight.original.mul_(100)
        >>> torch.linalg.matrix_norm(linear.weight.detach(), 2)
        tensor(0.9000)
    """
    check_instance(contractive, "module", module, nn.Module, "the cell, or a part of it")
    bound = check_number(contractive, "bound", bound, 0.0, low_allowed=False)
    check_choice(contractive, "norm", norm, _MATRICES)
    found = list(_bounds(module, type(module).__name__, bound, norm, token_norm, set()))
    if not found:
        raise UserError(f"contractive: {type(module).__name__} has no weight to bound: pass a module that has one.")
    for owner, name, one in found:
        register_parametrization(owner, name, one)
    return module


def _bounds(
    module: nn.Module, path: str, bound: float, norm: str, token_norm: float | None, seen: set[nn.Module]
) -> Iterator[Bound]:
    """The parametrizations to register in a module, visiting each submodule once."""
    if module in seen:
        return
    seen.add(module)
    if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
        raise UserError(f"contractive: {path} has no weight yet: apply the module once before calling contractive.")
    own = {name for name, parameter in module._parameters.items() if parameter is not None}
    if isinstance(module, nn.MultiheadAttention):
        yield from attention_bounds(module, bound, _MATRICES[norm], token_norm)
        return
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        one = _MATRICES[norm](bound) if isinstance(module, nn.Linear) else _convolution(module, path, bound, norm)
        yield module, "weight", one
        own -= {"weight", "bias"}
    if own or isinstance(module, _NORMALISATIONS):
        raise UserError(
            f"contractive: {path} ({type(module).__name__}) has no known bound: call contractive on each of the "
            "submodules that act on the state, and bound the others yourself."
        )
    for name, child in module.named_children():
        if name != "parametrizations":
            yield from _bounds(child, f"{path}.{name}", bound, norm, token_norm, seen)


def _convolution(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, path: str, bound: float, norm: str) -> nn.Module:
    if norm == "infinity":
        return InfinityConvolutionBound(bound)
    stride = layer.stride
    if layer.padding_mode == "circular":
        # With circular padding, the phases of a stride can mix at the edges.
        stride = (1,) * len(stride)
        wide = not isinstance(layer.padding, str) and any(
            2 * padding > gap * (taps - 1)
            for padding, gap, taps in zip(layer.padding, layer.dilation, layer.kernel_size, strict=True)
        )
        if wide:
            raise UserError(
                f"contractive: {path} repeats pixels, because padding={layer.padding} is too large for kernel_size="
                f"{layer.kernel_size}: lower the padding, or pass norm='infinity'."
            )
    elif layer.padding_mode != "zeros":
        raise UserError(
            f"contractive: {path} has padding_mode={layer.padding_mode!r}, which repeats pixels: use 'zeros' or "
            "'circular', or pass norm='infinity'."
        )
    return _CONVOLUTIONS[norm](bound, stride, layer.dilation, layer.groups)
