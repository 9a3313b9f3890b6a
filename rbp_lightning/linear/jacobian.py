"""The Jacobian of an update as a linear operator, and vector-Jacobian products."""

import copy
from collections.abc import Callable
from contextlib import suppress

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rbp_lightning.errors import UserError, check_count
from rbp_lightning.linear.adjoint_map import AdjointMap
from rbp_lightning.linear.graph import graph_nodes
from rbp_lightning.pytree import State, Vector, flatten_state, ravel, subtract
from rbp_lightning.state_function import StateFunction, Update, precision

_REENTRANT_CHECKPOINT = ("Checkpointing is not compatible with", "torch.utils.checkpoint is incompatible with")
_NO_SECOND_DERIVATIVE = (
    "once_differentiable",
    "is not implemented",
    "does not currently support double backward",
    "The gradient of a fixed point has no derivative",  # from a solve within the update
)
_FUSED_ATTENTION = "_scaled_dot_product_"
# Nodes of FSDP, which frees the parameters, and of DTensor, which communicates outside the graph (PyTorch 2.13): second
# derivatives through them raise an error or are wrong.
_SHARDED = ("RegisterPostBackwardFunction", "_FromTorchTensor")


class JacobianOperator(AdjointMap):
    """J = dF/dh at one recorded application of the update: products with J and J^T, per sample.

    Vectors are lists of leaves; ``ravel`` joins them into one vector per sample for dense and Krylov methods.

    Args:
        function: F on leaves.
        inputs: Leaves of the state h; they require gradients.
        outputs: Leaves of F(h), with their graph from ``inputs``.
        batch_dims: The number of leading dimensions that index independent samples.
        per_leaf: Whether a residual is the largest of the leaves' relative residuals, or one over all leaves.

    Attributes:
        products: Number of products taken, with J and J^T together.
        epsilon: Relative precision of a product.
        batch_shape: Shape of the batch dimensions.
        size: Number of elements of a sample.
        is_transposed: Whether this is the operator of J^T instead of J.

    Example:
        >>> operator = JacobianOperator.at(torch.square, torch.tensor([1.0, 2.0]), batch_dims=0)
        >>> operator.vjp([torch.ones(2)]), operator.jvp([torch.ones(2)])
        ([tensor([2., 4.])], [tensor([2., 4.])])
    """

    def __init__(
        self,
        function: Callable[[Vector], Vector],
        inputs: Vector,
        outputs: Vector,
        batch_dims: int,
        per_leaf: bool = True,
    ) -> None:
        self.per_leaf = per_leaf
        self.products = 0
        self.is_transposed = False
        self.epsilon = precision([*inputs, *outputs])
        self._function, self._inputs, self._outputs = function, list(inputs), list(outputs)
        device = outputs[0].device.type
        self._autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        self._jvp: Callable[[Vector], list[Tensor]] | None = None
        self._set_batch_dims(batch_dims)

    def _set_batch_dims(self, batch_dims: int) -> None:
        self.batch_dims = batch_dims
        self.batch_shape = self._inputs[0].shape[:batch_dims]
        self._shapes = [leaf.shape[batch_dims:] for leaf in self._inputs]
        self.size = sum(shape.numel() for shape in self._shapes)

    @classmethod
    def at(cls, update: Update, state: State, batch_dims: int) -> "JacobianOperator":
        """The Jacobian of an update at a state.

        Args:
            update: The function F.
            state: The state h at which F is linearised.
            batch_dims: The number of leading dimensions that index independent samples.

        Raises:
            UserError: If an argument or the update is invalid.
        """
        leaves, structure = flatten_state(state, check_count(JacobianOperator.at, "batch_dims", batch_dims, 0))
        function = StateFunction(update, structure)
        with torch.enable_grad():
            inputs = [leaf.detach().requires_grad_() for leaf in leaves]
            return cls(function, inputs, function(inputs), batch_dims)

    def fresh(self) -> "JacobianOperator":
        """The same operator with its own count of products, for one backward pass."""
        operator = copy.copy(self)
        operator.products = 0
        return operator

    def as_one_sample(self) -> "JacobianOperator":
        """The same operator with the whole batch as one sample, for samples that act on each other."""
        operator = self.fresh()
        operator._set_batch_dims(0)
        return operator

    def transposed(self) -> "JacobianOperator":
        """The operator of J^T: products with J and J^T are exchanged."""
        operator = self.fresh()
        operator.is_transposed = not self.is_transposed
        return operator

    def reevaluated(self) -> "JacobianOperator":
        """The operator at the same state with F evaluated again, such as on another minibatch; the count continues."""
        operator = copy.copy(self)
        operator._inputs, operator._outputs = self._evaluate_again()
        operator._jvp = None
        return operator

    def _evaluate_again(self) -> tuple[list[Tensor], list[Tensor]]:
        with torch.enable_grad(), torch.autocast(*self._autocast):
            inputs = [leaf.detach().requires_grad_() for leaf in self._inputs]
            return inputs, list(self._function(inputs))

    def difference(self, step: Vector) -> list[Tensor]:
        """The difference F(h + d) - F(h), by one evaluation of F without gradients.

        Args:
            step: Leaves of d.

        Returns:
            Leaves of the difference, in the dtypes of d.
        """
        with torch.no_grad(), torch.autocast(*self._autocast):
            image = self._function([leaf + move.to(leaf.dtype) for leaf, move in zip(self._inputs, step, strict=True)])
        return _cast(subtract(image, [leaf.detach() for leaf in self._outputs]), step)

    def vjp(self, cotangent: Vector) -> list[Tensor]:
        """The vector-Jacobian product J^T v.

        Args:
            cotangent: Leaves of v.

        Returns:
            Leaves of J^T v, in the dtypes of v.

        Raises:
            UserError: If the update uses reentrant activation checkpointing.
        """
        self.products += 1
        return self._push_forward(cotangent) if self.is_transposed else self._pull_back(cotangent)

    def _pull_back(self, cotangent: Vector) -> list[Tensor]:
        try:
            product = pull_back(self._outputs, self._inputs, cotangent)
        except RuntimeError as error:
            _refuse_reentrant_checkpoint(error)
            raise
        return _cast(product, cotangent)

    def jvp(self, tangent: Vector) -> list[Tensor]:
        """The Jacobian-vector product J v.

        J v is the derivative of (J^T u) . v with respect to u, so it comes from the recorded graph without evaluating
        the update again. If fused attention kernels, which cannot be differentiated twice, prevent that, the update is
        evaluated once more with PyTorch's math kernel. If another operation cannot be differentiated twice, and for
        sharded modules, the update is evaluated in forward mode.

        Args:
            tangent: Leaves of v.

        Returns:
            Leaves of J v, in the dtypes of v.

        Raises:
            UserError: If the update can be differentiated in neither way.
        """
        self.products += 1
        return self._pull_back(tangent) if self.is_transposed else self._push_forward(tangent)

    def _push_forward(self, tangent: Vector) -> list[Tensor]:
        if self._jvp is None:
            self._jvp = self._jvp_from_graph() or self._jvp_forward_mode
        return _cast(self._jvp(tangent), tangent)

    def _jvp_from_graph(self, again: tuple[Vector, Vector] | None = None) -> Callable[[Vector], list[Tensor]] | None:
        inputs, outputs = again or (self._inputs, self._outputs)
        if any(node.name().startswith(_SHARDED) for node in graph_nodes(outputs)):
            return None
        duals = [torch.zeros_like(output, requires_grad=True) for output in outputs]
        try:
            with torch.enable_grad():
                transposed = pull_back(outputs, inputs, duals, create_graph=True)
            pull_back(transposed, duals, inputs)
        except RuntimeError as error:
            _refuse_reentrant_checkpoint(error)
            if again is None and _FUSED_ATTENTION in str(error):
                # NotImplementedError comes from an update that must not be evaluated again.
                with suppress(NotImplementedError), sdpa_kernel(SDPBackend.MATH):
                    return self._jvp_from_graph(self._evaluate_again())
            if not any(reason in str(error) for reason in _NO_SECOND_DERIVATIVE):
                raise
            return None
        if _drops_a_derivative(transposed):
            return None
        return lambda tangent: pull_back(transposed, duals, tangent)

    def _jvp_forward_mode(self, tangent: Vector) -> list[Tensor]:
        try:
            with torch.no_grad(), torch.autocast(*self._autocast), forward_ad.dual_level():
                pairs = zip(self._inputs, tangent, strict=True)
                duals = [forward_ad.make_dual(leaf.detach(), other.to(leaf.dtype)) for leaf, other in pairs]  # type: ignore[no-untyped-call]
                products = [forward_ad.unpack_dual(image).tangent for image in self._function(duals)]  # type: ignore[no-untyped-call]
        except NotImplementedError as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                "The update can be differentiated neither twice nor in forward mode, so there are no products J v: use "
                "an estimator that needs none (NeumannRBP, RBP), or do not compile the update. "
                f"({reason})"
            ) from error
        pairs = zip(products, tangent, strict=True)
        return [torch.zeros_like(other) if product is None else product for product, other in pairs]

    def ravel(self, vector: Vector) -> Tensor:
        """Leaves as one vector per sample, ``[*batch, size]``, in float32 at least."""
        return ravel(vector, self.batch_dims)

    def unravel(self, flat: Tensor) -> list[Tensor]:
        """One vector per sample, ``[*batch, size]``, as leaves."""
        pieces = torch.split(flat, [shape.numel() for shape in self._shapes], dim=-1)
        return [piece.reshape(self.batch_shape + shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def flat_vjp(self, flat: Tensor) -> Tensor:
        """J^T v for one vector per sample, ``[*batch, size]``."""
        return self.ravel(self.vjp(self.unravel(flat)))

    def flat_jvp(self, flat: Tensor) -> Tensor:
        """J v for one vector per sample, ``[*batch, size]``."""
        return self.ravel(self.jvp(self.unravel(flat)))

    def random_unit_vector(self, seed: int) -> Tensor:
        """One random vector per sample, uniform on the unit sphere, the same on every device.

        Args:
            seed: Random seed.

        Returns:
            Vectors, float32 or wider, of shape ``[*batch, size]``.
        """
        generator = torch.Generator().manual_seed(seed % 2**63)
        like = self.ravel([leaf.detach() for leaf in self._inputs])
        drawn = torch.randn(like.shape, generator=generator, dtype=like.dtype)
        return torch.nn.functional.normalize(drawn.to(like.device), dim=-1)

    def dense(self) -> Tensor:
        """J as a matrix per sample, ``[*batch, size, size]``, by ``size`` products with J^T."""
        unit = torch.zeros_like(self.random_unit_vector(0))
        rows = []
        for index in range(self.size):
            unit[..., index] = 1
            rows.append(self.flat_vjp(unit))
            unit[..., index] = 0
        return torch.stack(rows, dim=-2)


def pull_back(outputs: Vector, inputs: Vector, cotangent: Vector, create_graph: bool = False) -> list[Tensor]:
    """Vector-Jacobian product through a recorded graph, which is retained.

    Args:
        outputs: Tensors that may have a graph.
        inputs: The tensors to differentiate with respect to.
        cotangent: One tensor for each output, which is cast to its dtype.
        create_graph: Whether the product can be differentiated.

    Returns:
        One tensor for each input, zero if the outputs do not depend on it.

    Example:
        >>> state = torch.ones(2, requires_grad=True)
        >>> pull_back([3 * state], [state], [torch.ones(2)])
        [tensor([3., 3.])]
    """
    pairs = zip(outputs, cotangent, strict=True)
    taped = [(output, leaf if leaf.dtype == output.dtype else leaf.to(output.dtype)) for output, leaf in pairs]
    taped = [pair for pair in taped if pair[0].requires_grad]
    if not taped:
        return [torch.zeros_like(leaf) for leaf in inputs]
    return list(
        torch.autograd.grad(
            [output for output, _ in taped],
            inputs,
            [leaf for _, leaf in taped],
            retain_graph=True,
            create_graph=create_graph,
            materialize_grads=True,
        )
    )


def _cast(vector: Vector, like: Vector) -> list[Tensor]:
    pairs = zip(vector, like, strict=True)
    return [leaf if leaf.dtype == other.dtype else leaf.to(other.dtype) for leaf, other in pairs]


def _refuse_reentrant_checkpoint(error: RuntimeError) -> None:
    """Raises an error with the remedy if a reentrant checkpoint caused the given one."""
    if any(reason in str(error) for reason in _REENTRANT_CHECKPOINT):
        raise UserError(
            "The update uses torch.utils.checkpoint with use_reentrant=True, through which no vector-Jacobian product "
            "can be taken: pass use_reentrant=False."
        ) from error


def _drops_a_derivative(tensors: Vector) -> bool:
    """Whether the graph of the tensors contains an operation marked ``once_differentiable``.

    The backward of such an operation returns tensors that are detached from its inputs, and whose node raises only when
    it is differentiated itself: a second derivative through them is silently zero.
    """
    return any(node.name() == "torch::autograd::Error" for node in graph_nodes(tensors))
