"""Damaged configs: each is read as a config, or is refused in one line."""

import random
from pathlib import Path

from tests.fuzz.damage import damaged
from tests.limits import bounded

CONFIG = Path(__file__).parents[2] / "configs" / "hopfield.yaml"


def test_damaged_configs(cli, cases, figures, tmp_path) -> None:
    """To see a case again: ``damaged(CONFIG.read_bytes(), random.Random(case))`` is its config."""
    path, refused, tried = tmp_path / "config.yaml", 0, cases(8, 1000)
    for number in range(tried):
        case = f"config, case {number}"
        path.write_bytes(damaged(CONFIG.read_bytes(), random.Random(case)))
        try:
            with bounded(64, 60, case):
                status, _, told = cli("fit", "--config", path, "--print_config")
        except Exception as error:
            raise AssertionError(f"{case}: {error!r}") from error
        assert status == 0 or (told.startswith("error: ") and told.count("\n") == 1), f"{case}: {told}"
        assert not Path("executed").exists(), case
        refused += status != 0
    figures.update(tried=tried, refused=refused)
    assert refused >= tried // 4
