"""The table of the runs in progress, as a terminal shows it."""

from pathlib import Path

import pytest
from rich.text import Text

from rbp_lightning.cli.sweep.outcome import Outcome
from rbp_lightning.cli.sweep.planned import Planned
from rbp_lightning.cli.sweep.run_table import RunTable


@pytest.fixture
def drawn(monkeypatch, capsys):
    """Returns the lines that were drawn since the last call, each as its words."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)

    def lines() -> list[list[str]]:
        found = (line.split() for line in Text.from_ansi(capsys.readouterr().err).plain.splitlines())
        return [words for words in found if words]

    return lines


def planned(rate: str, epochs: int | None = 30) -> Planned:
    return Planned({"rate": rate}, 0, {"trainer": {"max_epochs": epochs}}, (), Path("runs", rate), "val/loss", None)


def test_the_table_shows_epoch_and_metric_of_each_run_and_counts_those_that_ended(drawn) -> None:
    first, second, third = planned("0.1"), planned("0.2"), planned("0.3", None)
    table = RunTable(4, "val/loss")
    with table:
        table.outcome(planned("0"), Outcome("finished", {"val/loss": 0.25}), before=True)
        assert ["rate=0,", "seed", "0", "finished", "before:", "val/loss", "0.25"] in drawn()
        for run in (first, second, third):
            table.reported(run.name)
        assert ["rate=0.3,", "seed", "0"] in drawn()
        table.epoch(first, 2, 0.123456)
        table.epoch(second, 1, None)
        drawn()
        table.epoch(third, 7, 3e-7)
        assert drawn()[-6:] == [
            ["run", "epoch", "val/loss"],
            ["─" * 38],
            ["rate=0.1,", "seed", "0", "2/30", "0.1235"],
            ["rate=0.2,", "seed", "0", "1/30"],
            ["rate=0.3,", "seed", "0", "7/1000", "3e-07"],  # Lightning's default of epochs
            ["1", "finished", "of", "4"],
        ]
        table.outcome(first, Outcome("failed", {}, error="ValueError: [a] bug"))
        table.outcome(second, Outcome("pruned", {"val/loss": 0.5}))
        found = drawn()
        assert ["rate=0.1,", "seed", "0", "failed:", "ValueError:", "[a]", "bug", "(runs/0.1/output.txt)"] in found
        assert ["rate=0.2,", "seed", "0", "pruned:", "val/loss", "0.5"] in found
        assert found[-2] == ["rate=0.3,", "seed", "0", "7/1000", "3e-07"]  # alone in the table
        assert found[-1] == ["1", "finished,", "1", "pruned,", "1", "failed", "of", "4"]
