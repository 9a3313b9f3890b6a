"""Untrusted checkpoints: a command runs or is refused in one line, and never executes anything from them."""

import copy
import functools
import http.server
import itertools
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models import HyperparameterOptimizer
from rbp_lightning import UserError
from rbp_lightning.cli import RBPLightningCLI
from rbp_lightning.cli.checkpoints import NamedCheckpoint
from tests.cli.options import ROOT, RUN, TINY
from tests.cli.test_checkpoints import given

pytestmark = pytest.mark.filterwarnings("ignore")

SUBCOMMANDS = list(RBPLightningCLI.subcommands())
CALL = "x -> __import__('os').system('touch PWNED')"
SEQUENTIAL = {"class_path": "torch_geometric.nn.Sequential", "init_args": {"input_args": CALL, "modules": []}}
CANARY = {"class_path": "canary.Thing", "init_args": {}}
SECRET = "the first line of a secret"

# Arguments of the model in a checkpoint, in place of those of the config.
PAYLOADS: dict[str, dict[str, Any]] = {
    "an expression": {"network": SEQUENTIAL},
    "a module": {"network": {"class_path": "this.Zen"}},
    "a module of the current folder": {"network": CANARY},
    "a file": {"network": "secret.txt"},
    "a text that is a class": {"network": "canary.Thing"},
    "a function": {"network": {"class_path": "os.system", "init_args": {"command": "touch PWNED"}}},
    "a list of classes": {"hyperparameters": [CANARY, SEQUENTIAL]},
    "one more class": {"hyperparameters": [{"class_path": "models.WeightDecay"}] * 4 + [CANARY]},
    "a class in a class": {"network": {"class_path": "models.MLP", "init_args": {"sizes": SEQUENTIAL}}},
    "a class in dict_kwargs": {"network": {"class_path": "models.MLP", "dict_kwargs": {"sizes": CANARY}}},
    "a class in a number's place": {"num_classes": CANARY},
    "a config in a class": {"network": {"class_path": "models.MLP", "__path__": "secret.txt", "config": "secret.txt"}},
    "another model": {"_class_path": "canary.Thing"},
    "a list for a model": {"_class_path": [CANARY]},
}


@pytest.fixture
def run_untrusted(cli, tmp_path: Path) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs a command in a folder that reveals execution; returns its status and error. A hang is ended."""
    Path("canary.py").write_text("open('PWNED', 'w')\nclass Thing:\n    pass\n")
    Path("secret.txt").write_text(f"{SECRET}\nnetwork:\n  class_path: canary.Thing\n")
    Path("kept").mkdir()
    Path("kept/file").touch()

    def run(*arguments: str) -> tuple[int, str]:
        signal.alarm(120)
        try:
            status, out, err = cli(*arguments)
        finally:
            signal.alarm(0)
        errors = [line for line in err.splitlines() if line.startswith("error:")]
        assert len(errors) == (status != 0), err
        assert status == 0 or errors[0].isprintable()
        assert SECRET not in out + err
        assert not Path("PWNED").exists()
        assert not {"this", "canary", "antigravity"} & sys.modules.keys()
        assert Path("kept/file").exists()
        return status, " ".join(errors)

    before = signal.signal(signal.SIGALRM, _hang)
    yield run
    signal.signal(signal.SIGALRM, before)


class _HangError(BaseException):
    """Raised after a timeout; not an Exception, so that no handler catches it."""


def _hang(*_: Any) -> None:
    raise _HangError


@functools.cache
def _valid() -> dict[str, Any]:
    """An untrained checkpoint of ``configs/hypergrad.yaml``."""
    model = HyperparameterOptimizer()
    arguments = {"_class_path": "models.HyperparameterOptimizer", "_instantiator": "canary.Thing"}
    return {"state_dict": model.state_dict(), "pytorch-lightning_version": "2.6.0", "hyper_parameters": arguments}


def test_a_checkpoint_s_arguments_execute_nothing(run_untrusted, cases, figures) -> None:
    every = list(itertools.product(SUBCOMMANDS, PAYLOADS))
    chosen = every if cases(0, 1) else [(SUBCOMMANDS[i % len(SUBCOMMANDS)], name) for i, name in enumerate(PAYLOADS)]
    for subcommand, name in chosen:
        content = _valid()
        torch.save({**content, "hyper_parameters": {**content["hyper_parameters"], **PAYLOADS[name]}}, "a.ckpt")
        status, errors = run_untrusted(subcommand, f"--config={ROOT}/configs/hypergrad.yaml", "--ckpt_path=a.ckpt")
        assert (status, "a.ckpt" in errors) == (1, True), (subcommand, name, errors)
    figures["tried"] = len(chosen)


def test_a_trusted_checkpoint_can_execute_code(cli) -> None:
    """Otherwise the test above would prove nothing."""
    content = _valid()
    torch.save({**content, "hyper_parameters": {**content["hyper_parameters"], "network": SEQUENTIAL}}, "a.ckpt")
    options = [f"--config={ROOT}/configs/hypergrad.yaml", "--ckpt_path=a.ckpt", "--trust_checkpoint=true"]
    with pytest.raises(ValueError, match="non-empty list of modules"):
        cli("test", *options)
    assert Path("PWNED").exists()


class _Payload:
    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_a_pickle_is_not_executed_from_any_path(
    subcommand: str, run_untrusted, cases, tmp_path: Path, monkeypatch
) -> None:
    """For local files under any name that Lightning or fsspec takes for an address."""
    Path("http").mkdir()
    torch.save({**_valid(), "callbacks": {"One": _Payload()}}, "http/a.ckpt")
    torch.save(_Payload(), "hpc_ckpt_1.ckpt")
    requested: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            super().do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    url = f"http://127.0.0.1:{server.server_port}/http/a.ckpt"
    paths = [
        "http/a.ckpt",
        url,
        url.replace("http", "HTTP", 1),
        f"simplecache::{url}",
        f"file://{tmp_path}/http/a.ckpt",
    ]
    paths += ["memory://a.ckpt", "github://a:b@c/a.ckpt", "simplecache::http/a.ckpt", "data:,a", "registry:a", "hpc"]
    # All subcommands load checkpoints in one place, so a short run distributes the paths over them.
    chosen = paths if cases(0, 1) else paths[SUBCOMMANDS.index(subcommand) :: len(SUBCOMMANDS)]
    for path in chosen:
        status, errors = run_untrusted(subcommand, *TINY, f"--ckpt_path={path}")
        assert (status, "ckpt_path=" in errors) == (1, True), (path, errors)
    server.shutdown()
    server.server_close()
    assert not requested


# Odd values for any place of a checkpoint.
ODD: list[Any] = [None, True, -1, 0, 5, 10**30, -(10**9), 0.5, float("nan"), float("inf"), "", "x", "canary.Thing"]
ODD += ["secret.txt", "kept", "local://kept", f"{RUN}/checkpoints/../../../../kept", "\x1b[2J\n", [], {}, [1, 2], [[1]]]
ODD += [["canary.Thing"], CANARY, SEQUENTIAL, [CANARY], {1: 2}, {"class_path": 3}, {"a": {"b": CANARY}}, (1, "x")]
ODD += [torch.ones(2), torch.ones(1).expand(10**12), torch.ones(3, dtype=torch.complex64), torch.Size([3]), {"x"}]
ODD += [torch.ones(2, device="meta"), torch.eye(3).to_sparse(), 0.1j, b"bytes", "2.6.0", "99.0", 1e300, 2**62]


def _places(node: Any, root: bool = True) -> Iterator[tuple[Any, Any]]:
    for key in list(node.keys() if isinstance(node, dict) else range(len(node))):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key], False)


def _mutated(checkpoint: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    content = copy.deepcopy(checkpoint)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        part = draw.choice([*content, *("hyper_parameters", "callbacks", "loops", "lr_schedulers") * 2])
        inside = content.get(part)
        places = list(itertools.islice(_places(inside), 300)) if isinstance(inside, dict | list) else []
        node, key = draw.choice(places) if places and draw.random() < 0.9 else (content, part)
        action = draw.choice(["odd"] * 16 + ["delete", "rename", "deep", "wide", "cycle"])
        if action == "delete" and key in (node if isinstance(node, dict) else range(len(node))):
            del node[key]
        elif action == "rename" and isinstance(node, dict) and key in node:
            node[draw.choice(["x", "class_path", "init_args", "dict_kwargs", "_class_path", 7, ("a",)])] = node.pop(key)
        elif action == "deep":
            node[key] = functools.reduce(lambda inner, _: [inner], range(200), CANARY)
        elif action == "wide":
            node[key] = functools.reduce(lambda inner, _: [inner] * 9, range(30), 1)
        elif action == "cycle":
            node[key] = [1]
            node[key].append(node[key])
        else:
            node[key] = copy.deepcopy(draw.choice(ODD))
    return content


def _texts(node: Any) -> set[str]:
    if isinstance(node, dict):
        return {text for part in (*node.keys(), *node.values()) for text in _texts(part)}
    if isinstance(node, list | tuple):
        return {text for part in node for text in _texts(part)}
    return {node} if isinstance(node, str) else set()


def test_no_string_of_a_checkpoint_reaches_the_parser(cases, figures, tmp_path: Path) -> None:
    """There it could be a class, a file or an expression."""
    tried, refused = cases(60, 20_000), 0
    known = _texts(given()) | {"l2", "BLUE", "b"}  # choices listed by the types
    for seed in range(tried):
        valid = {"state_dict": {}, "pytorch-lightning_version": "2.6.0", "hyper_parameters": given()["init_args"]}
        torch.save(_mutated(valid, random.Random(seed)), tmp_path / "a.ckpt")
        try:
            model = NamedCheckpoint(str(tmp_path / "a.ckpt")).model_config(given())
        except UserError:
            refused += 1
            continue
        assert model is None or _texts(model) <= known, f"_mutated(valid, random.Random({seed}))"
    figures |= {"tried": tried, "refused": refused}


def test_mutated_checkpoints_run_or_are_refused(run_untrusted, cases, figures) -> None:
    assert run_untrusted("fit", *TINY)[0] == 0
    last = RUN / "checkpoints/last.ckpt"
    good, kept = torch.load(last, weights_only=True), last.read_bytes()
    # An audit takes as long as ten other commands, and loads checkpoints in the same place.
    subcommands = SUBCOMMANDS if cases(0, 1) else [one for one in SUBCOMMANDS if one != "audit"]
    wrong: list[str] = []
    ran = 0
    for seed in range(cases(8, 1000)):
        draw = random.Random(seed)
        torch.save(_mutated(good, draw), "a.ckpt")
        subcommand = draw.choice(["fit", "fit", "fit", *subcommands])
        options = ["--trainer.max_epochs=3", "--trainer.logger.version=again", "--ckpt_path=a.ckpt"]
        options += ["--steps=[1]"] if subcommand == "audit" else []
        try:
            status, _ = run_untrusted(subcommand, *TINY, *options)
            assert last.read_bytes() == kept, "another run's checkpoint changed"
            ran += status == 0
        except BaseException as error:
            wrong.append(f"{subcommand} of _mutated(good, random.Random({seed})): {error!r:.300}")
    figures |= {"tried": cases(8, 1000), "ran": ran, "went wrong": len(wrong)}
    assert not wrong, "\n".join(wrong)
