"""The benchmark of growing graphs."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.graph_scale import grow
from benchmarks.graph_scale.worker import measured
from rbp_lightning import UserError
from tests.markdown import rows_of

pytestmark = pytest.mark.usefixtures("fewer_objects")


def test_the_table_of_graphs_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process: imports in a new one would take seconds.
    monkeypatch.setattr(grow, "in_a_process", lambda asked: measured(**asked))
    grow.graphs([300, 3000], 8.0, [1, 3], epochs=2, width=4, out=tmp_path)
    _, *printed = rows_of(capsys.readouterr().out)
    assert len(printed) == 4
    with (tmp_path / "graphs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["nodes"]), int(row["parts"])) for row in rows] == [(300, 1), (300, 3), (3000, 1), (3000, 3)]
    assert [len(row["step_seconds"].split()) for row in rows] == [2, 6, 2, 6]
    assert int(rows[3]["step"]) < int(rows[2]["step"])
    assert all(int(row["evaluated"]) >= int(row["imported"]) > 0 for row in rows)
    Image.open(tmp_path / "graphs.png").verify()


def test_a_single_epoch_is_refused() -> None:
    with pytest.raises(UserError, match="--epochs=1"):
        grow.graphs(epochs=1)
