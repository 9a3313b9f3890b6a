"""The comparison with an epoch of the released code on Cora."""

from pathlib import Path

import pytest
import torch
import yaml

from experiments import cora_epoch
from rbp_lightning import UserError
from tests.markdown import numbers, rows_of


@pytest.fixture
def narrow(cora: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The real files of Cora, with a network of few hidden units."""
    config = yaml.safe_load(cora_epoch.CONFIG.read_text())
    config["model"]["init_args"]["cell"]["init_args"]["num_hidden"] = 16
    (tmp_path / "cora.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(cora_epoch, "CONFIG", tmp_path / "cora.yaml")
    return str(cora_epoch.CONFIG)


@pytest.mark.data
def test_the_released_code_s_method_and_neumann_rbp_give_the_same_gradient(narrow: str) -> None:
    found = {}
    for method in (cora_epoch.RELEASED, "NeumannRBP(20)"):
        training = cora_epoch.Training(narrow, method, seed=0, dtype=torch.float64)
        assert training.gradient() == (100, 20)
        found[method] = [parameter.grad for parameter in training.model.parameters()]
    plain, ours = found.values()
    assert len(plain) == 8
    for one, other in zip(plain, ours, strict=True):
        assert one.dtype == torch.float64
        assert float(one.norm()) > 0
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12 * float(one.norm()))


@pytest.mark.data
@pytest.mark.usefixtures("narrow")
def test_the_table_has_the_steps_and_products_of_each_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cora_epoch.csv"
    cora_epoch.cora_epoch(epochs=2, block=1, seeds=1, csv=file)
    table = capsys.readouterr().out
    _, *found = rows_of(table)
    assert [row[0] for row in found] == cora_epoch.METHODS
    steps, products = ([float(row[column]) for row in found] for column in (1, 2))
    assert steps[:2] == [100, 100]
    assert all(one < 100 for one in steps[2:])
    assert products == [20, 20, 20, 6, 2]
    faster = [numbers(row[3])[0] for row in found]
    assert faster[0] == 1  # than itself
    assert min(faster) > 0
    rows = file.read_text()
    cora_epoch.cora_epoch(epochs=2, block=1, seeds=1, csv=file)  # reads the file
    assert capsys.readouterr().out == table
    assert file.read_text() == rows


def test_too_few_epochs_for_two_blocks_are_refused() -> None:
    with pytest.raises(UserError, match="--epochs=7"):
        cora_epoch.cora_epoch(epochs=7)
