"""What an estimator's gradient is worth, and what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from rbp_lightning.audit.gradient import gradient_of
from rbp_lightning.estimators import GradientEstimator, SolveObserver
from rbp_lightning.linalg import Linearization
from rbp_lightning.pytree import State, Vector
from rbp_lightning.solvers import Update


@dataclass(frozen=True)
class Measurement:
    """A gradient on one batch, beside the reference.

    Attributes:
        gradient: The estimator and its number of steps.
        batch: Number of the batch.
        cosine: Cosine of the angle to the reference gradient, all parameters together.
        relative_error: Norm of the difference over the norm of the reference.
        sign_agreement: Share of the entries, of those that are not 0 in the reference, that have its sign.
        products: Products with J^T and J; a taped step counts as one.
        seconds: Time of the training step and its backward pass.
        saved_bytes: Bytes of the tensors saved for the backward pass.
    """

    gradient: str
    batch: int
    cosine: float
    relative_error: float
    sign_agreement: float
    products: int
    seconds: float
    saved_bytes: int


class _Watch(SolveObserver):
    """Counts the products of the solves of a training step."""

    def __init__(self) -> None:
        self.taped_steps = self.adjoint_products = 0

    @property
    def products(self) -> int:
        return self.taped_steps + self.adjoint_products

    def on_solve_start(self, update: Update) -> Update:
        def counted(state: State) -> State:
            self.taped_steps += torch.is_grad_enabled()
            return update(state)

        return counted

    def on_adjoint(self, linearization: Linearization, gradient: Vector, adjoint: Vector) -> None:
        self.adjoint_products += linearization.products


def measure(
    module: LightningModule,
    name: str,
    estimator: GradientEstimator,
    arguments: Sequence[Any],
    batch: int,
    reference_gradient: Tensor,
) -> Measurement:
    """Compares the gradient of an estimator with the reference.

    Args:
        module: The module.
        name: What to call the estimator.
        estimator: The estimator.
        arguments: Those of the module's ``training_step``.
        batch: Number of the batch.
        reference_gradient: What it is compared with.
    """
    gradient, seconds = gradient_of(module, estimator, arguments, [])
    watch, kept = _Watch(), dict[int, Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    # A second time: what is counted takes time itself.
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        gradient_of(module, estimator, arguments, [watch])
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    saved = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in parameters)
    size, wrong = float(reference_gradient.norm()), float((gradient - reference_gradient).norm())
    same = (gradient.sign() == reference_gradient.sign())[reference_gradient != 0]
    return Measurement(
        gradient=name,
        batch=batch,
        cosine=float(torch.nn.functional.cosine_similarity(gradient, reference_gradient, dim=0)),
        relative_error=wrong / size if size > 0 else 0.0 if wrong == 0 else float("inf"),
        sign_agreement=float(same.double().mean()) if len(same) else 1.0,
        products=watch.products,
        seconds=seconds,
        saved_bytes=saved,
    )
