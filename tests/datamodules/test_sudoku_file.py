"""Sudoku puzzles from a CSV file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import SudokuFile
from datamodules.puzzles import IGNORED
from datamodules.sudoku_generation import puzzle
from rbp_lightning import UserError
from tests.puzzles import write_puzzles

SOLUTION = "1234341221434321"


def test_puzzles_are_read_from_the_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    drawn = [puzzle(9, 30, generator) for _ in range(6)]
    written = {given.tobytes(): solution for given, solution in drawn}
    write_puzzles(tmp_path / "nine.csv", drawn)
    data = SudokuFile("nine.csv", str(tmp_path), num_train=3, num_val=2, num_test=1)
    data.setup("fit")
    for split in data.splits.values():
        for inputs, targets in zip(split[9]["inputs"], split[9]["targets"], strict=True):
            given = (inputs * torch.arange(1, 10)[:, None, None]).sum(0).long()
            solution = torch.from_numpy(written.pop(given.numpy().tobytes()))
            assert torch.equal(targets, torch.where(given == 0, solution - 1, IGNORED))
    assert not written


@pytest.mark.parametrize(
    "lines",
    [
        ["source,question,answer,rating", f"some,{SOLUTION[:-1]}.,{SOLUTION},3"],
        ["quizzes,solutions", f"{SOLUTION[:-1]}0,{SOLUTION}", ""],
        [f'"{SOLUTION[:-1]}0","{SOLUTION}"'],
        ["a,b", f"{SOLUTION[:-1]}0,{SOLUTION}", f"{SOLUTION[:-1]}.,{SOLUTION}", f"{SOLUTION},{SOLUTION}"],
    ],
)
def test_common_formats_are_read_without_duplicates_and_solved_puzzles(lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "four.csv").write_text("\n".join(lines))
    data = SudokuFile("four.csv", str(tmp_path), side=4, num_train=1, num_val=1, num_test=1)
    with pytest.raises(UserError, match=r"has 1 different puzzles.* ask for 3"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,b", f"{SOLUTION[:-1]}0"], r"Line 2 of .*four\.csv has 1 fields"),
        (["a,b", f"{SOLUTION[:-1]}0,{SOLUTION[:-1]}x"], r"Line 2 of .* has 1 fields"),
        ([f"2{'0' * 15},{SOLUTION}"], r"Line 1 of .*not a solution"),
        ([f"{'0' * 16},{SOLUTION[:-1]}2"], r"Line 1 of .*not a solution"),
        ([f"{'0' * 16},{SOLUTION[:-1]}0"], r"Line 1 of .*not a solution"),
    ],
)
def test_damaged_lines_are_refused(lines: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "four.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        SudokuFile("four.csv", str(tmp_path), side=4, num_train=1, num_val=1, num_test=1).setup("fit")


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"Missing sudoku\.csv.*{tmp_path}"):
        SudokuFile(data_dir=str(tmp_path)).setup("fit")
    (tmp_path / "sudoku.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"sudoku\.csv is not a CSV file"):
        SudokuFile(data_dir=str(tmp_path)).setup("fit")
