"""The benchmark of cost."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import cost
from benchmarks.host_syncs import CountSyncs, syncs_of_rbp
from benchmarks.peers.networks import Case, tanh
from benchmarks.step_parts import Parts, timed_parts, timed_whole
from rbp_lightning import RBP, NeumannRBP, Picard, UserError
from tests.markdown import rows_of

pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")


class CountedUpdate(torch.autograd.Function):
    """h <- h / 2 + x, which counts its applications and VJPs."""

    applied = pulled_back = 0

    @staticmethod
    def forward(ctx, state, drive):
        CountedUpdate.applied += 1
        return state / 2 + drive

    @staticmethod
    def backward(ctx, cotangent):
        CountedUpdate.pulled_back += 1
        return cotangent / 2, cotangent


@pytest.mark.parametrize("steps", [2, 7])
@pytest.mark.parametrize("products", [1, 4])
def test_parts_and_whole_are_timed_with_the_same_steps_and_products(steps: int, products: int) -> None:
    drive = torch.ones(3, requires_grad=True)
    case = Case([drive], lambda drive: (2 * drive,), CountedUpdate.apply, torch.zeros(3), batch_dims=0)
    solver = Picard(steps, 0.0)
    for run in (
        lambda: timed_parts(case, steps, products),
        lambda: timed_whole(case, NeumannRBP(products, solver)),
        lambda: timed_whole(case, RBP(products, 0.0, "gradient", solver=solver)),
    ):
        CountedUpdate.applied = CountedUpdate.pulled_back = 0
        run()
        assert (CountedUpdate.applied, CountedUpdate.pulled_back) == (
            steps,
            products + 1,
        )  # one more VJP, into the parameters


def test_the_total_is_the_sum_of_the_parts() -> None:
    parts = Parts(prepare=1.0, step=2.0, taped=3.0, loss=5.0, product=7.0, sum=13.0, parameters=11.0)
    assert parts.total(steps=4, products=2) == 1 + 3 * 2 + 3 + 5 + 2 * (7 + 13) + 11


def test_a_fit_recovers_the_costs_of_steps_products_and_the_rest() -> None:
    timings = []
    for repeat, speed in enumerate((1.0, 2.0)):  # the second time the machine is half as fast
        parts = Parts(*(speed * seconds for seconds in (1.0, 2.0, 3.0, 5.0, 7.0, 13.0, 11.0)))
        for steps in (10, 20, 50):
            for products in (5, 20):
                seconds = 1.1 * steps * parts.step + 1.2 * products * (parts.product + parts.sum) + 1.5 * parts.once
                timings.append(cost.Timing("", "NeumannRBP", steps, products, repeat, seconds, parts))
    for found in cost.fits(timings):
        assert found == pytest.approx([1.1, 1.2, 1.5])


def test_syncs_are_reads_of_a_value() -> None:
    values = torch.ones(3)
    with CountSyncs() as syncs:
        assert bool((values.sum() < 4) & (values.max() > 0))
        float(values[0])
    assert syncs.count == 2


def test_a_solve_and_its_gradient_synchronise_once_in_ten_steps_and_at_the_end() -> None:
    steps, reads, adjoint_steps, adjoint_reads = syncs_of_rbp(tanh(0.8)(torch.float32))
    assert 20 < steps < 1000
    assert 20 < adjoint_steps < 1000
    # The schedule checks the first steps more often, and there is one check at the end.
    assert 1 <= reads <= steps // 10 + 4
    assert 1 <= adjoint_reads <= adjoint_steps // 10 + 4


def test_the_tables_of_cost_are_written(tmp_path: Path, capsys) -> None:
    cost.cost(["tanh, radius 0.38"], steps=[3, 6], products=[2, 4], repeats=2, out=tmp_path)
    printed = capsys.readouterr().out
    for row in (["tanh, radius 0.38"], ["tanh, radius 0.38, NeumannRBP(4)"], [cost.SLOW]):
        assert row in [cells[:1] for cells in rows_of(printed)]
    with (tmp_path / "cost.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 2  # steps, NeumannRBP(2) and (4) and RBP, repeats
    for row in rows:
        assert all(float(row[part]) > 0 for part in ("seconds", "prepare", "step", "taped", "loss", "product"))
    Image.open(tmp_path / "cost.png").verify()


@pytest.mark.usefixtures("no_data")
def test_a_case_without_its_data_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="No case could be timed"):
        cost.cost(["graph network on Cora"], out=tmp_path / "out")
    assert "graph network on Cora: left out." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repeats": 1}, "--repeats=1"),
        ({"steps": [1, 5]}, r"--steps=\[1, 5\]"),
        ({"products": [5, 5]}, "--products=.*two different numbers"),
    ],
)
def test_arguments_that_give_no_spread_or_no_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cost.cost(**arguments)
