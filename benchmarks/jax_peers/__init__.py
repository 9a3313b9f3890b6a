"""The comparison with JAX, which runs in an environment of its own.

``networks``, ``methods`` and ``worker`` import no PyTorch, and the other files no JAX.
"""
