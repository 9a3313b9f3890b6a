"""The networks that methods are compared on, made on PyTorch's default device."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import conv2d, softmax

from datamodules import CitationGraph
from models.hopfield_cell import HopfieldCell
from models.propagation.gru import GRUPropagation
from models.propagation.prepared_graph import Aggregation, PreparedGraph
from rbp_lightning.flat_jacobian import FlatJacobian
from rbp_lightning.linalg import Linearization
from rbp_lightning.solvers import Update
from rbp_lightning.spectrum import spectral_radius


@dataclass
class Case:
    """A network to find the fixed point of, and to differentiate.

    Attributes:
        parameters: Leaves that a gradient is wanted for.
        prepare: Makes what a step uses from the parameters, once for each solve.
        step: F, from a state and what was prepared to the next state.
        start: The initial state.
        batch_dims: The number of leading dimensions that index independent samples.
    """

    parameters: list[Tensor]
    prepare: Callable[..., tuple[Tensor, ...]]
    step: Callable[..., Tensor]
    start: Tensor
    batch_dims: int

    def update(self, prepared: tuple[Tensor, ...]) -> Update:
        """F as a map of states alone."""
        return lambda state: self.step(state, *prepared)

    def loss(self, state: Tensor) -> Tensor:
        """Mean square of the state: that of a method is right if its gradient is."""
        return state.square().mean()

    def radius(self) -> float:
        """Spectral radius of dF/dh at the state after 3,000 steps."""
        with torch.no_grad():
            prepared = self.prepare(*self.parameters)
            state = self.start
            for _ in range(3000):
                state = self.step(state, *prepared)
        jacobian = FlatJacobian(Linearization.at(self.update(prepared), state, self.batch_dims), state)
        return float(spectral_radius(jacobian).value.max())


def _drawn(seed: int, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Random numbers that are the same in every precision and on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        numbers = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
        return numbers.to(torch.get_default_device(), dtype)

    return randn


def tanh(scale: float) -> Callable[[torch.dtype], Case]:
    """A fully connected cell of 256 units on 64 samples, its activity the hyperbolic tangent.

    Args:
        scale: Of W, whose entries have the standard deviation scale / 16.
    """

    def make(dtype: torch.dtype) -> Case:
        randn = _drawn(0, dtype)
        weight = (scale / 16 * randn(256, 256)).requires_grad_()
        inject = (0.1 * randn(32, 256)).requires_grad_()
        inputs = randn(64, 32)
        return Case(
            [weight, inject],
            lambda weight, inject: (weight, inputs @ inject),
            lambda state, weight, drive: torch.tanh(state @ weight + drive),
            torch.zeros(64, 256, dtype=dtype),
            batch_dims=1,
        )

    return make


def hopfield(dtype: torch.dtype) -> Case:
    """The Hopfield network of the paper's size: 784 + 1024 + 784 units, 10 images."""
    torch.manual_seed(0)
    cell = HopfieldCell(784, 1024, gain=0.5).to(dtype)
    images = (_drawn(1, dtype)(10, 784) > 1).to(dtype)
    weight = cell.parametrizations.weight.original

    def prepare(weight: Tensor) -> tuple[Tensor, ...]:
        free = cell.parametrizations.weight[0](weight)[:, 784:]
        return torch.sigmoid(0.5 * (2 * images - 1)) @ free[:784], free[784:]

    def step(state: Tensor, drive: Tensor, between: Tensor) -> Tensor:
        return 0.5 * state + drive + torch.sigmoid(0.5 * state) @ between

    return Case([weight], prepare, step, torch.zeros(10, 1808, dtype=dtype), batch_dims=1)


def cora(aggregation: Aggregation, dtype: torch.dtype, pca: int | None = None) -> PreparedGraph:
    """Cora's features, or some principal components of them, and the matrix that sums up the neighbours' states."""
    data = CitationGraph(name="Cora", normalize_features=pca is None, pca=pca)
    with torch.device("cpu"):
        data.prepare_data()
        data.setup("fit")
    return PreparedGraph(data.graph.to(torch.get_default_device()), aggregation, dtype)


def graph_network(dtype: torch.dtype) -> Case:
    """A contractive graph network with 64 units on Cora: Z <- relu(A Z W) + X U, where W has norm 0.9."""
    graph = cora("symmetric", dtype)
    randn = _drawn(0, dtype)
    weight = 0.9 * torch.linalg.qr(randn(64, 64).double())[0].to(dtype)
    inject = 0.3 * randn(graph.features.shape[1], 64)
    return Case(
        [weight.requires_grad_(), inject.requires_grad_()],
        lambda weight, inject: (weight, graph.features @ inject),
        lambda state, weight, drive: torch.relu(graph.adjacency @ (state @ weight)) + drive,
        torch.zeros(graph.features.shape[0], 64, dtype=dtype),
        batch_dims=0,
    )


def gated_graph_network(dtype: torch.dtype) -> Case:
    """The paper's network on Cora before any training, as in ``configs/paper/cora.yaml``: Z <- GRU(A Z + U(X), Z)."""
    graph = cora("mean", dtype, pca=64)
    torch.manual_seed(0)
    with torch.device("cpu"):
        cell = GRUPropagation(num_features=64, num_classes=7, num_hidden=64)
    cell.to(torch.get_default_device(), dtype)
    names = [name for name, _ in cell.gru.named_parameters()]

    def step(state: Tensor, drive: Tensor, *weights: Tensor) -> Tensor:
        read = graph.adjacency @ state + drive
        found: Tensor = functional_call(cell.gru, dict(zip(names, weights, strict=True)), (read, state))
        return found

    return Case(
        [*cell.inject.parameters(), *cell.gru.parameters()],
        lambda weight, bias, *weights: (graph.features @ weight.T + bias, *weights),
        step,
        torch.zeros(graph.features.shape[0], 64, dtype=dtype),
        batch_dims=0,
    )


def convolution(dtype: torch.dtype) -> Case:
    """A convolutional cell: 16 channels of 16 x 16, 16 samples, h <- tanh(K * h + x)."""
    randn = _drawn(0, dtype)
    kernel = (0.07 * randn(16, 16, 3, 3)).requires_grad_()
    inputs = randn(16, 3, 16, 16)
    inject = (0.3 * randn(16, 3, 3, 3)).requires_grad_()
    return Case(
        [kernel, inject],
        lambda kernel, inject: (kernel, conv2d(inputs, inject, padding=1)),
        lambda state, kernel, drive: torch.tanh(conv2d(state, kernel, padding=1) + drive),
        torch.zeros(16, 16, 16, 16, dtype=dtype),
        batch_dims=1,
    )


def training(dtype: torch.dtype) -> Case:
    """A training as a network: full-batch SGD with momentum of a logistic regression, its L2 coefficients learned."""
    randn = _drawn(0, dtype)
    inputs = randn(500, 64)
    labels = softmax(4 * inputs @ randn(64, 10) / 8 + randn(500, 10), 1).argmax(1)
    targets = torch.nn.functional.one_hot(labels, 10).to(dtype)
    log_decay = torch.full((64, 1), -2.0, dtype=dtype, requires_grad=True)

    def step(state: Tensor, decay: Tensor) -> Tensor:
        weight, velocity = state
        gradient = inputs.T @ (softmax(inputs @ weight, 1) - targets) / len(inputs) + decay * weight
        velocity = 0.5 * velocity + gradient
        return torch.stack([weight - 0.5 * velocity, velocity])

    return Case([log_decay], lambda log_decay: (log_decay.exp(),), step, torch.zeros(2, 64, 10, dtype=dtype), 0)


# The scales were found by iteration on the spectral radius.
CASES: dict[str, Callable[[torch.dtype], Case]] = {
    "tanh, radius 0.38": tanh(0.40696),
    "tanh, radius 0.93": tanh(1.10024),
    "tanh, radius 0.99": tanh(1.1906),
    "Hopfield network": hopfield,
    "graph network on Cora": graph_network,
    "gated network on Cora": gated_graph_network,
    "convolution": convolution,
    "training by SGD": training,
}
