"""Times of computations that take turns, so that all meet the machine in the same state."""

from collections.abc import Callable, Mapping

from torch.utils.benchmark import Timer, timer

from rbp_lightning.errors import UserError

SECONDS = 0.1
"""Time that a measurement takes at least, by as many calls as that needs."""

Measured = Callable[[int], float]
"""From a number of calls to the mean of their seconds."""


def check_repeats(repeats: int) -> None:
    """Refuses a number of repeats that gives no quartiles.

    Raises:
        UserError: If there are fewer than two.
    """
    if repeats < 2:
        raise UserError(f"--repeats={repeats} gives no spread: it must be at least 2.")


def call_timer(run: Callable[[], object], clock: Callable[[], float] = timer) -> Timer:
    """A timer of calls on one thread, which warms up by two calls.

    Args:
        run: What to call.
        clock: Tells the time; by default it is the world's, and waits for the device.
    """
    return Timer("run()", timer=clock, globals={"run": run})


def interleaved(
    runs: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = timer
) -> dict[str, list[float]]:
    """Times computations in turn.

    Args:
        runs: The computations.
        repeats: How often each is timed.
        clock: As ``call_timer`` takes it.

    Returns:
        Seconds of each, in the order of the repeats.
    """
    timers = {name: call_timer(run, clock) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, one in timers.items():
            times[name].append(one.timeit(1).mean)
    return times


def in_turn(runs: Mapping[str, Measured], repeats: int) -> dict[str, list[float]]:
    """Times computations in turn, each by as many calls as take a while.

    Args:
        runs: The computations.
        repeats: How often.

    Returns:
        Seconds of each, in the order of the repeats.
    """
    calls = {name: max(1, round(SECONDS / run(1))) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(run(calls[name]))
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
