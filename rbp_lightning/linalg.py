"""Products with the Jacobian of an update at its fixed point."""

from collections.abc import Callable

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from rbp_lightning.errors import UserError
from rbp_lightning.pytree import State, Vector, in_dtypes_of, minus, norm, share
from rbp_lightning.solvers import Update


class Linearization:
    """The Jacobian J = dF/dh at one taped step of an update, as an operator.

    Args:
        update: The map F.
        state: The state h that ``outputs`` were computed from; its leaves require gradients.
        outputs: Leaves of the taped step F(h).
        batch_dims: The number of leading dimensions that index independent samples.

    Attributes:
        products: How many products have been taken, with J^T and with J.
        epsilon: Relative rounding of a product: that of the least precise dtype that the step computes in.

    Example:
        >>> state = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> square = Linearization(torch.square, state, [state.square()], batch_dims=0)
        >>> square.vjp([torch.ones(2)]), square.jvp_function()([torch.ones(2)])
        ([tensor([2., 4.])], [tensor([2., 4.])])
    """

    def __init__(self, update: Update, state: State, outputs: Vector, batch_dims: int) -> None:
        self.batch_dims = batch_dims
        self.products = 0
        self._update = update
        self._inputs, self._structure = tree_flatten(state)
        self._outputs = outputs
        device = outputs[0].device.type
        self._autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        dtypes = {leaf.dtype for leaf in (*self._inputs, *outputs)}
        if torch.is_autocast_enabled(device):
            dtypes.add(torch.get_autocast_dtype(device))
        self.epsilon = max(torch.finfo(dtype).eps for dtype in dtypes)

    @classmethod
    def at(cls, update: Update, state: State, batch_dims: int) -> "Linearization":
        """Tapes a step of an update for its Jacobian alone.

        Args:
            update: The map F.
            state: Where to linearise it.
            batch_dims: The number of leading dimensions that index independent samples.
        """
        with torch.enable_grad():
            state = tree_map(lambda leaf: leaf.detach().requires_grad_(), state)
            return cls(update, state, tree_leaves(update(state)), batch_dims)

    def vjp(self, cotangent: Vector) -> list[Tensor]:
        """Product J^T v.

        Args:
            cotangent: Leaves of v.

        Returns:
            Leaves of J^T v, in the dtypes of v.
        """
        self.products += 1
        return in_dtypes_of(cotangent, pull_back(self._outputs, self._inputs, cotangent, create_graph=False))

    def adjoint_residual(self, gradient: Vector, adjoint: Vector) -> Tensor:
        """How far an adjoint is from solving its equation: ||g - (I - J^T) z|| / ||g|| for each sample.

        Args:
            gradient: Leaves of g.
            adjoint: Leaves of z.
        """
        left = norm(minus(gradient, minus(adjoint, self.vjp(adjoint))), self.batch_dims)
        return share(left, norm(gradient, self.batch_dims))

    def jvp_function(self) -> Callable[[Vector], list[Tensor]]:
        """Product J v as a function of v.

        J v is the derivative with respect to u of (J^T u) . v, so it is had from the tape, with no second evaluation
        of the update. Where an operator cannot be differentiated twice, the update is evaluated in forward mode.

        Returns:
            A function from the leaves of v to the leaves of J v, in the dtypes of v. It raises ``UserError`` where the
            update can be differentiated in neither way.
        """
        duals = [torch.zeros_like(output, requires_grad=True) for output in self._outputs]
        try:
            with torch.enable_grad():
                transposed = pull_back(self._outputs, self._inputs, duals, create_graph=True)
            pull_back(transposed, duals, self._inputs, create_graph=False)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return self._jvp_forward_mode
        if _drops_a_derivative(transposed):
            return self._jvp_forward_mode

        def jvp(tangent: Vector) -> list[Tensor]:
            self.products += 1
            return in_dtypes_of(tangent, pull_back(transposed, duals, tangent, create_graph=False))

        return jvp

    def _jvp_forward_mode(self, tangent: Vector) -> list[Tensor]:
        self.products += 1
        try:
            with torch.no_grad(), torch.autocast(*self._autocast), forward_ad.dual_level():
                duals = [
                    forward_ad.make_dual(leaf.detach(), direction.to(leaf.dtype))  # type: ignore[no-untyped-call]
                    for leaf, direction in zip(self._inputs, tangent, strict=True)
                ]
                outputs = tree_leaves(self._update(tree_unflatten(duals, self._structure)))
                products = [forward_ad.unpack_dual(output).tangent for output in outputs]  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise UserError(
                "The update can be differentiated neither twice nor in forward mode, so there is no product with its "
                "Jacobian: take an estimator that needs none (NeumannRBP, RBP), or do not compile the update. "
                f"({str(error).splitlines()[0]})"
            ) from error
        return [
            torch.zeros_like(leaf) if product is None else product.to(leaf.dtype)
            for product, leaf in zip(products, tangent, strict=True)
        ]


def pull_back(outputs: Vector, inputs: Vector, cotangent: Vector, create_graph: bool) -> list[Tensor]:
    """Vector-Jacobian product through the tape, which is kept.

    Args:
        outputs: Taped tensors.
        inputs: The tensors to differentiate with respect to.
        cotangent: One tensor for each output.
        create_graph: Whether the product can be differentiated in turn.

    Returns:
        One tensor for each input; zero where it is not used.

    Example:
        >>> state = torch.ones(2, requires_grad=True)
        >>> pull_back([3 * state], [state], [torch.ones(2)], create_graph=False)
        [tensor([3., 3.])]
    """
    pairs = zip(outputs, in_dtypes_of(outputs, cotangent), strict=True)
    taped = [(output, leaf) for output, leaf in pairs if output.requires_grad]
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


def _drops_a_derivative(tensors: Vector) -> bool:
    """Whether an operator behind the tensors was marked ``once_differentiable``.

    Its backward returns tensors that are cut off from their inputs, behind a node that raises only if it is reached
    from the other side: a second derivative through them is silently zero.
    """
    nodes = [tensor.grad_fn for tensor in tensors]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
    return any(node.name() == "torch::autograd::Error" for node in seen)
