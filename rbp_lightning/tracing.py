"""Whether a graph is being made."""

import torch


def is_traced() -> bool:
    """Whether what runs now is put into a graph by ``torch.compile``, ``torch.export`` or ``torch.jit.trace``.

    Example:
        >>> is_traced()
        False
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]


def is_traced_for_inference() -> bool:
    """Whether that is a program for inference, of which no part can be left out: of all but ``torch.compile``.

    Example:
        >>> is_traced_for_inference()
        False
    """
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
