"""Every shipped YAML through every subcommand, with small overrides."""

import sys
from pathlib import Path

import pytest
import yaml

from rbp_lightning.cli import main

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("config", CONFIGS, ids=[str(path.relative_to(path.parents[1])) for path in CONFIGS])
def test_config(config, subcommand, tmp_path, monkeypatch, request, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    whole = yaml.safe_load(config.read_text())
    data = whole["data"]
    images = data["class_path"].endswith("ImagePatterns")
    random_search = "RandomSearch" in config.read_text()
    if data["init_args"].get("source") != "digits":
        monkeypatch.setenv("RBP_DATA_DIR", request.getfixturevalue("data_dir"))
    stage = {"fit": "train", "validate": "val"}.get(subcommand, subcommand)
    small = ["--data.eval_draws=1"] if images else []
    small += ["--trainer.max_epochs=1"] if subcommand == "fit" else []
    if whole["model"]["class_path"].endswith("HyperparameterOptimizer"):
        small += ["--estimator.steps=2", "--estimator.solver.max_steps=5"]
    main(
        [
            subcommand,
            f"--config={config}",
            f"--trainer.logger.save_dir={tmp_path}",
            f"--trainer.limit_{stage}_batches=2",
            "--trainer.accelerator=cpu",
            "--trainer.check_val_every_n_epoch=1",
            *small,
        ]
    )
    assert ("| learned |" in capsys.readouterr().out) == (random_search and subcommand == "fit")
    assert bool(list(tmp_path.rglob("recall.png"))) == images
    assert bool(list(tmp_path.rglob("classes.txt"))) == (subcommand == "predict" and not images)
    assert bool(list(tmp_path.rglob("best.ckpt"))) == (subcommand == "fit")
