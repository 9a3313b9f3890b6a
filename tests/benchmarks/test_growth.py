"""The benchmark of growth with size, batch, radius and window."""

import csv
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.growth import grow, pairs
from benchmarks.growth.measure import costs
from benchmarks.growth.network import network
from benchmarks.peers.measure import radius_of
from rbp_lightning import UserError
from tests.markdown import rows_of

pytestmark = pytest.mark.usefixtures("fewer_objects")


@pytest.mark.parametrize("radius", [0.5, 0.9, 0.99])
def test_the_network_has_the_given_spectral_radius(radius: float) -> None:
    assert radius_of(network(500, 2, radius, torch.float64)) == pytest.approx(radius, rel=0.005)


def test_costs_are_measured_in_applications_of_the_update_and_in_states() -> None:
    case = network(50_000, 1, 0.5)
    rbp = pairs.PAIRS["Picard, RBP"]
    (few,), (many,) = (list(costs("", 0, case, {"": lambda tol=tol: rbp(tol)}, 1)) for tol in (1e-1, 1e-6))
    assert few.state_bytes == 200_000
    assert few.states == pytest.approx(many.states, rel=1e-3)
    assert few.states >= 3
    assert few.applications == few.seconds / few.step_seconds > 0
    assert few.steps < many.steps
    assert few.products < many.products
    assert many.status == "converged"


def test_the_tables_of_growth_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grow, "SIZE", 100)
    grow.growth([50, 100], [2], [0.5], [4], tol=1e-2, repeats=2, out=tmp_path)
    printed = rows_of(capsys.readouterr().out)
    for header in (["size", "50", "100"], ["batch", "2"], ["radius", "0.5"], ["window", "4"]):
        assert header in printed
    with (tmp_path / "growth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    each, windowed = 2 * len(pairs.PAIRS), 2 * len(pairs.WINDOWED)  # repeats
    assert Counter(row["axis"] for row in rows) == {"size": 2 * each, "batch": each, "radius": each, "window": windowed}
    assert all(float(row["seconds"]) > 0 and float(row["bytes"]) > 0 for row in rows)
    Image.open(tmp_path / "growth.png").verify()


@pytest.mark.parametrize(
    ("arguments", "message"), [({"repeats": 1}, "--repeats=1"), ({"sizes": [70]}, "multiple of 50")]
)
def test_invalid_arguments_are_refused(arguments: dict[str, int | list[int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        grow.growth(**arguments)
