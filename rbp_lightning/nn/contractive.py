"""Norm bounds for all layers of a module by one call."""

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
# Some have no weights, but expand all the same.
_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def contractive(
    module: Module,
    bound: float,
    norm: Literal["spectral", "frobenius", "infinity"] = "spectral",
    token_norm: float | None = None,
) -> Module:
    """Bounds the norm of every layer in a module, so that an update of these layers can be a contraction.

    Every ``Linear``, ``Conv1d``, ``Conv2d``, ``Conv3d`` and ``MultiheadAttention`` gets parametrizations with which it
    moves two inputs apart by at most ``bound`` times their distance; ``print(module)`` shows them. Layers in sequence
    multiply, and branches that are added add up: ``h <- phi(layer(h)) + x`` is a contraction for a bound below 1 where
    phi has slopes of at most 1, as tanh and ReLU have; those of GELU reach 1.13 and those of SiLU 1.1. Dropout with
    rate p multiplies by up to 1 / (1 - p). Weights within the bound are not changed, and those beyond it are trained
    on as they are, while what is used is within.

    Args:
        module: The module: a cell, or a part of one. It is changed.
        bound: Largest norm of each layer, above 0.
        norm: The distance, and how its bound is computed: ``"spectral"`` is Euclidean distance, by singular values;
            ``"frobenius"`` is a cheaper and stricter bound of that; ``"infinity"`` is the largest difference of two
            entries.
        token_norm: With attention, the largest norm of a token that it is given, for then alone it has a bound, which
            ``attention_bounds`` derives. That the tokens are within is for the cell to see to.

    Returns:
        The module.

    Raises:
        UserError: If an argument is not as described, or a layer cannot be bounded; nothing is changed then.

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
        raise UserError(f"contractive: {type(module).__name__} has no weight to bound: pass the module that has.")
    for owner, name, one in found:
        register_parametrization(owner, name, one)
    return module


def _bounds(
    module: nn.Module, path: str, bound: float, norm: str, token_norm: float | None, seen: set[nn.Module]
) -> Iterator[Bound]:
    """What to parametrize in a module, each module once."""
    if module in seen:
        return
    seen.add(module)
    if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
        raise UserError(f"contractive: {path} has no weight yet: apply the module once, before this.")
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
            "submodules that act on the state, and see to the others yourself."
        )
    for name, child in module.named_children():
        if name != "parametrizations":
            yield from _bounds(child, f"{path}.{name}", bound, norm, token_norm, seen)


def _convolution(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, path: str, bound: float, norm: str) -> nn.Module:
    if norm == "infinity":
        return InfinityConvolutionBound(bound)
    stride = layer.stride
    if layer.padding_mode == "circular":
        # Around the edge, the phases of a stride may meet.
        stride = (1,) * len(stride)
        wide = not isinstance(layer.padding, str) and any(
            2 * padding > gap * (taps - 1)
            for padding, gap, taps in zip(layer.padding, layer.dilation, layer.kernel_size, strict=True)
        )
        if wide:
            raise UserError(
                f"contractive: {path} repeats pixels, with padding={layer.padding} around a kernel of "
                f"{layer.kernel_size}: lower its padding, or pass norm='infinity'."
            )
    elif layer.padding_mode != "zeros":
        raise UserError(
            f"contractive: {path} has padding_mode={layer.padding_mode!r}, which repeats pixels: use 'zeros' or "
            "'circular', or pass norm='infinity'."
        )
    return _CONVOLUTIONS[norm](bound, stride, layer.dilation, layer.groups)
