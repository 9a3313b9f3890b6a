"""The scripts in examples/ reach their stated results."""

import runpy
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_a_deep_equilibrium_layer_classifies_digits() -> None:
    assert run_example("deq_digits")["main"](epochs=3) > 0.85


def test_learned_coefficients_lower_the_validation_loss() -> None:
    first, last = run_example("tune_weight_decay")["main"](outer_steps=5)
    assert last < 0.9 * first
