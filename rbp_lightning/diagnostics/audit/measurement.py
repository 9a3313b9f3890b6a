"""The accuracy and the cost of an estimator's gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from rbp_lightning.diagnostics.audit.gradient import copy_of, gradient_of
from rbp_lightning.estimators import GradientEstimator, SolveObserver
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.linear import JacobianOperator, LinearSolution


@dataclass(frozen=True)
class Measurement:
    """An estimator's gradient compared with the reference, on one batch or the worst over several.

    Attributes:
        gradient: The estimator and its number of steps.
        batch: The index of the batch; ``None`` for several.
        cosine: The cosine similarity to the reference gradient, over all parameters.
        relative_error: The norm of the difference relative to that of the reference.
        sign_agreement: The share of the reference's nonzero entries whose sign agrees.
        products: The number of products with J^T and J; a taped step counts as one.
        seconds: The time of the training step and its backward pass.
        saved_bytes: The bytes of the tensors saved for the backward pass.
    """

    gradient: str
    batch: int | None
    cosine: float
    relative_error: float
    sign_agreement: float
    products: int
    seconds: float
    saved_bytes: int


class _Cost(SolveObserver):
    """Counts the products of a solve's gradient, including the taped step."""

    def __init__(self) -> None:
        self.products = 0

    def on_solve_end(self, fixed_point: FixedPoint, operator: JacobianOperator) -> None:
        self.products = fixed_point.steps  # a tape of all steps, unless on_adjoint follows

    def on_adjoint(self, solution: LinearSolution) -> None:
        self.products = solution.products + 1


class _SavedBytes:
    """Counts the bytes of tensors saved for a backward pass, except for the module's parameters."""

    def __init__(self, module: LightningModule) -> None:
        # Kept alive so that no address is reused.
        self._kept = {_storage(parameter): parameter.detach() for parameter in module.parameters()}
        self.total = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        # Sparse tensors are not counted.
        if tensor.layout == torch.strided and (key := _storage(tensor)) not in self._kept:
            self._kept[key] = tensor.detach()
            self.total += tensor.untyped_storage().nbytes()
        return tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


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
        name: The estimator's name.
        estimator: The estimator.
        arguments: The arguments of the module's ``training_step``.
        batch: The index of the batch.
        reference_gradient: The reference gradient.
    """
    gradient, seconds = gradient_of(copy_of(module), estimator, arguments)
    # A second run, because counting takes time itself.
    counted = copy_of(module)
    costs: list[_Cost] = []

    def cost() -> _Cost:
        costs.append(_Cost())
        return costs[-1]

    saved = _SavedBytes(counted)
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        gradient_of(counted, estimator, arguments, cost)
    size, error = float(reference_gradient.norm()), float((gradient - reference_gradient).norm())
    same = (gradient.sign() == reference_gradient.sign())[reference_gradient != 0]
    return Measurement(
        gradient=name,
        batch=batch,
        cosine=float(torch.nn.functional.cosine_similarity(gradient, reference_gradient, dim=0)),
        relative_error=error / size if size > 0 else 0.0 if error == 0 else float("inf"),
        sign_agreement=float(same.double().mean()) if len(same) else 1.0,
        products=sum(one.products for one in costs),
        seconds=seconds,
        saved_bytes=saved.total,
    )
