"""Random mutations of configurations and command lines, reproducible by seed."""

import copy
import inspect
import math
import random
from collections.abc import Callable, Iterator
from pydoc import locate
from typing import Any

import yaml

import datamodules
import models
import rbp_lightning
from rbp_lightning.cli.trainer import RunTrainer

Path = tuple[Any, ...]

NUMBERS = [-1, 0, 1, 10**4, 10**12, 10**30, -(10**30), 0.0, 1e-300, 1e-30, 1e30, 1e38, 1e308, 0.5, -0.5, 0.999999999]
"""Replacements for numbers."""

ODD: list[Any] = [
    *(None, "", [], {}, True, False, *NUMBERS),
    *(math.nan, math.inf, -math.inf, "nan", "abc", "1e3", "0x10", "null", "x" * 5000, "\u00fc\u2028\U0001f4a5", "a\0b"),
    *("..", "/", "/dev/null", "/etc/passwd", "%s{0}", "$HOME", "- a", "[1, 2", "last", "best", "none.ckpt"),
    *(
        [[1], [2]],
        [[]],
        [None],
        [0],
        [1, "a"],
        ["abc"],
        {"a": 1},
        {"": 1},
        {1: 2},
        {"init_args": {}},
        {"class_path": 3},
    ),
    *("os.system", "models.MLP", "Picard", "NeumannRBP", "MNISTSplits", "torch.Tensor", "builtins.dict", "nowhere.Net"),
    *({"class_path": name} for name in ("os.system", "os", "nowhere.Net", "models", "builtins.int", "torch.nn.Linear")),
    *({"class_path": f"models.{name}"} for name in ("HopfieldMemory", "MLP", "PageRankCell", "WeightDecay")),
    {"class_path": 3},
    {"class_path": "rbp_lightning.Picard", "init_args": {"steps": 3}},
    {"class_path": "rbp_lightning.CGRBP", "init_args": {"solver": {"class_path": "CGRBP"}}},
    {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "EXECUTED"]}},
    [{"class_path": "EquilibriumMonitor", "init_args": {"every_n_steps": 10**30}}],
]
"""Replacements for any value."""

NAMESPACES = {name: vars(module) for module in (rbp_lightning, models, datamodules) for name in module.__all__}


def places(tree: Any, path: Path = ()) -> Iterator[Path]:
    """The paths of all values and sections of a configuration."""
    if path:
        yield path
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield from places(tree[key], (*path, key))


def _parent(tree: Any, path: Path) -> Any:
    for key in path[:-1]:
        tree = tree[key]
    return tree


def _draw(rng: random.Random, now: Any) -> Any:
    """An odd value, usually of the type of the current one, so that the parser accepts it."""
    if isinstance(now, bool | int | float) and rng.random() < 0.7:
        return rng.choice([number for number in NUMBERS if isinstance(now, float) or isinstance(number, int)])
    if isinstance(now, str) and rng.random() < 0.5:
        return rng.choice([value for value in ODD if isinstance(value, str)])
    return copy.deepcopy(rng.choice(ODD))


def change_value(rng: random.Random, tree: dict[Any, Any], others: list[dict[Any, Any]]) -> str:
    """Replaces a value by an odd one."""
    path = rng.choice(list(places(tree)))
    parent = _parent(tree, path)
    parent[path[-1]] = value = _draw(rng, parent[path[-1]])
    return f"{path} = {value!r:.80}"


def add_argument(rng: random.Random, tree: dict[Any, Any], others: list[dict[Any, Any]]) -> str:
    """Sets an argument that the configuration does not have to an odd value."""
    owners: list[tuple[Path, type]] = [(("trainer",), RunTrainer), (("policy",), rbp_lightning.FailurePolicy)]
    for path in places(tree):
        if path[-1] == "class_path":
            name = str(_parent(tree, path)["class_path"]).rpartition(".")[2]
            found = NAMESPACES.get(name, {}).get(name) or locate(_parent(tree, path)["class_path"])
            owners.append(((*path[:-1], "init_args"), found))
    path, owner = rng.choice(owners)
    arguments = inspect.signature(owner).parameters
    name = rng.choice([name for name in arguments if name not in ("args", "kwargs")])
    value = _draw(rng, arguments[name].default)
    section = _parent(tree, path).setdefault(path[-1], {})
    section[name] = value
    return f"{(*path, name)} = {value!r:.80}"


def delete_key(rng: random.Random, tree: dict[Any, Any], others: list[dict[Any, Any]]) -> str:
    """Deletes a key."""
    path = rng.choice(list(places(tree)))
    del _parent(tree, path)[path[-1]]
    return f"no {path}"


def rename_key(rng: random.Random, tree: dict[Any, Any], others: list[dict[Any, Any]]) -> str:
    """Renames a key."""
    path = rng.choice([path for path in places(tree) if isinstance(path[-1], str)])
    key = path[-1]
    new = rng.choice([key + "x", key[1:], key.upper(), key.replace("_", "-"), f"{key}.a", f".{key}", 1, "\u00e9", None])
    parent = _parent(tree, path)
    parent[new] = parent.pop(key)
    return f"{path} named {new!r}"


def swap_section(rng: random.Random, tree: dict[Any, Any], others: list[dict[Any, Any]]) -> str:
    """Replaces a section by that of another configuration."""
    other = rng.choice(others)
    section = rng.choice(["model", "data", "data", "estimator", "trainer"])
    tree[section] = copy.deepcopy(other[section])
    return f"{section} of {other['trainer']['logger']['init_args']['name']}"


def move_value(rng: random.Random, tree: dict[Any, Any], others: list[dict[Any, Any]]) -> str:
    """Copies a value of the configuration to another place."""
    source, target = (rng.choice(list(places(tree))) for _ in range(2))
    _parent(tree, target)[target[-1]] = copy.deepcopy(_parent(tree, source)[source[-1]])
    return f"{source} in {target}"


TREE: list[Callable[[random.Random, dict[Any, Any], list[dict[Any, Any]]], str]] = [
    *(change_value, change_value, change_value, add_argument, add_argument, add_argument),
    *(delete_key, rename_key, swap_section, move_value),
]
"""Mutations of a parsed configuration."""


def damage_text(rng: random.Random, text: str) -> tuple[str, str]:
    """Damages the text of a configuration; returns it with a description."""
    lines = text.splitlines()
    keys = [number for number, line in enumerate(lines) if ":" in line]
    number = rng.choice(keys)
    line = lines[number]
    kind = rng.choice(["twice", "tab", "indent", "cycle", "merge", "tag", "laughs", "documents", "cut", "colon", "end"])
    indent, _, rest = line.partition(line.lstrip())
    key = line.partition(":")[0]
    if kind == "twice":
        lines.insert(number, line if rng.random() < 0.5 else f"{key}: {rng.choice(['1', 'abc', '{}', ''])}")
    elif kind == "tab":
        lines[number] = line.replace("  ", "\t") if line.startswith(" ") else f"\t{line}"
    elif kind == "indent":
        lines[number] = " " * rng.randrange(9) + line.lstrip()
    elif kind == "cycle":
        lines[number] = f"{key}: &a {rng.choice(['[*a]', '{a: *a}', '{class_path: *a, init_args: *a}', '*a'])}"
    elif kind == "merge":
        lines.insert(number, f"{indent}<<: {rng.choice(['{steps: 3}', '[1]', '*nothing', 'abc', '[{a: 1}, {a: 2}]'])}")
    elif kind == "tag":
        tags = ["!!python/object/apply:os.system ['touch EXECUTED']", "!!python/name:os.system", "!!binary abc", "!x y"]
        lines[number] = f"{key}: {rng.choice([*tags, '!!set {a}', '!!timestamp 2020-01-01', '!!int abc', '!!float x'])}"
    elif kind == "laughs":
        bombs = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        bombs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
        lines = [*bombs, *lines[:number], f"{key}: *a11", *lines[number + 1 :]]
    elif kind == "documents":
        lines.insert(number, "---")
    elif kind == "cut":
        lines = lines[:number]
    elif kind == "colon":
        lines[number] = line.replace(":", rng.choice(["", "::", ": :", ":", " :", ": &a", ": *a", ": {", ": '"]), 1)
    else:
        lines[number] = line + rng.choice([" #", " ]", "'", " |", " >", ": 3", ",", "\u2028", " - a"])
    return "\n".join(lines) + rest, f"{kind} in line {number + 1}, {line.strip()!r}"


def damage_bytes(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """Damages the bytes of a configuration; returns them with a description."""
    place = rng.randrange(len(content))
    kind = rng.choice(["bit", "bits", "cut", "latin-1", "bom", "utf-16", "nul", "control", "empty", "noise", "scalar"])
    damaged = bytearray(content)
    if kind in ("bit", "bits"):
        for _ in range(1 if kind == "bit" else 20):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        damaged = damaged[:place]
    elif kind in ("latin-1", "nul", "control"):
        damaged[place:place] = {"latin-1": b"\xe9", "nul": b"\0", "control": b"\x1b"}[kind]
    elif kind == "bom":
        damaged = bytearray(b"\xef\xbb\xbf" + content)
    elif kind == "utf-16":
        damaged = bytearray(content.decode().encode("utf-16"))
    elif kind == "empty":
        damaged = bytearray(rng.choice([b"", b"\n", b"# nothing\n", b"---\n", b"...\n"]))
    elif kind == "noise":
        damaged = bytearray(rng.randbytes(200))
    else:
        damaged = bytearray(rng.choice([b"3\n", b"abc\n", b"[1, 2]\n", b"null\n", b"- a\n", b"{}\n", b"true\n", b"'"]))
    return bytes(damaged), f"{kind} at byte {place}"


def odd_options(rng: random.Random, tree: dict[Any, Any]) -> list[str]:
    """Options with odd names, values or positions."""
    kind = rng.choice(["value", "value", "value", "name", "words", "file"])
    path = [str(key) for key in rng.choice(list(places(tree))) if key not in ("init_args", "class_path")]
    if kind in ("value", "name") and path:
        name = ".".join(path)
        if kind == "name":
            name = rng.choice(
                [name + "x", name.upper(), f"{name}.a.b", name.replace(".", ".."), f"{name}+", f".{name}"]
            )
        value = rng.choice(ODD)
        text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).partition("\n")[0]
        return [f"--{name}={text}"] if rng.random() < 0.8 else [f"--{name}"]
    if kind == "file":
        name = rng.choice(["--config", "--model", "--data", "--trainer", "--estimator", "--ckpt_path"])
        files = ["none.yaml", "/dev/null", "/", "", "/etc/passwd", "config.yaml", "\udcff", "{", "-"]
        return [name, rng.choice(files)]
    words = ["--", "-", "-x", "fit", "test", "--help", "--version", "--print_config", "--model.help=MLP", "--a.help"]
    words += ["--seed_everything=-1", "--seed_everything=10000000000", "--seed_everything=abc", "--steps=[0]"]
    words += ["--trainer.devices=abc", "--trainer.max_steps=0", "--trainer.callbacks+=Foo", "--trainer.callbacks=Timer"]
    words += ["--optimizer=Adam", "--optimizer=SGD", "--optimizer.lr=1e38", "--optimizer=LBFGS", "--optimizer={}"]
    words += ["--lr_scheduler=StepLR", "--lr_scheduler.step_size=0", "--lr_scheduler=ReduceLROnPlateau"]
    words += ["--policy=raise", "--policy.diverged=stop", "--checkpoint.monitor=", "--batches=0", "--error=0", "\u00fc"]
    words += ["--weights_only=maybe", "--return_predictions=3", "--verbose=", "--ckpt_path=hpc", "--ckpt_path=last"]
    return rng.sample(words, rng.randint(1, 3))
