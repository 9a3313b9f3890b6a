"""The networks of the comparison with peers, in JAX; ``benchmarks/peers`` has the same in PyTorch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

Constants = Mapping[str, Array]
"""What a network uses besides its parameters, by name."""


@dataclass(frozen=True)
class Case:
    """A network whose fixed point is solved for and differentiated.

    Attributes:
        prepare: Computes what a step uses from the parameters, once per solve.
        step: F, from a state and what was prepared to the next state.
        start: The initial state.
        axes: The axes of PyTorch's state, in the order of this state's axes.
        step_by_hand: F with its derivative written by hand, where that is faster; it has no forward mode, which the
            linear solvers of jaxopt and optimistix need.
    """

    prepare: Callable[..., tuple[Array, ...]]
    step: Callable[..., Array]
    start: Array
    axes: tuple[int, ...] | None = None
    step_by_hand: Callable[..., Array] | None = None


def tanh(constants: Constants, start: Array) -> Case:
    """A fully connected tanh cell."""
    inputs = constants["inputs"]
    return Case(
        lambda weight, inject: (weight, inputs @ inject),
        lambda state, weight, drive: jnp.tanh(state @ weight + drive),
        start,
    )


def hopfield(constants: Constants, start: Array) -> Case:
    """The Hopfield network."""
    images = constants["images"]

    def prepare(weight: Array) -> tuple[Array, ...]:
        upper = jnp.triu(weight, 1)
        free = (upper + upper.T)[:, 784:]
        return jax.nn.sigmoid(0.5 * (2 * images - 1)) @ free[:784], free[784:]

    def step(state: Array, drive: Array, between: Array) -> Array:
        return 0.5 * state + drive + jax.nn.sigmoid(0.5 * state) @ between

    return Case(prepare, step, start)


def conv2d(images: Array, kernel: Array) -> Array:
    """A convolution with zero padding, channels last."""
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv2d_forward(images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    """The same, and what its derivative needs."""
    return conv2d(images, kernel), (images, kernel)


def conv2d_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """The transposed convolution as a plain one with the flipped kernel; XLA's takes 16 times as long on a CPU."""
    images, kernel = kept
    turned = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    (of_kernel,) = jax.vjp(lambda kernel: conv2d(images, kernel), kernel)[1](gradient)
    return conv2d(gradient, turned), of_kernel


def convolution(constants: Constants, start: Array) -> Case:
    """A convolutional cell, channels last, the layout in which XLA's convolution is fast."""
    axes = (0, 2, 3, 1)
    inputs = constants["inputs"].transpose(axes)
    by_hand = jax.custom_vjp(conv2d)
    by_hand.defvjp(conv2d_forward, conv2d_backward)

    def prepare(kernel: Array, inject: Array) -> tuple[Array, ...]:
        kernel, inject = (one.transpose(2, 3, 1, 0) for one in (kernel, inject))
        return kernel, conv2d(inputs, inject)

    return Case(
        prepare,
        lambda state, kernel, drive: jnp.tanh(conv2d(state, kernel) + drive),
        start.transpose(axes),
        axes,
        lambda state, kernel, drive: jnp.tanh(by_hand(state, kernel) + drive),
    )


def training(constants: Constants, start: Array) -> Case:
    """A training by SGD with momentum as a network."""
    inputs, targets = constants["inputs"], constants["targets"]

    def step(state: Array, decay: Array) -> Array:
        weight, velocity = state
        gradient = inputs.T @ (jax.nn.softmax(inputs @ weight, 1) - targets) / len(inputs) + decay * weight
        velocity = 0.5 * velocity + gradient
        return jnp.stack([weight - 0.5 * velocity, velocity])

    return Case(lambda log_decay: (jnp.exp(log_decay),), step, start)


def product(entries: tuple[Array, Array, Array], x: Array, height: int) -> Array:
    """A sparse matrix times a dense one, as a sum over each row's entries.

    Args:
        entries: Row, column and value of each entry, by ascending row.
        x: The dense matrix.
        height: Number of rows.
    """
    row, column, value = entries
    return jax.ops.segment_sum(value[:, None] * x[column], row, height, indices_are_sorted=True)


def neighbours(constants: Constants, state: Array) -> Array:
    """Sums the neighbours' states."""
    return product((constants["target"], constants["source"], constants["weight"]), state, len(state))


def contractive(constants: Constants, start: Array) -> Case:
    """A contractive graph network."""
    words = constants["row"], constants["column"], constants["value"]
    return Case(
        lambda weight, inject: (weight, product(words, inject, len(start))),
        lambda state, weight, drive: jax.nn.relu(neighbours(constants, state @ weight)) + drive,
        start,
    )


def gated(constants: Constants, start: Array) -> Case:
    """The paper's gated graph network, with the weights of PyTorch's ``GRUCell``."""

    def step(state: Array, drive: Array, *weights: Array) -> Array:
        of_input, of_state, input_bias, state_bias = weights
        read = neighbours(constants, state) + drive
        reset, update, new = jnp.split(read @ of_input.T + input_bias, 3, axis=1)
        state_reset, state_update, state_new = jnp.split(state @ of_state.T + state_bias, 3, axis=1)
        gate = jax.nn.sigmoid(update + state_update)
        proposal = jnp.tanh(new + jax.nn.sigmoid(reset + state_reset) * state_new)
        return (1 - gate) * proposal + gate * state

    return Case(lambda weight, bias, *weights: (constants["features"] @ weight.T + bias, *weights), step, start)


NETWORKS: dict[str, Callable[[Constants, Array], Case]] = {
    "tanh, radius 0.38": tanh,
    "tanh, radius 0.93": tanh,
    "tanh, radius 0.99": tanh,
    "Hopfield network": hopfield,
    "convolution": convolution,
    "training by SGD": training,
    "graph network on Cora": contractive,
    "gated network on Cora": gated,
}


def make_case(name: str, start: Array, constants: Constants) -> Case:
    """Makes a case.

    Args:
        name: Its name.
        start: The initial state.
        constants: What it uses besides its parameters.
    """
    return NETWORKS[name](constants, start)
