"""Finding and reading the files of the Planetoid citation graphs."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.data import Data
from torch_geometric.utils import coalesce, index_to_mask, remove_self_loops

from datamodules.files import data_directory, obtain
from datamodules.graph_checks import MASKS, checked_edges
from datamodules.planetoid_pickles import MAX_VALUES, Matrix, read_indices, read_matrix, read_neighbours
from rbp_lightning.errors import UserError

NAMES = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}

SHA256 = {
    "ind.citeseer.allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
    "ind.citeseer.ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
    "ind.citeseer.graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
    "ind.citeseer.test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    "ind.citeseer.tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
    "ind.citeseer.ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
    "ind.citeseer.x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
    "ind.citeseer.y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
    "ind.cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "ind.cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "ind.cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "ind.cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    "ind.cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "ind.cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "ind.cora.x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
    "ind.cora.y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
    "ind.pubmed.allx": "508e538e2abdccdd54c4d3e9f49d638b4af7107d85845f66ddea5a5152658b7e",
    "ind.pubmed.ally": "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e",
    "ind.pubmed.graph": "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9",
    "ind.pubmed.test.index": "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5",
    "ind.pubmed.tx": "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d",
    "ind.pubmed.ty": "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd",
    "ind.pubmed.x": "fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33",
    "ind.pubmed.y": "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3",
}

URLS = ("https://github.com/kimiyoung/planetoid/raw/master/data",)

NUM_VAL = 500
"""Validation nodes of the public splits; they follow the training nodes."""


def load_planetoid(name: str, data_dir: str | None) -> Data:
    """Loads a citation graph with its public split.

    The files are those of kimiyoung/planetoid (Yang, Cohen, Salakhutdinov, ICML 2016), verified by their SHA-256
    checksums.

    Args:
        name: A value of ``NAMES``.
        data_dir: A folder that holds the eight files, or holds them in ``planetoid/raw`` or ``<name>/raw``; ``None``
            for the environment variable ``RBP_DATA_DIR`` or else ``data``.

    Returns:
        The graph of ``torch_geometric.datasets.Planetoid``, except that the 15 nodes of CiteSeer without features and
        label have the label -1 instead of 0.

    Raises:
        UserError: If a file is missing and cannot be downloaded, or is corrupt.
    """
    files = {file: sha256 for file, sha256 in SHA256.items() if file.startswith(f"ind.{name.lower()}.")}
    folder = data_directory(data_dir)
    paths = obtain(files, [folder / "planetoid" / "raw", folder / name / "raw", folder], URLS)
    return read_planetoid({path.name.split(".", 2)[2]: path for path in paths})


def read_planetoid(paths: Mapping[str, Path]) -> Data:
    """Reads the files of a citation graph.

    Args:
        paths: The files by the ends of their names: ``allx`` and ``ally``, features and labels of the first nodes, of
            which the first ``len(y)`` are the training nodes; ``tx`` and ``ty``, those of the test nodes, whose numbers
            are in ``test.index``; and ``graph``, the neighbours of each node. ``x`` repeats rows of ``allx`` and is not
            read.

    Raises:
        UserError: If a file is malformed, or they do not belong together.
    """
    allx, ally, tx, ty, y = (read_matrix(paths[end]) for end in ("allx", "ally", "tx", "ty", "y"))
    test = read_indices(paths["test.index"])
    _check_together(paths, allx, ally, tx, ty, y, test)
    num_train, num_first, num_nodes = len(y), len(allx), int(test.max()) + 1
    edges = checked_edges(str(paths["graph"]), torch.from_numpy(read_neighbours(paths["graph"])), num_nodes)
    graph = Data(
        x=torch.zeros(num_nodes, allx.shape[1]),
        edge_index=coalesce(remove_self_loops(edges)[0], num_nodes=num_nodes, sort_by_row=False),
        y=torch.full((num_nodes,), -1),
    )
    for nodes, features, labels in ((np.arange(num_first), allx, ally), (test, tx, ty)):
        graph.x[nodes] = torch.from_numpy(features.astype(np.float32))
        graph.y[nodes] = torch.from_numpy(labels.argmax(1))
    for name, nodes in zip(MASKS, (np.arange(num_train), num_train + np.arange(NUM_VAL), test), strict=True):
        graph[name] = index_to_mask(torch.from_numpy(nodes), num_nodes)
    return graph


def _check_together(
    paths: Mapping[str, Path], allx: Matrix, ally: Matrix, tx: Matrix, ty: Matrix, y: Matrix, test: NDArray[np.int64]
) -> None:
    for end, matrix, wanted in (
        ("ally", ally, (len(allx), y.shape[1])),
        ("tx", tx, (len(test), allx.shape[1])),
        ("ty", ty, (len(test), y.shape[1])),
    ):
        if matrix.shape != wanted:
            raise UserError(
                f"{paths[end]} has a matrix of {matrix.shape}, but the other files need {wanted}: replace them all."
            )
    num_train, num_first, num_nodes = len(y), len(allx), int(test.max()) + 1
    if num_train + NUM_VAL > num_first:
        raise UserError(
            f"{paths['y']} has {num_train} training nodes, which leave no {NUM_VAL} validation nodes among the "
            f"{num_first} of {paths['allx']}: replace them all."
        )
    if test.min() < num_first or len(np.unique(test)) < len(test) or num_nodes * allx.shape[1] > MAX_VALUES:
        raise UserError(
            f"{paths['test.index']} must hold different numbers from {num_first} on, for at most {MAX_VALUES} "
            "features in all: replace it."
        )
