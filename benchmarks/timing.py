"""Times of computations that take turns, so that all meet the machine in the same state."""

from collections.abc import Callable, Mapping

from torch.utils.benchmark import Timer

from rbp_lightning.errors import UserError


def check_repeats(repeats: int) -> None:
    """Refuses a number of repeats that gives no quartiles.

    Raises:
        UserError: If there are fewer than two.
    """
    if repeats < 2:
        raise UserError(f"--repeats={repeats} gives no spread: it must be at least 2.")


def call_timer(run: Callable[[], object]) -> Timer:
    """A timer of calls on one thread, which waits for the device and warms up by two calls."""
    return Timer("run()", globals={"run": run})


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Times computations in turn.

    Args:
        runs: The computations.
        repeats: How often each is timed.

    Returns:
        Seconds of each, in the order of the repeats.
    """
    timers = {name: call_timer(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, timer in timers.items():
            times[name].append(timer.timeit(1).mean)
    return times


def ratios(times: Mapping[str, list[float]], reference: str) -> dict[str, list[float]]:
    """Divides each time by that of a reference next to it.

    Args:
        times: As ``interleaved`` returns them.
        reference: Which one to divide by.
    """
    return {
        name: [one / other for one, other in zip(values, times[reference], strict=True)]
        for name, values in times.items()
    }
