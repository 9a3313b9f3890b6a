"""Damaged configs are read as configs or refused in one line."""

import random
from pathlib import Path

from tests.fuzz.damage import damaged
from tests.limits import bounded

CONFIG = Path(__file__).parents[2] / "configs" / "hopfield.yaml"


def test_damaged_configs_are_read_or_refused(cli, cases, figures, tmp_path) -> None:
    """``damaged(CONFIG.read_bytes(), random.Random(case))`` is the config of a case."""
    path, refused, tried = tmp_path / "config.yaml", 0, cases(8, 1000)
    for number in range(tried):
        case = f"config, case {number}"
        path.write_bytes(damaged(CONFIG.read_bytes(), random.Random(case)))
        try:
            with bounded(64, 60, case):
                status, _, err = cli("fit", "--config", path, "--print_config")
        except Exception as error:
            raise AssertionError(f"{case}: {error!r}") from error
        assert status == 0 or (err.startswith("error: ") and err.count("\n") == 1), f"{case}: {err}"
        assert not Path("executed").exists(), case
        refused += status != 0
    figures.update(tried=tried, refused=refused)
    assert refused >= tried // 4
