"""Trains a deep equilibrium layer on scikit-learn's digits, in plain PyTorch: ``python examples/deq_digits.py``."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrize import register_parametrization

from rbp_lightning import FixedPointLayer, Implicit, SpectralNormBound


class Cell(torch.nn.Module):
    """h <- tanh(W h + x), with the norm of W at most 0.9, so that it has one fixed point and comes to it."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(units, units, bias=False)
        register_parametrization(self.hidden, "weight", SpectralNormBound(0.9))

    def forward(self, h: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The next state."""
        return torch.tanh(h @ weight.T + x)


class Network(torch.nn.Module):
    """Pixels, a fixed point, scores of the ten digits."""

    def __init__(self, units: int = 64) -> None:
        super().__init__()
        self.inject, self.readout = torch.nn.Linear(64, units), torch.nn.Linear(units, 10)
        self.equilibrium = FixedPointLayer(Cell(units), Implicit())  # or NeumannRBP(steps=5), BPTT(), ...

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scores of shape [batch, 10]."""
        weight = self.equilibrium.cell.hidden.weight  # bounded once, not in each step
        return self.readout(self.equilibrium(self.inject(pixels), weight))


def main(epochs: int = 20) -> float:
    """Trains, and returns the share of test digits that are told right."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, test_size=0.25, random_state=0, stratify=labels)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in split[:2])
    train_y, test_y = (torch.tensor(part) for part in split[2:])
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for epoch in range(epochs):
        for batch in torch.randperm(len(train_x)).split(64):
            loss = cross_entropy(network(train_x[batch]), train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = float((network(test_x).argmax(1) == test_y).float().mean())
        print(f"epoch {epoch + 1}: training loss {loss:.3f}, test accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
