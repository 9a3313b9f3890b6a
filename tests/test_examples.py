"""The scripts of examples/ do what they say."""

import runpy
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_a_deep_equilibrium_layer_tells_digits() -> None:
    assert example("deq_digits")["main"](epochs=3) > 0.85


def test_learned_coefficients_lower_the_validation_loss() -> None:
    first, last = example("tune_weight_decay")["main"](outer_steps=5)
    assert last < 0.9 * first
