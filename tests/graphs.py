"""Small graphs for tests."""

import torch
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.utils import erdos_renyi_graph


def random_graph(
    seed: int = 0, num_nodes: int = 8, num_features: int = 5, num_classes: int = 3, edges: float = 0.4
) -> Data:
    """A random graph in float32 with training, validation and test masks."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        edge_index = erdos_renyi_graph(num_nodes, edges)
    masks = torch.arange(num_nodes) % 3
    return Data(
        x=torch.rand(num_nodes, num_features, generator=generator),
        edge_index=edge_index,
        y=torch.arange(num_nodes) % num_classes,
        train_mask=masks == 0,
        val_mask=masks == 1,
        test_mask=masks == 2,
    )


class RandomGraph(InMemoryDataset):
    """Random graphs as a PyG dataset, as a user would write one."""

    def __init__(self, num_graphs: int = 1, num_nodes: int = 30, num_features: int = 5) -> None:
        super().__init__()
        graphs = [random_graph(seed, num_nodes, num_features, edges=0.2) for seed in range(num_graphs)]
        self.data, self.slices = self.collate(graphs)


class WithoutLabels(InMemoryDataset):
    """An invalid dataset: its graph has no labels."""

    def __init__(self) -> None:
        super().__init__()
        graph = random_graph()
        del graph["y"]
        self.data, self.slices = self.collate([graph])
