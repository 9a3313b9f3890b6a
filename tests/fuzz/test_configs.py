"""Mutated configurations and command lines run or are refused in one line."""

import contextlib
import copy
import io
import random
import resource
import signal
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.fuzz.mutations import TREE, damage_bytes, damage_text, odd_options

ROOT = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(ROOT.rglob("*.yaml"))
SUBCOMMANDS = ["fit", "fit", "fit", "validate", "test", "predict", "audit"]

SECONDS = 120
"""Seconds after which a case counts as hanging."""

MEMORY = 16 * 2**30
"""Maximum memory that a case may map, in bytes."""

LIMITS = [f"--trainer.limit_{stage}_batches=1" for stage in ("train", "val", "test", "predict")]
LIMITS += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def small(config: Path) -> dict[Any, Any]:
    """The configuration with sizes for a run of a second or two."""
    tree: dict[Any, Any] = yaml.safe_load(config.read_text())
    if tree["data"]["class_path"].endswith("ImagePatterns"):
        tree["data"]["init_args"] |= {"eval_draws": 1, "train_draws": 2}
    if tree["model"]["class_path"].endswith("EquilibriumReasoner"):
        tree["model"]["init_args"] |= {"eval_steps": [2]}
        tree["data"]["init_args"] |= {"num_train": 64, "num_val": 2, "num_test": 2}
    if tree["model"]["class_path"].endswith("HyperparameterOptimizer"):
        tree["estimator"]["init_args"]["steps"] = 2
        sizes = {"num_train": 100, "num_val": 100, "num_test": 100}
        tree["data"]["init_args"] |= sizes
        for hyperparameter in tree["model"]["init_args"].get("hyperparameters", []):
            if hyperparameter["class_path"] == "models.ExampleWeights":
                hyperparameter["init_args"]["num_examples"] = sizes["num_train"]
    tree["estimator"]["init_args"]["solver"]["init_args"]["max_steps"] = 5
    tree["trainer"] |= {"max_epochs": 1, "check_val_every_n_epoch": 1, "accelerator": "cpu", "devices": 1}
    tree["trainer"] |= {"enable_progress_bar": False, "enable_model_summary": False}
    tree["trainer"] |= {f"limit_{stage}_batches": 1 for stage in ("train", "val", "test", "predict")}
    if config.name == "hypergrad.yaml":
        tree["trainer"]["callbacks"] = [{"class_path": "models.RandomSearch", "init_args": {"trials": 1}}]
    return tree


SMALL = {config: small(config) for config in CONFIGS}


def draw(rng: random.Random, config: Path) -> tuple[list[str], bytes, str]:
    """Draws a case: the command line, the content of ``config.yaml``, and a description of the mutations."""
    tree = copy.deepcopy(SMALL[config])
    subcommand = rng.choice(SUBCOMMANDS)
    if subcommand == "audit" and tree["data"]["class_path"].endswith("CitationGraph"):
        subcommand = "fit"  # an audit of a large graph takes a minute
    options = ["--steps=[2]"] if subcommand == "audit" else []
    if rng.random() < 0.7:
        options.append("--trainer.fast_dev_run=true")
    kind = rng.choice(["tree", "tree", "tree", "tree", "text", "bytes", "options", "options"])
    changes = []
    if kind == "tree":
        others = [SMALL[other] for other in CONFIGS if other != config]
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            with contextlib.suppress(KeyError, IndexError, TypeError, AttributeError, ValueError):
                changes.append(rng.choice(TREE)(rng, tree, others))
    content = yaml.safe_dump(tree, sort_keys=False, allow_unicode=rng.random() < 0.5).encode()
    if kind == "text":
        damaged, how = damage_text(rng, content.decode())
        content, changes = damaged.encode(), [how]
    elif kind == "bytes":
        content, how = damage_bytes(rng, content)
        changes = [how]
    elif kind == "options":
        odd = odd_options(rng, tree)
        changes = odd
        options = [*options, *odd] if rng.random() < 0.8 else [*odd, *options]
    # The options in LIMITS would override mutations of the file's Trainer.
    whole = any("trainer" in one for one in changes)
    return [subcommand, "--config=config.yaml", *([] if whole else LIMITS), *options], content, "; ".join(changes)


@contextlib.contextmanager
def limits(seconds: int) -> Iterator[None]:
    """Context manager that raises if its block hangs or needs too much memory."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"hangs: {seconds} s")

    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)
        torch.use_deterministic_algorithms(False)
        torch.autograd.set_detect_anomaly(False)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_mutated_configuration_runs_or_is_refused_in_one_line(
    config, cases, figures, cli, monkeypatch, request
) -> None:
    if SMALL[config]["data"]["init_args"].get("source") != "digits":
        monkeypatch.setenv("RBP_DATA_DIR", request.getfixturevalue("data_dir"))
    monkeypatch.setattr("sys.stdin", io.StringIO())  # the value "-" reads it
    outcomes: Counter[str] = Counter()
    failures = []
    for seed in range(cases(1, 200)):
        arguments, content, changes = draw(random.Random(f"{config.relative_to(ROOT)} {seed}"), config)
        Path("config.yaml").write_bytes(content)
        outcome = _outcome(cli, arguments)
        outcomes[outcome if outcome in ("ran", "refused") else "failed"] += 1
        if outcome not in ("ran", "refused"):
            failures.append(f"seed {seed}, {changes}: {' '.join(arguments)!r:.300}\n{outcome}")
    figures |= {"tried": sum(outcomes.values()), **outcomes}
    assert not failures, f"{config.name}: " + "\n\n".join(failures)
    assert not list(Path().rglob("EXECUTED"))


def _outcome(cli: Any, arguments: list[str]) -> str:
    """Runs a command line; returns ``ran``, ``refused``, or a description of the error."""
    try:
        with warnings.catch_warnings(), limits(SECONDS):
            warnings.simplefilter("ignore")
            status, _, err = cli(*arguments)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    if "Traceback" in err or len(errors) != (status != 0):
        return f"status {status}, {err[-1000:]}"
    return "refused" if status else "ran"
