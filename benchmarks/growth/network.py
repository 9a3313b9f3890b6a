"""A network of any size, number of samples and spectral radius."""

import torch

from benchmarks.peers.networks import Case, normal_numbers

UNITS = 50


def network(size: int, batch: int, radius: float, dtype: torch.dtype = torch.float32) -> Case:
    """Makes the network: h <- tanh(h W + x), where a sample's state is a matrix with 50 columns.

    W is symmetric, with eigenvalues from minus the radius to the radius. Those of the derivative at the fixed point are
    a little smaller, since x is small.

    Args:
        size: Elements of a sample's state, a multiple of 50.
        batch: Number of samples.
        radius: Spectral radius of W, below 1.
        dtype: Type of its numbers.
    """
    randn = normal_numbers(0, dtype)
    basis = torch.linalg.qr(randn(UNITS, UNITS).double())[0]
    eigenvalues = torch.linspace(-radius, radius, UNITS, dtype=torch.float64, device=basis.device)
    weight = ((basis * eigenvalues) @ basis.T).to(dtype).requires_grad_()
    drive = 0.01 * randn(batch, size // UNITS, UNITS)
    return Case(
        [weight],
        lambda weight: (weight, drive),
        lambda state, weight, drive: torch.tanh(state @ weight + drive),
        torch.zeros_like(drive),
        batch_dims=1,
    )
