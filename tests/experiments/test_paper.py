"""The paper's experiments are run, stored and reported."""

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments import tables
from experiments.paper import associative_memory, documents, first_state, hyperparameters, instability, truncation_cost
from experiments.paper.findings import MEMORY, TAPE, Errors, Finding, best_of_all, claims, less, table
from experiments.paper.report import DOMAINS, Domain, findings_of, paper
from experiments.paper.report import rows_of as rows_of_domain
from experiments.paper.runs import truncated
from rbp_lightning import NeumannRBP, Picard, UserError
from rbp_lightning.version import __version__
from tests.cells import tanh_cell
from tests.markdown import numbers, row_of, rows_of

pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")  # solves are cut short

SHORT = {
    associative_memory: "--trainer.max_epochs=2 --data.eval_draws=1 --model.num_hidden=16 "
    "--estimator.solver.max_steps=21",
    documents: "--trainer.max_epochs=2 --trainer.check_val_every_n_epoch=2 --estimator.solver.max_steps=21 "
    "--model.cell.num_hidden=16 --trainer.callbacks=null",  # the monitor has its own tests
    hyperparameters: "--trainer.max_epochs=3 --estimator.solver.max_steps=40",
    truncation_cost: "--trainer.max_epochs=3 --estimator.solver.max_steps=40",
}
STEPS = {associative_memory: [20], hyperparameters: [20], truncation_cost: [4, 20, 40]}
"""Truncation steps of the estimators; three are needed to check for linear growth of memory."""
FEW = ["RBP", "RBP:60", "NeumannRBP"]
"""Estimators of the classification of documents."""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The quick mode with even fewer epochs and steps, and with logs in a temporary folder."""
    for domain, steps in STEPS.items():
        estimators = truncated(steps)
        if domain is truncation_cost:  # the two that the claims are about
            estimators = [name for name in estimators if name.startswith(("TBPTT", "NeumannRBP"))]
        monkeypatch.setattr(domain, "STEPS", steps)
        monkeypatch.setattr(domain, "QUICK", replace(domain.QUICK, estimators=estimators))
    monkeypatch.setattr(documents, "ESTIMATORS", FEW)
    monkeypatch.setattr(documents, "QUICK", replace(documents.QUICK, estimators=FEW))
    for domain, own in SHORT.items():
        logs = f" --trainer.logger.save_dir={tmp_path}/logs" if domain is documents else ""
        overrides = f"{domain.QUICK.overrides} {own}{logs} --trainer.accelerator=cpu"
        monkeypatch.setattr(domain, "QUICK", replace(domain.QUICK, overrides=overrides))


def run(folder: Path, *domains: Domain) -> str:
    paper(list(domains), quick=True, seeds=1, out=folder)
    return (folder / "REPORT.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("short", "no_data")
def test_the_report_without_data_and_from_stored_runs(tmp_path: Path, capsys) -> None:
    with pytest.raises(UserError, match="leaves out documents"):
        run(tmp_path, "associative_memory", "documents", "hyperparameters", "truncation_cost")
    report, told = (tmp_path / "REPORT.md").read_text(), capsys.readouterr().err
    assert re.search(r"estimator=RBP:60.* failed: Missing .*planetoid", told)
    assert "documents: left out. 3 of 3 runs" in told
    names = [domain.NAME for domain in (associative_memory, hyperparameters, truncation_cost)]
    for name in (*names, "--quick=true", "--seeds=1", __version__):
        assert name in report
    pictures = sorted(tmp_path.glob("*.png"))
    assert [picture.name for picture in pictures] == [
        "hyperparameters_curves.png",
        "memory_curves.png",
        "memory_recall.png",
        "truncation_cost.png",
    ]
    for picture in pictures:
        assert f"({picture.name})" in report
        Image.open(picture).verify()
    # The memory of truncated estimators does not depend on the length of the training.
    with (tmp_path / "claims.csv").open(newline="") as file:
        found = {claim: verdict for claim, verdict, _ in csv.reader(file)}
    assert (found[MEMORY], found[TAPE]) == ("yes", "yes")

    # Without further runs, those of the files are reported, whatever the settings.
    paper(["hyperparameters"], quick=True, seeds=3, out=tmp_path, run=False)
    kept_report = (tmp_path / "REPORT.md").read_text()
    assert section(kept_report, hyperparameters.NAME) == section(report, hyperparameters.NAME)

    # Only the missing run is run again.
    kept = tmp_path / "hyperparameters.csv"
    before = kept.read_text()
    *rows, last = before.splitlines(keepends=True)
    kept.write_text("".join(rows))
    rows_of_domain("hyperparameters", True, 1, tmp_path)
    *again, new = kept.read_text().splitlines(keepends=True)
    assert again == rows
    assert new.split(",")[3:7] == last.split(",")[3:7]  # estimator, seed, loss and accuracy


def section(report: str, name: str) -> str:
    return report.partition(f"## {name}")[2].partition("\n## ")[0]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.usefixtures("short", "cora")
def test_the_report_of_documents(tmp_path: Path) -> None:
    report = run(tmp_path, "documents")
    assert "RBP(steps=60)" in [row[0] for row in rows_of(report)]
    with (tmp_path / "documents.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["estimator"] for row in rows} == set(FEW)
    for row in rows:
        differences = [float(value) for value in row["differences"].split()]
        assert len(differences) == 21
        assert differences[-1] < differences[0]
    Image.open(tmp_path / "documents_differences.png").verify()


def test_the_measured_norms_are_those_of_the_steps_of_the_solve() -> None:
    cell, norms = tanh_cell(0), []
    NeumannRBP(2, Picard(7, tol=0.0))(documents.measured(cell.update, norms), cell.start, batch_dims=1)
    state, expected = cell.start, []
    with torch.no_grad():
        for _ in range(7):
            previous, state = state, cell.update(state)
            expected.append((state - previous).norm())
    torch.testing.assert_close(torch.stack(norms), torch.stack(expected))


@pytest.mark.usefixtures("no_data")
def test_an_error_is_raised_if_no_experiment_can_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No experiment could be run"):
        run(tmp_path, "documents")


@pytest.mark.parametrize(
    ("small", "large", "verdict"),
    [
        ([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], "agrees"),
        ([2.0, 2.1, 1.9], [1.0, 1.1, 0.9], "disagrees"),
        ([1.0, 2.0, 3.0], [1.5, 1.0, 3.5], "inconclusive"),
        ([1.0], [2.0], "inconclusive"),
        ([1.0, 1.0], [2.0, 2.0], "agrees"),
        ([1.0, 5.0, 9.0], [1.1, 5.1, 9.11], "agrees"),  # paired by seed
        ([1.0, 5.0, 9.0], [1.001, 5.001, 9.0011], "inconclusive"),  # too small a difference
        ([1.0, 1.1, 0.9], [2.0, float("nan"), 1.9], "agrees"),
        ([1.0, float("inf"), 0.9], [2.0, 3.0, 1.9], "disagrees"),
        ([1.0, float("inf"), 0.9], [2.0, float("nan"), 1.9], "inconclusive"),
    ],
)
def test_the_verdict_that_one_estimator_has_the_lower_value(
    small: list[float], large: list[float], verdict: str
) -> None:
    finding = less("claim", "maps", {"NeumannRBP:10": small, "RBP:10": large}, digits=1)
    assert finding.verdict == verdict
    if all(map(math.isfinite, small)):
        assert f"{sum(small) / len(small):.1f}" in finding.figure
    else:
        assert "not finite in 1 of 3" in finding.figure
    _, (where, here, figure, _) = rows_of(table([finding]))
    assert (where, here.strip("*"), figure) == ("maps", verdict, finding.figure)


@pytest.mark.parametrize(("larger", "verdict"), [(True, "disagrees"), (False, "agrees")])
def test_the_verdict_that_no_other_estimator_is_better(larger: bool, verdict: str) -> None:
    rivals = {"BPTT": [2.0, 2.1, 1.9], "TBPTT": [1.1, 1.0, 0.9]}
    finding = best_of_all("claim", "maps", "Maps", "NeumannRBP", [1.0, 1.1, 0.9], rivals, larger)
    assert finding.verdict == verdict
    assert ("better: BPTT" in finding.figure) == larger
    assert ("worse: BPTT" in finding.figure) != larger
    assert ("worse than BPTT" in finding.result) == larger
    assert ("better than BPTT" in finding.result) != larger
    del rivals["BPTT"]
    assert best_of_all("claim", "maps", "Maps", "NeumannRBP", [1.0, 1.1, 0.9], rivals, larger).verdict == "inconclusive"


def test_the_table_of_claims_counts_the_comparisons_of_each_kind() -> None:
    low, high = [1.0, 1.1, 0.9], [2.0, 2.1, 1.9]
    pairs = [("Maps", low, high), ("Maps", low, high), ("Graphs", high, low), ("Maps", low, low)]
    findings = [less("c", "loss", {"NeumannRBP": small, "RBP": large}, kind=kind) for kind, small, large in pairs]
    (row,) = claims(findings)
    claim, verdict, told = row.values()
    assert (claim, verdict) == ("c", "in part")
    maps, graphs = re.findall(r"(?:Maps|Graphs)[^.]*", told)
    assert re.search(r"worse in 2 of 3\b", maps)
    assert numbers(maps) == [2, 3]
    assert "better" in graphs


@pytest.mark.parametrize(
    ("verdicts", "holds"),
    [
        (["agrees", "agrees"], "yes"),
        (["agrees", "inconclusive"], "in part"),
        (["disagrees", "inconclusive"], "no"),
        (["inconclusive"], "undecided"),
    ],
)
def test_whether_a_claim_holds(verdicts: list[str], holds: str) -> None:
    (row,) = claims([Finding("claim", "maps", verdict, "1 MiB") for verdict in verdicts])
    assert list(row.values())[1] == holds


def test_the_table_of_claims_compares_the_errors_of_adjoints_first() -> None:
    errors = [Errors(0.01, 0.05, "cold start"), Errors(0.02, 0.5, "cold start"), Errors(0.02, 0.03, "warm start")]
    findings = [Finding("claim", "loss", "inconclusive", "1.0 and 1.0", "Trainings", "no difference")]
    findings += [Finding("claim", "error", "agrees", "1 and 2", "Maps", "worse", one) for one in errors]
    (row,) = claims(findings)
    told = row["what was found"]
    assert told.startswith("Maps")
    assert numbers(told) == [3, 3, 5, 25, 1, 2, 1.5, 1.5]  # comparisons, factors, percent, factors


def test_the_table_of_claims_is_that_of_the_runs() -> None:
    folder = tables.FOLDERS[1]
    findings = findings_of({name: rows_of_domain(name, False, None, folder, run=False) for name in DOMAINS})
    with (folder / "claims.csv").open(newline="") as file:
        assert claims(findings) == list(csv.DictReader(file))
    assert tables.laid_out("claims.csv") in (folder / "REPORT.md").read_text()


@pytest.mark.parametrize("radius", [0.5, 0.9, 1.1])
@pytest.mark.parametrize("steps", [1, 10])
def test_errors_of_truncated_adjoints_follow_the_powers_of_the_map(radius: float, steps: int) -> None:
    matrix, gradient = instability.map_with_radius(radius, seed=1)
    assert float(torch.linalg.eigvals(matrix).abs().max()) == pytest.approx(radius)
    exact = torch.linalg.solve(torch.eye(instability.SIZE, dtype=torch.float64) - matrix.T, gradient)
    power = torch.linalg.matrix_power(matrix.T, steps)
    start = torch.rand(instability.SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for kind, first in (("NeumannRBP", gradient), (instability.UNSCALED, start)):
        expected = (power @ (first - exact)).norm() / exact.norm()
        found = instability.adjoint_error(instability._estimator(f"{kind}:{steps}"), radius, seed=1)
        assert found == pytest.approx(float(expected), rel=1e-8)


def test_a_memory_is_trained_from_an_unscaled_start() -> None:
    keys = {"config": "configs/paper/hopfield.yaml", "estimator": f"{instability.UNSCALED}:10", "seed": "0"}
    overrides = f"{instability.SMALL} --trainer.max_epochs=2 --model.num_hidden=16 --trainer.accelerator=cpu"
    measured = instability.run({**keys, "overrides": overrides})
    assert list(measured) == instability.MEASURED
    assert float(measured["error_0.99"]) > 1
    assert math.isfinite(measured["loss"])


@pytest.mark.data
@pytest.mark.usefixtures("cora")
def test_features_in_the_first_state_are_what_is_trained() -> None:
    keys = {"config": "configs/paper/cora.yaml", "estimator": f"{instability.UNSCALED}:2", "seed": "0"}
    few = "--trainer.max_epochs=2 --estimator.solver.max_steps=5 --model.cell.num_hidden=16 --trainer.accelerator=cpu"
    found = [first_state.run({**keys, "overrides": f"{setting} {few}"}) for setting in (first_state.SETTING, "")]
    for measured in found:
        assert set(measured) == set(first_state.MEASURED)
        assert measured["version"] == __version__
    assert found[0]["loss"] != found[1]["loss"]


def test_the_finding_of_features_in_the_first_state_is_of_the_loss() -> None:
    losses = {"NeumannRBP:20": 1.0, "RBP:20": 1.0, f"{instability.UNSCALED}:20": 2.0}
    rows = [
        {"estimator": name, "seed": str(seed), "loss": str(loss + seed / 10), "test_accuracy": "30.0"}
        for name, loss in losses.items()
        for seed in range(3)
    ]
    unscaled, scaled = first_state.findings(rows)
    assert (unscaled.verdict, scaled.verdict) == ("agrees", "inconclusive")
    _, loss, accuracy, seeds = row_of(first_state.section(rows, Path()), "unscaled")
    assert (numbers(loss), numbers(accuracy), seeds) == ([2.1, 0.1], [30, 0], "3")
