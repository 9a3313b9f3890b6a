"""Ways to make an update a contraction: bounds on its weight, and penalties on its Jacobian.

The bounds are parametrizations for ``torch.nn.utils.parametrize.register_parametrization(linear, "weight", bound)``, of
updates Z <- phi(W Z A) + U. Features are in rows and nodes in columns (a Linear layer has them the other way round,
with the same W), phi acts on each entry with slopes of at most 1, and A, if any, is constant. Two states end up at most
||W|| ||A|| times as far apart, so this is a contraction where ||W|| < 1 and ||A|| <= 1; the classes say in which norms.
Every reading of a parametrized weight computes it anew: read it once, outside the update.

The penalties are added to the loss. They make the Jacobian J = dF/dh smaller at one state, and guarantee nothing. Their
gradient reaches all that the update uses except the state; that of an operator marked ``once_differentiable`` is
silently missing.
"""

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from rbp_lightning.errors import UserError, check_count, check_number
from rbp_lightning.linalg import pull_back
from rbp_lightning.pytree import State, Vector, inner, leaves_of, widened
from rbp_lightning.solvers import Update


class _NormBound(nn.Module):
    """What the bounds share: the checks, and at least float32 to compute in."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = check_number(self, "bound", bound, 0.0, low_allowed=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Brings a matrix within the bound, up to rounding in its dtype.

        Raises:
            UserError: If ``weight`` is no matrix.
        """
        if weight.dim() != 2:
            raise UserError(f"{type(self).__name__}: weight has shape {tuple(weight.shape)}: it must be a matrix.")
        return self._bounded(*widened([weight])).to(weight.dtype)

    def _bounded(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _scaled(self, weight: Tensor, norm: Tensor) -> Tensor:
        # Within the bound this divides by exactly 1, and never by a norm, which may be 0.
        return weight / (norm / self.bound).clamp_min(1)


class SpectralNormBound(_NormBound):
    """Parametrization W min(1, bound / ||W||_2): the largest singular value is at most the bound.

    With ||A||_2 <= 1, as of the symmetric normalisation of an adjacency matrix, Z <- phi(W Z A) + U is a contraction
    in the Frobenius norm of Z if the bound is below 1. The singular value is computed and not, as by PyTorch's own
    ``spectral_norm``, estimated by power iteration, which comes from below and hence bounds nothing. The bound holds
    up to rounding.

    Args:
        bound: Largest norm, above 0. A matrix within it is not changed.

    Raises:
        UserError: If ``bound`` is not a positive number.

    Example:
        >>> SpectralNormBound(1.0)(torch.tensor([[4.0, 0.0], [0.0, 2.0]]))
        tensor([[1.0000, 0.0000],
                [0.0000, 0.5000]])
    """

    def _bounded(self, weight: Tensor) -> Tensor:
        return self._scaled(weight, torch.linalg.matrix_norm(weight, 2))


class FrobeniusNormBound(_NormBound):
    """Parametrization W min(1, bound / ||W||_F): the root of the sum of squares is at most the bound.

    As ||W||_2 <= ||W||_F, it makes the same updates contractions as ``SpectralNormBound``. It is cheaper and stricter:
    n equal singular values come out as bound / sqrt(n) each. EIGNN (Liu et al., NeurIPS 2021) bounds its weight by the
    Frobenius norm too, in another form. The bound holds up to rounding.

    Args:
        bound: Largest norm, above 0. A matrix within it is not changed.

    Raises:
        UserError: If ``bound`` is not a positive number.

    Example:
        >>> FrobeniusNormBound(1.0)(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        tensor([[0.6000, 0.0000],
                [0.0000, 0.8000]])
    """

    def _bounded(self, weight: Tensor) -> Tensor:
        return self._scaled(weight, torch.linalg.matrix_norm(weight))


class InfinityNormBound(_NormBound):
    """Parametrization by the nearest matrix whose rows have absolute sums of at most the bound: ||W||_inf <= bound.

    With absolute column sums of A of at most 1, Z <- phi(W Z A) + U is a contraction in the largest |Z_ij| if the bound
    is below 1. A nonnegative A needs only some v > 0 with v A <= v, as the symmetric normalisation of an adjacency
    matrix has: the contraction is then in the largest |Z_ij| / v_j. This is the projection of IGNN (Gu et al., NeurIPS
    2020, arXiv 2009.06211, section 4), each row onto an l1 ball by sorting (Duchi et al., ICML 2008), but gradients go
    through it: entries that it sets to 0 get none. The bound holds up to rounding.

    Args:
        bound: Largest norm, above 0. A row within it is not changed.

    Raises:
        UserError: If ``bound`` is not a positive number.

    Example:
        >>> InfinityNormBound(1.0)(torch.tensor([[2.0, -1.5, 0.1], [0.3, 0.3, 0.3]]))
        tensor([[ 0.7500, -0.2500,  0.0000],
                [ 0.3000,  0.3000,  0.3000]])
    """

    def _bounded(self, weight: Tensor) -> Tensor:
        size = weight.abs()
        # All sizes of a row are lowered by the same amount, down to 0 at most, so that their sum is the bound. Sizes
        # are measured from the largest, as rounding errors of large ones can exceed the bound: the largest is to
        # become what the k largest, lowered so that they make up the bound, leave of it, for the k with the least.
        below = size.amax(1, keepdim=True) - size
        counts = torch.arange(1, size.shape[1] + 1, dtype=size.dtype, device=size.device)
        largest = ((below.sort(dim=1).values.cumsum(1) + self.bound) / counts).amin(1, keepdim=True)
        lowered = weight.sign() * torch.relu(largest - below)
        # A choice and no clamp: an entry of 0 in a row within the bound has to pass its gradient on.
        return torch.where(size.sum(1, keepdim=True) > self.bound, lowered, weight)


def jacobian_penalty(update: Update, state: State, samples: int = 1, generator: Generator | None = None) -> Tensor:
    """Estimates ||J||_F^2 / d, where d is the number of elements of the state.

    This is the regulariser of Bai, Koltun and Kolter (Stabilizing Equilibrium Models by Jacobian Regularization, ICML
    2021, arXiv 2106.14342, section 4): Hutchinson's estimate, the mean of ||J^T v||^2 / d over standard normal v.

    Args:
        update: The map F.
        state: Where to measure J, normally at the fixed point; a constant.
        samples: Number of draws of v, at least 1, each of one vector-Jacobian product.
        generator: Source of the draws, on the state's device; ``None`` is PyTorch's own.

    Returns:
        The estimate, a scalar to be weighted and added to the loss.

    Raises:
        UserError: If ``samples`` or ``state`` is not as described.

    Example:
        >>> penalty = jacobian_penalty(lambda h: 0.5 * h, torch.zeros(1_000_000))
        >>> round(float(penalty), 2)
        0.25
    """
    check_count(jacobian_penalty, "samples", samples, 1)
    with torch.enable_grad():
        inputs, outputs = _taped_step(update, state)
        total = torch.zeros((), device=inputs[0].device)
        for _ in range(samples):
            probe = [torch.randn(o.shape, generator=generator, dtype=o.dtype, device=o.device) for o in outputs]
            product = pull_back(outputs, inputs, probe, create_graph=True)
            total = total + inner(product, product, batch_dims=0)
        return total / (samples * sum(leaf.numel() for leaf in inputs))


def column_sum_penalty(update: Update, state: State, bound: float = 0.9) -> Tensor:
    """Measures by how much the column sums of J exceed a bound: ||max(0, 1^T J - bound)||_2.

    This is the Lipschitz coefficient penalty of Linsley et al. (Stable and expressive recurrent vision models, NeurIPS
    2020, arXiv 2005.11362), at the price of one vector-Jacobian product. Where J has no negative entry, a penalty of 0
    means ||J||_1 <= bound; entries of both signs may cancel.

    Args:
        update: The map F.
        state: Where to measure J, normally at the fixed point; a constant.
        bound: Largest column sum without a penalty, 0 to 1, and below 1 for a contraction.

    Returns:
        The penalty, a scalar to be weighted and added to the loss.

    Raises:
        UserError: If ``bound`` or ``state`` is not as described.

    Example:
        >>> weight = torch.tensor([[0.5, 0.0], [-2.0, 1.4]])
        >>> column_sum_penalty(lambda h: weight @ h, torch.zeros(2))  # column sums of -1.5 and 1.4
        tensor(0.5000)
    """
    bound = check_number(column_sum_penalty, "bound", bound, 0.0, 1.0)
    with torch.enable_grad():
        inputs, outputs = _taped_step(update, state)
        sums = pull_back(outputs, inputs, [torch.ones_like(leaf) for leaf in outputs], create_graph=True)
        excess = torch.cat([torch.relu(leaf - bound).reshape(-1) for leaf in widened(sums)])
        penalty: Tensor = torch.linalg.vector_norm(excess)  # with a gradient of 0 at 0
        return penalty


def _taped_step(update: Update, state: State) -> tuple[Vector, Vector]:
    """Leaves of the state, cut off from its history, and of the step taped from there."""
    leaves_of(state, batch_dims=0)
    state = tree_map(lambda leaf: leaf.detach().requires_grad_(), state)
    return tree_leaves(state), tree_leaves(update(state))
