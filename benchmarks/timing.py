"""Interleaved timing, so that all computations find the machine in the same state."""

from collections.abc import Callable, Mapping

from torch.utils.benchmark import Timer, timer

from rbp_lightning.errors import UserError

SECONDS = 0.1
"""Least time of a measurement, which makes as many calls as that takes."""

Measured = Callable[[int], float]
"""From a number of calls to their mean time in seconds."""


def check_repeats(repeats: int) -> None:
    """Refuses a number of repeats that is too small for quartiles.

    Raises:
        UserError: If there are fewer than two.
    """
    if repeats < 2:
        raise UserError(f"--repeats={repeats} gives no spread: it must be at least 2.")


def call_timer(run: Callable[[], object], clock: Callable[[], float] = timer) -> Timer:
    """Returns a timer of calls on one thread, which makes two warm-up calls.

    Args:
        run: What to call.
        clock: The clock; by default wall-clock time, which waits for the device.
    """
    return Timer("run()", timer=clock, globals={"run": run})


def interleaved(
    runs: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = timer
) -> dict[str, list[float]]:
    """Times computations in turn.

    Args:
        runs: The computations.
        repeats: Number of repeats.
        clock: As for ``call_timer``.

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
    """Times computations in turn, each over as many calls as take ``SECONDS``.

    Args:
        runs: The computations.
        repeats: Number of repeats.

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
    """Divides each time by the reference's time in the same repeat.

    Args:
        times: As ``interleaved`` returns them.
        reference: The name of the reference.
    """
    return {
        name: [one / other for one, other in zip(values, times[reference], strict=True)]
        for name, values in times.items()
    }
