"""The tables of the pages match the files of results."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from experiments import sweep_tables, tables
from experiments.one_step.pages import LAYOUTS
from rbp_lightning import UserError
from tests.markdown import numbers, rows_of

PAGES = sorted(tables.PAGES.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_match_the_files(page: Path) -> None:
    text = page.read_text()
    assert text.count("<!-- table: ") == text.count("<!-- end of table -->") == len(tables._BLOCK.findall(text))
    assert tables.with_tables(text) == text


def test_every_table_is_in_a_page() -> None:
    shown = {block[1].replace(".csv", "") for page in PAGES for block in tables._BLOCK.findall(page.read_text())}
    assert set(tables.TABLES) <= shown <= set(tables.TABLES) | set(LAYOUTS)


def test_a_table_of_a_sweep_has_the_means_of_the_seeds_of_each_estimator() -> None:
    estimators = {
        "BPTT": [(0.9, 10), (1.0, 30), (0.8, 11), (0.9, "")],  # the last one was resumed
        '{"class_path": "RBP", "init_args": {"steps": 5}}': [(1.0, "")],
    }
    rows = [
        {"estimator": name, "test/exact_recall": str(share), "seconds": str(seconds)}
        for name, runs in estimators.items()
        for share, seconds in runs
    ]
    _, first, second = rows_of(sweep_tables.table(rows, {"test/exact_recall": "recalled exactly"}))
    assert (first[0], first[2:]) == ("BPTT", ["11", "4"])
    assert numbers(first[1]) == [90, 8.16]
    assert second == ["RBP(steps=5)", "100.00 %", "–", "1"]  # noqa: RUF001


def test_a_table_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "speed.csv").write_text("name,steps\nAuto,13\n")
    monkeypatch.setitem(
        tables.TABLES, "speed", lambda rows: "\n".join(f"{row['name']}: {row['steps']}" for row in rows)
    )
    page = "Before.\n\n<!-- table: speed.csv -->\nold\n<!-- end of table -->\n\nAfter.\n"
    expected = "Before.\n\n<!-- table: speed.csv -->\nAuto: 13\n<!-- end of table -->\n\nAfter.\n"
    assert tables.with_tables(page, [tmp_path / "nowhere", tmp_path]) == expected


def test_a_file_may_have_several_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "speed.csv").write_text("name,steps\nAuto,13\n")
    for name in ("name", "steps"):
        monkeypatch.setitem(tables.TABLES, f"speed: {name}", lambda rows, name=name: rows[0][name])
    page = "<!-- table: speed.csv: name -->\n{}\n<!-- end of table -->\n\n"
    page += "<!-- table: speed.csv: steps -->\n{}\n<!-- end of table -->\n"
    for old in (page.format("old", "old"), page.replace("{}\n", "")):
        assert tables.with_tables(old, [tmp_path]) == page.format("Auto", "13")


def test_the_study_has_its_plain_runs_alone_in_its_tables() -> None:
    shown = tables.laid_out("one_step_prefix_sums.csv: results")
    with (tables.FOLDERS[0] / "one_step_prefix_sums.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["cell"], row["variant"]) == ("one", "plain")]
    seeds = Counter(row["estimator"] for row in rows)
    assert [int(line.split(" | ")[-1].strip(" |")) for line in shown.splitlines()[2:]] == list(seeds.values())


@pytest.mark.parametrize("name", ["nothing", "gradients"])
def test_a_missing_or_unknown_table_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{name}.csv"):
        tables.with_tables(f"<!-- table: {name}.csv -->\n\n<!-- end of table -->", [tmp_path])
