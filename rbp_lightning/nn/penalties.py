"""Penalties on the Jacobian of an update, to be added to the loss.

They make the Jacobian J = dF/dh at one state smaller, without any guarantee. Gradients reach every tensor that the
update uses except the state; gradients of operators marked ``once_differentiable`` are silently missing. For an update
that draws random numbers, pass the update of the solve, which ``held`` returns. Attention uses PyTorch's math kernel.
"""

import torch
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rbp_lightning.errors import UserError, check_count, check_instance, check_number
from rbp_lightning.linear.jacobian import pull_back
from rbp_lightning.pytree import State, Vector, flatten_state, inner, to_float32
from rbp_lightning.state_function import StateFunction, Update


def jacobian_penalty(update: Update, state: State, samples: int = 1, generator: Generator | None = None) -> Tensor:
    """Estimates ||J||_F^2 / d, where d is the number of elements of the state.

    This is the regulariser of Bai, Koltun and Kolter (Stabilizing Equilibrium Models by Jacobian Regularization, ICML
    2021, arXiv 2106.14342, section 4): Hutchinson's estimate, the mean of ||J^T v||^2 / d over standard normal v.

    Args:
        update: The function F.
        state: The state at which J is taken, usually the fixed point; it is treated as a constant.
        samples: Number of samples of v, at least 1, each of which takes one vector-Jacobian product.
        generator: Random generator on the state's device; ``None`` is PyTorch's default.

    Returns:
        The estimate, a scalar to be weighted and added to the loss.

    Raises:
        UserError: If an argument is invalid.

    Example:
        >>> penalty = jacobian_penalty(lambda h: 0.5 * h, torch.zeros(1_000_000))
        >>> round(float(penalty), 2)
        0.25
    """
    samples = check_count(jacobian_penalty, "samples", samples, 1)
    if generator is not None:
        check_instance(jacobian_penalty, "generator", generator, Generator, "a torch.Generator, or None")
    with torch.enable_grad():
        inputs, outputs = _taped_step(update, state)
        total = torch.zeros((), device=inputs[0].device)
        for _ in range(samples):
            probe = [torch.randn(o.shape, generator=generator, dtype=o.dtype, device=o.device) for o in outputs]
            product = pull_back(outputs, inputs, probe, create_graph=True)
            total = total + inner(product, product, batch_dims=0)
        return total / (samples * sum(leaf.numel() for leaf in inputs))


def column_sum_penalty(update: Update, state: State, bound: float = 0.9) -> Tensor:
    """The excess of the column sums of J over a bound: ||max(0, 1^T J - bound)||_2.

    This is the Lipschitz coefficient penalty of Linsley et al. (Stable and expressive recurrent vision models, NeurIPS
    2020, arXiv 2005.11362), at the cost of one vector-Jacobian product. If J has no negative entries, a penalty of 0
    means ||J||_1 <= bound; entries of both signs may cancel.

    Args:
        update: The function F.
        state: The state at which J is taken, usually the fixed point; it is treated as a constant.
        bound: Largest column sum without a penalty, from 0 to 1; below 1 for a contraction.

    Returns:
        The penalty, a scalar to be weighted and added to the loss.

    Raises:
        UserError: If ``bound`` or ``state`` is invalid, or it is called within a torch.func transform.

    Example:
        >>> weight = torch.tensor([[0.5, 0.0], [-2.0, 1.4]])
        >>> column_sum_penalty(lambda h: weight @ h, torch.zeros(2))  # column sums of -1.5 and 1.4
        tensor(0.5000)
    """
    bound = check_number(column_sum_penalty, "bound", bound, 0.0, 1.0)
    with torch.enable_grad():
        inputs, outputs = _taped_step(update, state)
        sums = pull_back(outputs, inputs, [torch.ones_like(leaf) for leaf in outputs], create_graph=True)
        excess = torch.cat([torch.relu(leaf - bound).reshape(-1) for leaf in to_float32(sums)])
        penalty: Tensor = torch.linalg.vector_norm(excess)  # with a gradient of 0 at 0
        return penalty


def _taped_step(update: Update, state: State) -> tuple[Vector, Vector]:
    """Detached leaves of the state, and leaves of F there with their graph."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise UserError(
            "A penalty differentiates the update itself, which torch.func does not allow: use it outside of torch.func."
        )
    leaves, structure = flatten_state(state, batch_dims=0)
    inputs = [leaf.detach().requires_grad_() for leaf in leaves]
    with sdpa_kernel(SDPBackend.MATH):  # fused attention kernels have no second derivatives
        return inputs, StateFunction(update, structure)(inputs)
