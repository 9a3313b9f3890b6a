"""Products with the Jacobian of an update at its fixed point, and Krylov solvers on them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from rbp_lightning.errors import UserError
from rbp_lightning.pytree import State, Vector, in_dtypes_of, inner, minus, norm, plus, scaled
from rbp_lightning.solvers import Update


class Linearization:
    """The Jacobian J = dF/dh at one taped step of an update, as an operator.

    Args:
        update: The map F.
        state: The state h that ``outputs`` were computed from; its leaves require gradients.
        outputs: Leaves of the taped step F(h).
        batch_dims: The number of leading dimensions that index independent samples.

    Example:
        >>> state = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> square = Linearization(torch.square, state, [state.square()], batch_dims=0)
        >>> square.vjp([torch.ones(2)]), square.jvp_function()([torch.ones(2)])
        ([tensor([2., 4.])], [tensor([2., 4.])])
    """

    def __init__(self, update: Update, state: State, outputs: Vector, batch_dims: int) -> None:
        self.batch_dims = batch_dims
        self._update = update
        self._inputs, self._structure = tree_flatten(state)
        self._outputs = outputs
        device = outputs[0].device.type
        self._autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))

    def vjp(self, cotangent: Vector) -> list[Tensor]:
        """Product J^T v.

        Args:
            cotangent: Leaves of v.

        Returns:
            Leaves of J^T v, in the dtypes of v.
        """
        return in_dtypes_of(cotangent, pull_back(self._outputs, self._inputs, cotangent, create_graph=False))

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
            return in_dtypes_of(tangent, pull_back(transposed, duals, tangent, create_graph=False))

        return jvp

    def _jvp_forward_mode(self, tangent: Vector) -> list[Tensor]:
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


@dataclass(frozen=True)
class LinearSolution:
    """Result of solving (I - J^T) z = g.

    Attributes:
        vector: Leaves of the newest z.
        steps: Steps taken.
        residual: ||g - (I - J^T) z|| / ||g||, one value for each sample.
    """

    vector: Vector
    steps: int
    residual: Tensor


def conjugate_gradient(
    linearization: Linearization,
    gradient: Vector,
    steps: int,
    tol: float,
    check_every: int,
    start: Vector | None = None,
) -> LinearSolution:
    """Solves (I - J^T) z = g by conjugate gradients on its normal equations.

    This is the CGLS form (Bjorck, Numerical Methods for Least Squares Problems, 1996, algorithm 7.4.1), which
    recurs the residual of the equation itself instead of the normal equations' one: it loses fewer digits, and the
    residual falls with every step. Samples advance side by side, each with its own step lengths, and rest once they
    have converged.

    Args:
        linearization: Products with J and J^T.
        gradient: Leaves of g.
        steps: Most steps, each of one product with J and one with J^T.
        tol: Residual over the norm of g at which a sample has converged; 0 runs exactly ``steps``.
        check_every: Steps between two looks at the residual, each of which waits for the device.
        start: Leaves of the first z; ``None`` is zero.

    Returns:
        The newest iterate, with its residual.

    Example:
        >>> state = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> halves = Linearization(lambda h: 0.5 * h, state, [0.5 * state], batch_dims=0)
        >>> conjugate_gradient(halves, [torch.ones(2)], steps=5, tol=1e-6, check_every=1)
        LinearSolution(vector=[tensor([2., 2.])], steps=1, residual=tensor(0.))
    """
    batch_dims = linearization.batch_dims
    jvp = linearization.jvp_function()
    solution: Vector = [torch.zeros_like(leaf) for leaf in gradient] if start is None else start
    residual = gradient if start is None else minus(gradient, minus(start, linearization.vjp(start)))
    direction = normal = minus(residual, jvp(residual))
    normal_square = inner(normal, normal, batch_dims)
    size = norm(gradient, batch_dims)
    left = norm(residual, batch_dims)
    limit = tol * size
    for step in range(1, steps + 1):
        image = minus(direction, linearization.vjp(direction))
        image_square = inner(image, image, batch_dims)
        # Not ``>``: a sample with NaN has to keep it.
        active = ~(left <= limit) & (image_square != 0)
        length = torch.where(active, normal_square / image_square, 0)
        solution = plus(solution, scaled(length, direction))
        residual = minus(residual, scaled(length, image))
        left = norm(residual, batch_dims)
        if step == steps or (tol > 0 and step % check_every == 0 and bool((left <= limit).all())):
            break
        normal = minus(residual, jvp(residual))
        previous_square, normal_square = normal_square, inner(normal, normal, batch_dims)
        ratio = torch.where(previous_square != 0, normal_square / previous_square, 0)
        direction = plus(normal, scaled(ratio, direction))
    return LinearSolution(solution, step, torch.where(size == 0, 0, left / size))
