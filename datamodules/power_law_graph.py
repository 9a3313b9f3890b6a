"""A large random graph with hubs, for node classification."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset

from rbp_lightning.errors import UserError, check_count, check_number, check_seed

Numbers = NDArray[np.float64]
Nodes = NDArray[np.int64]


class PowerLawGraph(InMemoryDataset):  # type: ignore[misc]
    """A PyG dataset of one random graph whose degrees follow a power law.

    It is a degree-corrected block model (Karrer and Newman, Phys. Rev. E 83, 2011): both ends of an edge are drawn by
    weights with a power-law tail (Chung and Lu, PNAS 99, 2002), and an edge stays within a class with probability
    ``homophily``. A node's features are the mean of its class plus noise. The graph is drawn on access, in a few passes
    over arrays; time and memory are linear in nodes and edges.

    Args:
        num_nodes: Number of nodes, at least 2.
        average_degree: Average number of neighbours of a node. Each edge is stored in both directions.
        exponent: The exponent gamma, above 2: the number of nodes of degree k is proportional to k**-gamma, up to the
            square root of the sum of all degrees, from which on edges would repeat.
        homophily: Probability, in [0, 1], that an edge is drawn within a class; otherwise its ends may be of any class.
        num_classes: Number of classes, equally likely.
        num_features: Number of features.
        signal: Norm of each class mean, in standard deviations of the noise.
        seed: Seed of the graph.

    Raises:
        UserError: If an argument is out of its range, or there would be too many edges to be distinct.

    Example:
        >>> graph = PowerLawGraph(num_nodes=1000, average_degree=10)[0]
        >>> graph.x.shape, graph.edge_index.shape, graph.is_undirected()
        (torch.Size([1000, 32]), torch.Size([2, 10000]), True)
    """

    def __init__(
        self,
        num_nodes: int = 10_000,
        average_degree: float = 10.0,
        exponent: float = 2.5,
        homophily: float = 0.6,
        num_classes: int = 8,
        num_features: int = 32,
        signal: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.nodes = check_count(PowerLawGraph, "num_nodes", num_nodes, 2)
        degree = check_number(PowerLawGraph, "average_degree", average_degree, 0.0, low_allowed=False)
        self.pairs = round(num_nodes * degree / 2)
        if not 0 < self.pairs <= num_nodes * (num_nodes - 1) // 8:
            raise UserError(
                f"PowerLawGraph: average_degree={average_degree} makes {self.pairs} edges of {num_nodes} nodes, but "
                "there must be at least one, and at most a quarter of all pairs: change average_degree or num_nodes."
            )
        self.exponent = check_number(PowerLawGraph, "exponent", exponent, 2.0, low_allowed=False)
        self.homophily = check_number(PowerLawGraph, "homophily", homophily, 0.0, 1.0)
        self.classes = check_count(PowerLawGraph, "num_classes", num_classes, 1, num_nodes)
        self.features = check_count(PowerLawGraph, "num_features", num_features, 1)
        self.signal = check_number(PowerLawGraph, "signal", signal, 0.0)
        self.seed = check_seed(PowerLawGraph, "seed", seed)

    def len(self) -> int:
        """Returns 1, the number of graphs."""
        return 1

    def get(self, idx: int) -> Data:
        """Draws the graph."""
        generator = np.random.default_rng(self.seed)
        labels = generator.integers(self.classes, size=self.nodes)
        edges = self._edges(labels, generator)
        means = generator.standard_normal((self.classes, self.features), dtype=np.float32)
        means *= self.signal / np.linalg.norm(means, axis=1, keepdims=True)
        x = generator.standard_normal((self.nodes, self.features), dtype=np.float32)
        x += means[labels]
        return Data(x=torch.from_numpy(x), edge_index=edges, y=torch.from_numpy(labels))

    def _edges(self, labels: Nodes, generator: np.random.Generator) -> Tensor:
        weights = (1 - generator.random(self.nodes)) ** (-1 / (self.exponent - 1))
        largest = np.sqrt(2 * self.pairs) * weights.mean() / (2 * self.pairs / self.nodes)
        np.minimum(weights, largest, out=weights)
        by_class = np.argsort(labels, kind="stable")  # so that each class is an interval of the cumulative weights
        total = np.concatenate([[0.0], np.cumsum(weights[by_class])])
        ends = total[np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=self.classes))])]
        found = np.empty(0, np.int64)
        while (missing := self.pairs - len(found)) > 0:
            found = np.union1d(found, self._draw(missing + missing // 8 + 8, total, ends, labels, by_class, generator))
        if len(found) > self.pairs:
            found = np.delete(found, generator.choice(len(found), len(found) - self.pairs, replace=False))
        low, high = torch.from_numpy(found // self.nodes), torch.from_numpy(found % self.nodes)
        return torch.stack([torch.cat([low, high]), torch.cat([high, low])])

    def _draw(
        self, count: int, total: Numbers, ends: Numbers, labels: Nodes, by_class: Nodes, generator: np.random.Generator
    ) -> Nodes:
        """Draws edges without self-loops; encodes each as one number, the lower node first."""
        source = _places(generator.random(count) * total[-1], total, by_class)
        within = generator.random(count) < self.homophily
        first = np.where(within, ends[labels[source]], 0.0)
        last = np.where(within, ends[labels[source] + 1], total[-1])
        target = _places(first + generator.random(count) * (last - first), total, by_class)
        keep = source != target
        source, target = source[keep], target[keep]
        numbers: Nodes = np.minimum(source, target) * self.nodes + np.maximum(source, target)
        return numbers


def _places(points: Numbers, total: Numbers, nodes: Nodes) -> Nodes:
    """The nodes whose intervals of the cumulative weights contain the points."""
    found: Nodes = nodes[np.minimum(np.searchsorted(total, points, side="right") - 1, len(nodes) - 1)]
    return found
