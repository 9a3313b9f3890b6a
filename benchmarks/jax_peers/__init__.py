"""The same in JAX, which runs in an environment of its own.

``networks``, ``methods`` and ``worker`` import no PyTorch, the other files no JAX.
"""
