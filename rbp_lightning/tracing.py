"""Whether a graph is being made."""

import sys

import torch


def is_traced() -> bool:
    """Whether what runs now is put into a graph by ``torch.compile``, or as ``is_traced_for_inference`` has it.

    Example:
        >>> is_traced()
        False
    """
    return torch.compiler.is_compiling() or is_traced_for_inference()


def is_traced_for_inference() -> bool:
    """Whether that is a graph of which no part can be left out.

    ``torch.export``, ONNX and ``torch.jit.trace`` make one, and so does ``make_fx``, also within
    ``torch.func.linearize``.

    Example:
        >>> is_traced_for_inference()
        False
    """
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return True
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")  # which takes a while to import
    return tracer is not None and tracer.get_proxy_mode() is not None
