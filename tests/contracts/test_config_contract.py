"""Every shipped config trains and predicts, writes its results and causes no warning."""

import warnings
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SHORT = {
    "fit": ["--trainer.limit_train_batches=2", "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"],
    "validate": ["--trainer.limit_val_batches=2"],
    "test": ["--trainer.limit_test_batches=2"],
    "predict": ["--trainer.limit_predict_batches=2"],
}
SHORT["fit"] += ["--trainer.log_every_n_steps=1"]  # Lightning warns if an epoch is shorter than this
SHORT["fit"] += ["--trainer.num_sanity_val_steps=0"]  # the epoch ends with a validation
SETTINGS = {config: yaml.safe_load(config.read_text()) for config in reversed(CONFIGS)}
FIRST = {settings["model"]["class_path"]: config for config, settings in SETTINGS.items()}
"""The first config of each model, which is also validated and tested, and draws plots."""
PAIRS = {
    (settings["model"]["class_path"], settings["data"]["class_path"]): config for config, settings in SETTINGS.items()
}
"""The first config of each model on each data module, which also predicts."""
SUBCOMMANDS = {"fit": CONFIGS, "validate": FIRST.values(), "test": FIRST.values(), "predict": PAIRS.values()}
RUNS = [(config, name) for config in CONFIGS for name, run in SUBCOMMANDS.items() if config in run]


@pytest.mark.parametrize(
    ("config", "subcommand"), RUNS, ids=[f"{config.relative_to(ROOT / 'configs')}-{name}" for config, name in RUNS]
)
def test_a_config_runs_without_warnings(config: Path, subcommand: str, cli, monkeypatch, request) -> None:
    settings = SETTINGS[config]
    images = settings["data"]["class_path"].endswith("ImagePatterns")
    puzzles = settings["model"]["class_path"].endswith("EquilibriumReasoner")
    random_search = "RandomSearch" in config.read_text()
    generated = puzzles or "PowerLawGraph" in config.read_text()
    if settings["data"]["init_args"].get("source") != "digits" and not generated:
        monkeypatch.setenv("RBP_DATA_DIR", request.getfixturevalue("data_dir"))
    small = ["--data.eval_draws=1"] if images else []
    small += ["--data.dataset.num_nodes=500"] if generated and not puzzles else []
    if settings["model"]["class_path"].endswith("HyperparameterOptimizer"):
        small += ["--estimator.steps=2", "--estimator.solver.max_steps=5"]
    if settings["data"]["class_path"].endswith("LabelledImages"):
        small += ["--data.num_train=40", "--data.num_val=20", "--data.num_test=20", "--data.batch_size=20"]
    if config not in FIRST.values() and {"class_path": "EquilibriumMonitor"} in settings["trainer"].get(
        "callbacks", []
    ):
        small.append("--trainer.callbacks.plot_every_n_steps=0")  # plots take longer than everything else
    if puzzles:
        small += ["--model.eval_steps=[2,4]", "--data.batch_size=2"]
        small += ["--data.num_train=8", "--data.num_val=4", "--data.num_test=4"]
    if settings["data"]["class_path"].endswith("Mazes"):
        small.append("--data.test_cells=[5,9]")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # as Python does outside of tests
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        options = ["--trainer.accelerator=cpu", *SHORT[subcommand], *small]
        status, out, err = cli(subcommand, f"--config={config}", *options)

    assert status == 0, err
    assert [str(warning.message) for warning in caught] == []
    assert ("| learned |" in out) == (random_search and subcommand == "fit")
    assert bool(list(Path().rglob("recall.png"))) == images
    assert bool(list(Path().rglob("thinking_*.png"))) == puzzles
    assert bool(list(Path().rglob("classes.txt"))) == (subcommand == "predict" and not images and not puzzles)
    assert bool(list(Path().rglob("best.ckpt"))) == (subcommand == "fit")
