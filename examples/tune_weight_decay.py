"""Learns L2 coefficients by bilevel optimisation, in plain PyTorch: ``python examples/tune_weight_decay.py``.

The inner training of a logistic regression is a fixed point of its gradient steps. Its gradient with respect to the
coefficients, one for each pixel, is an implicit one.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import cross_entropy

from rbp_lightning import GMRES, Implicit, ReducedRankExtrapolation, WarmStart

RATE = 0.5


def main(outer_steps: int = 30) -> tuple[float, float]:
    """Trains on few digits, and returns the validation loss with the first and with the learned coefficients."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, train_size=100, random_state=0, stratify=labels)
    train_x, valid_x = (torch.tensor(part) for part in split[:2])
    train_y, valid_y = (torch.tensor(part) for part in split[2:])
    log_decay = torch.full((64, 1), -5.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([log_decay], lr=0.2)
    # The Hessian is symmetric, so ConjugateGradient() would do as well.
    estimator = Implicit(GMRES(tol=1e-3), ReducedRankExtrapolation(max_steps=5000, tol=1e-6))
    warm_start, losses = WarmStart(), []

    def training_loss(weight: torch.Tensor) -> torch.Tensor:
        return cross_entropy(train_x @ weight, train_y) + (log_decay.exp() * weight.square()).sum() / 2

    def gradient_step(weight: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            weight = weight if weight.requires_grad else weight.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(training_loss(weight), weight, create_graph=True)
        return weight - RATE * gradient

    for step in range(outer_steps + 1):
        trained = estimator(gradient_step, torch.zeros(64, 10, dtype=torch.float64), warm_start=warm_start)
        loss = cross_entropy(valid_x @ trained.state, valid_y)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: validation loss {losses[-1]:.4f}, {trained.steps} inner steps, {trained.status.value}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
