"""A progress bar of one solve."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn


@contextmanager
def showing_progress(name: str, tol: float) -> Iterator[Callable[[int, float], None]]:
    """Shows a progress bar of a solve: how far the logarithm of the residual has come from its start to the tolerance.

    Args:
        name: The estimator's name.
        tol: The tolerance.

    Yields:
        A function that takes the number of a checked step and its largest residual.
    """
    with Progress(BarColumn(), TextColumn("{task.description}")) as bar:
        task = bar.add_task(name, total=1.0)
        first = math.inf

        def update(step: int, residual: float) -> None:
            nonlocal first
            first = min(first, residual) if math.isinf(first) else first
            share = math.log(first / residual) / math.log(first / tol) if 0 < tol < residual < first else 0.0
            description = f"{name}: step {step}, residual {residual:.1e}, tol {tol:g}"
            bar.update(task, completed=1.0 if residual <= tol else share, description=description)

        yield update
