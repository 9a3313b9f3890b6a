"""Tells whether the running code is being compiled, exported or traced."""

import sys

import torch


def is_traced() -> bool:
    """Whether the running code is being compiled by ``torch.compile``, exported or traced.

    Example:
        >>> is_traced()
        False
    """
    return torch.compiler.is_compiling() or is_traced_for_inference()


def is_traced_for_inference() -> bool:
    """Whether the running code is being traced into a graph that cannot have graph breaks.

    This holds for ``torch.export``, ONNX, ``torch.jit.trace`` and ``make_fx``, and hence ``torch.func.linearize``.

    Example:
        >>> is_traced_for_inference()
        False
    """
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return True
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")  # slow to import, and only in use once imported
    return tracer is not None and tracer.get_proxy_mode() is not None
