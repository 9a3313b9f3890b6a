"""The tables of the pages are those of the files of what was measured."""

from pathlib import Path

import pytest

from experiments import tables
from rbp_lightning import UserError

PAGES = sorted(tables.PAGES.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_what_was_measured(page: Path) -> None:
    text = page.read_text()
    assert text.count("<!-- table: ") == text.count("<!-- end of table -->") == len(tables._BLOCK.findall(text))
    assert tables.with_tables(text) == text


def test_every_file_is_in_a_page() -> None:
    shown = {block[1] for page in PAGES for block in tables._BLOCK.findall(page.read_text())}
    assert shown == set(tables.TABLES)


def test_a_table_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "speed.csv").write_text("name,steps\nAuto,13\n")
    monkeypatch.setitem(
        tables.TABLES, "speed", lambda rows: "\n".join(f"{row['name']}: {row['steps']}" for row in rows)
    )
    page = "Before.\n\n<!-- table: speed.csv -->\nold\n<!-- end of table -->\n\nAfter.\n"
    expected = "Before.\n\n<!-- table: speed.csv -->\nAuto: 13\n<!-- end of table -->\n\nAfter.\n"
    assert tables.with_tables(page, tmp_path) == expected


@pytest.mark.parametrize("name", ["nothing", "gradients"])
def test_a_table_that_cannot_be_made(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{name}.csv"):
        tables.with_tables(f"<!-- table: {name}.csv -->\n\n<!-- end of table -->", tmp_path)
