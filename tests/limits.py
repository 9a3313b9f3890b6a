"""Bounds on what a block of a test may take, and what may be where a file is looked for."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 2**20

NO_FILES = ("folder", "pipe", "device", "broken link", "link to itself")


def make_no_file(path: Path, kind: str) -> None:
    """Puts one of ``NO_FILES`` where a file should be."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"device": Path("/dev/zero"), "broken link": path.parent / "nowhere"}.get(kind, path))


@contextmanager
def bounded(mebibytes: int, seconds: float, case: str = "") -> Iterator[None]:
    """Fails if a block takes more memory at its peak, beyond what was held before, or more time.

    A test that hangs is stopped. The peak is the kernel's, so that of C libraries counts; it is known on Linux alone.
    """

    def stop(*_: object) -> None:
        pytest.fail(f"it took more than {seconds} s {case}")  # no Exception, so nothing on the way catches it

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        _forget_peak()
        before = _resident("VmRSS")
        yield
        taken = (_resident("VmHWM") - before) / MIB
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert taken <= mebibytes, f"it took {taken:.0f} MiB {case}"


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the peak of memory is read from /proc")


def _resident(kind: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) * 1024
