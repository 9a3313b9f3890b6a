"""Networks for the comparison, in plain PyTorch and on its default device.

Nothing here depends on this project, so that any version of it can be measured.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import conv2d, one_hot, softmax


@dataclass
class Case:
    """A network whose fixed point is solved for and differentiated.

    Attributes:
        parameters: Leaf tensors to differentiate with respect to.
        prepare: Computes what a step uses from the parameters, once per solve.
        step: F, from a state and what was prepared to the next state.
        start: The initial state.
        batch_dims: The number of leading dimensions that index independent samples.
        constants: What else ``prepare`` and ``step`` use, by name, for implementations elsewhere.
    """

    parameters: list[Tensor]
    prepare: Callable[..., tuple[Tensor, ...]]
    step: Callable[..., Tensor]
    start: Tensor
    batch_dims: int
    constants: dict[str, Tensor] = field(default_factory=dict)

    def update(self, prepared: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
        """F as a function of the state alone."""
        return lambda state: self.step(state, *prepared)

    def loss(self, state: Tensor) -> Tensor:
        """The loss: the mean square of the state."""
        return state.square().mean()


def normal_numbers(seed: int, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Random numbers that are the same in every precision and on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        numbers = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
        return numbers.to(torch.get_default_device(), dtype)

    return randn


def tanh(scale: float) -> Callable[[torch.dtype], Case]:
    """A fully connected tanh cell with 256 units and 64 samples.

    Args:
        scale: Scale of W, whose entries have the standard deviation scale / 16.
    """

    def make(dtype: torch.dtype) -> Case:
        randn = normal_numbers(0, dtype)
        weight = (scale / 16 * randn(256, 256)).requires_grad_()
        inject = (0.1 * randn(32, 256)).requires_grad_()
        inputs = randn(64, 32)
        return Case(
            [weight, inject],
            lambda weight, inject: (weight, inputs @ inject),
            lambda state, weight, drive: torch.tanh(state @ weight + drive),
            torch.zeros(64, 256, dtype=dtype),
            batch_dims=1,
            constants={"inputs": inputs},
        )

    return make


def hopfield(dtype: torch.dtype) -> Case:
    """The Hopfield network in the paper's size: 784 + 1024 + 784 units, 10 images, gain and decay 0.5."""
    torch.manual_seed(0)
    units = 784 + 1024 + 784
    weight = (0.02 * torch.randn(units, units)).to(dtype).requires_grad_()  # only the upper triangle is learned
    images = (normal_numbers(1, dtype)(10, 784) > 1).to(dtype)

    def prepare(weight: Tensor) -> tuple[Tensor, ...]:
        upper = weight.triu(1)
        free = (upper + upper.T)[:, 784:]
        return torch.sigmoid(0.5 * (2 * images - 1)) @ free[:784], free[784:]

    def step(state: Tensor, drive: Tensor, between: Tensor) -> Tensor:
        return 0.5 * state + drive + torch.sigmoid(0.5 * state) @ between

    return Case([weight], prepare, step, torch.zeros(10, 1808, dtype=dtype), 1, {"images": images})


def convolution(dtype: torch.dtype) -> Case:
    """A convolutional cell, h <- tanh(K * h + x), with 16 channels of 16 x 16 and 16 samples."""
    randn = normal_numbers(0, dtype)
    kernel = (0.07 * randn(16, 16, 3, 3)).requires_grad_()
    inputs = randn(16, 3, 16, 16)
    inject = (0.3 * randn(16, 3, 3, 3)).requires_grad_()
    return Case(
        [kernel, inject],
        lambda kernel, inject: (kernel, conv2d(inputs, inject, padding=1)),
        lambda state, kernel, drive: torch.tanh(conv2d(state, kernel, padding=1) + drive),
        torch.zeros(16, 16, 16, 16, dtype=dtype),
        batch_dims=1,
        constants={"inputs": inputs},
    )


def training(dtype: torch.dtype) -> Case:
    """A training as a network: logistic regression by full-batch SGD with momentum, with learned L2 coefficients."""
    randn = normal_numbers(0, dtype)
    inputs = randn(500, 64)
    labels = softmax(4 * inputs @ randn(64, 10) / 8 + randn(500, 10), 1).argmax(1)
    targets = one_hot(labels, 10).to(dtype)
    log_decay = torch.full((64, 1), -2.0, dtype=dtype, requires_grad=True)

    def step(state: Tensor, decay: Tensor) -> Tensor:
        weight, velocity = state
        gradient = inputs.T @ (softmax(inputs @ weight, 1) - targets) / len(inputs) + decay * weight
        velocity = 0.5 * velocity + gradient
        return torch.stack([weight - 0.5 * velocity, velocity])

    constants = {"inputs": inputs, "targets": targets}
    start = torch.zeros(2, 64, 10, dtype=dtype)
    return Case([log_decay], lambda log_decay: (log_decay.exp(),), step, start, 0, constants)


# The scales were found by iteration on the spectral radius.
NETWORKS: dict[str, Callable[[torch.dtype], Case]] = {
    "tanh, radius 0.38": tanh(0.40696),
    "tanh, radius 0.93": tanh(1.10024),
    "tanh, radius 0.99": tanh(1.1906),
    "Hopfield network": hopfield,
    "convolution": convolution,
    "training by SGD": training,
}
