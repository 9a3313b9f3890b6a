"""OGB's graphs, in the files that its package reads, and the error without the package."""

import gzip
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from datamodules import CitationGraph
from datamodules.ogb_graph import OGBGraph
from rbp_lightning import UserError

FILES = {
    "raw/edge": "0,1\n1,2\n3,2\n",
    "raw/node-feat": "0.5,1\n1,1\n2,0\n3,4\n",
    "raw/node-label": "0\n1\n1\n0\n",
    "raw/node_year": "2010\n" * 4,
    "raw/num-node-list": "4\n",
    "raw/num-edge-list": "3\n",
    "split/time/train": "3\n0\n",
    "split/time/valid": "1\n",
    "split/time/test": "2\n",
}
"""The files of ogbn-arxiv, reduced to four papers."""


@pytest.mark.filterwarnings("ignore")  # warnings of the ogb package
def test_a_graph_of_ogb_is_read_with_its_split(tmp_path: Path) -> None:
    pytest.importorskip("ogb.nodeproppred")
    for name, text in FILES.items():
        file = tmp_path / "ogbn_arxiv" / f"{name}.csv.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(text.encode()))
    (tmp_path / "ogbn_arxiv/RELEASE_v1.txt").touch()
    data = CitationGraph(dataset=partial(OGBGraph, "ogbn-arxiv", str(tmp_path)), normalize_features=False)
    data.setup("fit")
    graph = data.graph
    assert graph.edge_index.tolist() == [[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]
    assert graph.y.tolist() == [0, 1, 1, 0]
    assert torch.equal(graph.x, torch.tensor([[0.5, 1], [1, 1], [2, 0], [3, 4]]))
    masks = (graph.train_mask, graph.val_mask, graph.test_mask)
    assert [mask.nonzero()[:, 0].tolist() for mask in masks] == [[0, 3], [1], [2]]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ogb.nodeproppred", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"^OGBGraph: name='ogbn-arxiv'.*pip install ogb"):
        OGBGraph()
