"""The results of an audit: table, files, plot and advice."""

import csv
import json
import math
import re
from io import BytesIO
from pathlib import Path

import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rbp_lightning import CGRBP, NeumannRBP, Picard
from rbp_lightning.diagnostics.audit.advice import advise, recommend, summaries
from rbp_lightning.diagnostics.audit.measurement import Measurement
from rbp_lightning.diagnostics.audit.reference import Reference
from rbp_lightning.diagnostics.audit.report import pareto
from tests.diagnostics.audit.audited import Exact, audit


def test_an_audit_writes_files_and_tensorboard_events(tmp_path: Path, capsys) -> None:
    logger = TensorBoardLogger(tmp_path, name="audited")
    found = audit(Exact(), CGRBP(10, solver=Picard(500, 1e-7)), logger, batches=2, steps=[2, 20])
    folder = Path(logger.log_dir)
    with (folder / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.measurements) == 2 * 25
    assert float(rows[0]["relative_error"]) == found.measurements[0].relative_error
    content = json.loads((folder / "audit.json").read_text())
    assert content["advice"] == found.advice
    assert content["references"][1]["kind"] == "exact adjoint"
    assert [row["gradient"] for row in content["gradients"]] == [row.gradient for row in summaries(found.measurements)]
    with Image.open(folder / "audit.png") as picture:
        assert picture.size[0] > 500
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert len(events.Images("audit/error_against_cost")) == 1
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(found.advice)
    for row in content["gradients"]:
        assert re.search(rf"^ +{re.escape(row['gradient'])} +-?[\d.]+ +[\d.e+-]+ ", printed, re.MULTILINE)


def test_without_a_logger_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    audit(Exact(), NeumannRBP(), steps=[1])
    assert not list(tmp_path.iterdir())
    audit(Exact(), NeumannRBP(), CSVLogger(tmp_path / "logs"), steps=[1])
    assert (tmp_path / "logs/lightning_logs/version_0/audit.csv").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}


def test_the_plot_names_the_target_and_marks_the_configured_estimator() -> None:
    rows = [summary("NeumannRBP(steps=5)", 0.1, 6), summary("NeumannRBP(steps=20)", 1e-3, 21)]
    rows += [summary("CGRBP as configured", 1e-4, 30), summary("BPTT", math.nan, 40)]
    (axes,) = pareto(rows, 0.01).axes
    assert axes.get_title()
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert set(lines["asked for: 0.01"].get_ydata()) == {0.01}
    star = lines["CGRBP as configured"]
    assert [*star.get_xydata()[0]] == [30, 1e-4]
    assert star.get_marker() not in {line.get_marker() for line in lines.values() if line is not star}
    assert lines["NeumannRBP"].get_xdata().tolist() == [6, 21]


def test_errors_of_zero_are_drawn_without_a_warning() -> None:
    rows = [summary("NeumannRBP(steps=1)", 0.0, 2), summary("BPTT as configured", 0.0, 40)]
    pareto(rows, 0.01).savefig(BytesIO())


def summary(name: str, error: float, products: int, saved: int = 1) -> Measurement:
    return Measurement(name, None, 1.0, error, 1.0, products, 1.0, saved)


EXACT = Reference("exact adjoint", torch.ones(1), True, 40, 1e-13, 1e-15, 0.5, 0.6, False)


def test_the_advice_is_the_cheapest_gradient_within_the_error() -> None:
    rows = [
        summary("a", 0.5, 2),
        summary("b", 0.009, 20, saved=100),
        summary("c", 0.002, 21, saved=10),
        summary("d", 1e-9, 50),
        summary("e", math.nan, 1),
    ]
    assert "Take c:" in advise([EXACT], rows, 0.01)  # nearly as cheap as b, with less memory
    assert "Take d:" in advise([EXACT], rows, 1e-4)
    none = advise([EXACT], rows, 1e-12)
    assert none.startswith("No gradient reaches")
    assert "d with 1e-07% is best" in none
    assert "none is finite" in advise([EXACT], [summary("e", math.nan, 1)], 0.01)


def test_an_inexact_reference_gives_no_advice_below_its_residual() -> None:
    rows = [summary("a", 1e-4, 5)]
    inexact = Reference("exact adjoint", torch.ones(1), True, 40, 1e-13, 1e-3, 0.999, 0.999, False)
    assert "solved to a residual of 1.0e-03 only" in advise([EXACT, inexact], rows, 0.005)
    assert advise([inexact], rows, 0.02).startswith("Take a")
    assert recommend([EXACT, inexact], rows, 0.005) is None
    infinite = Reference("exact adjoint", torch.tensor([math.inf]), True, 40, 1e-13, math.nan, 1.0, 1.0, False)
    assert "exact gradient is not finite" in advise([infinite], rows, 0.01)


def test_shine_is_advised_with_its_forward_solver() -> None:
    assert "SHINE(steps=2) with the forward solver Broyden:" in advise(
        [EXACT], [summary("SHINE(steps=2)", 1e-4, 3)], 0.01
    )


def test_only_gradients_of_the_steps_are_recommended_where_the_solve_does_not_converge() -> None:
    rows = [summary("JFB", 1e-4, 1), summary("TBPTT(steps=5)", 0.02, 5), summary("BPTT", 0.0, 12)]
    unsettled = Reference("BPTT", torch.ones(1), False, 12, 0.3, None, 1.1, 1.2, False)
    assert recommend([EXACT], rows, 0.01) is rows[0]
    assert recommend([EXACT, unsettled], rows, 0.01) is rows[2]
    assert recommend([unsettled], rows, 0.05) is rows[1]
    assert recommend([unsettled], rows[:1], 0.05) is None


def test_a_forward_tolerance_that_is_too_loose_is_reported() -> None:
    errors = {"TBPTT(steps=20)": 1e-4, "CGRBP(steps=50)": 0.27, "NeumannRBP(steps=50)": 0.3}
    advice = advise([EXACT], [summary(name, error, 20) for name, error in errors.items()], error=0.01)
    assert "Take TBPTT(steps=20)" in advice
    assert "better than 27%" in advice
    assert "forward tolerance is too loose" in advice


def test_a_summary_takes_the_worst_of_the_batches() -> None:
    rows = [
        Measurement("a", 0, 0.9, 0.1, 0.8, 10, 1.0, 5),
        Measurement("a", 1, 0.7, 0.2, 0.9, 12, 3.0, 4),
        Measurement("b", 0, math.nan, math.nan, 0.0, 1, 1.0, 1),
        Measurement("b", 1, 1.0, 0.0, 1.0, 1, 1.0, 1),
    ]
    one, other = summaries(rows)
    assert one == Measurement("a", None, 0.7, 0.2, 0.8, 12, 2.0, 5)
    assert math.isnan(other.relative_error)
    assert math.isnan(other.cosine)
