"""Limits on a test's memory and time, and paths that are not regular files."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 2**20

NO_FILES = ("folder", "pipe", "device", "broken link", "link to itself")


def make_no_file(path: Path, kind: str) -> None:
    """Creates one of ``NO_FILES`` at the path."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"device": Path("/dev/zero"), "broken link": path.parent / "nowhere"}.get(kind, path))


@contextmanager
def bounded(mebibytes: int, seconds: float, case: str = "") -> Iterator[None]:
    """Context manager that fails if its block increases the peak memory too much or takes too long.

    A test that hangs is stopped. The peak includes memory of C libraries; it is read from /proc, on Linux only.
    """

    def stop(*_: object) -> None:
        pytest.fail(f"took more than {seconds} s {case}")  # not an Exception, so no handler in between catches it

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        _reset_peak()
        before = _resident("VmRSS")
        yield
        taken = (_resident("VmHWM") - before) / MIB
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert taken <= mebibytes, f"took {taken:.0f} MiB {case}"


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("peak memory can be measured only through /proc")


def _resident(kind: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) * 1024
