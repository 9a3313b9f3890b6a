"""Programs in separate processes, for tests of signals and of other ways to end a process.

Programs that a program starts, as ``ddp`` does, are not waited for; use ``subprocess`` and pipes for them.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli.options import ROOT


class Run:
    """A running program.

    Args:
        zygote: The process that starts it.
        folder: The folder in which it runs.
        arguments: Its arguments.
        environment: Variables in addition to those of the tests.
        program: The file to run; ``train.py`` by default.
    """

    number = 0

    def __init__(
        self,
        zygote: "Zygote",
        folder: Path,
        arguments: list[str],
        environment: dict[str, str],
        program: Path = ROOT / "train.py",
    ) -> None:
        Run.number += 1
        self.output = folder / f"run{Run.number}"
        self.zygote = zygote
        request = {"folder": str(folder), "name": self.output.name, "arguments": arguments, "environment": environment}
        self.pid: int = zygote.ask({**request, "program": str(program)})

    def signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def until(self, reached: Callable[[], Any], seconds: float = 120) -> None:
        """Waits until a condition holds."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, self.error()
            assert Path(f"/proc/{self.pid}/stat").read_text().split()[2] != "Z", self.error()
            time.sleep(0.005)

    def end(self, seconds: float = 120) -> int | None:
        """Waits for its end; returns its exit status, or ``None`` if it had to be killed."""
        status: int | None = self.zygote.ask({"wait": {"pid": self.pid, "seconds": seconds}})
        return status

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.end()

    def printed(self) -> str:
        """Its standard output so far."""
        return self.output.with_suffix(".out").read_text()

    def error(self) -> str:
        """Its standard error so far."""
        printed = self.output.with_suffix(".err")
        return printed.read_text() if printed.exists() else ""

    def lines(self) -> list[str]:
        """Its lines with an error, including those of processes that it has started."""
        return [line for line in self.error().splitlines() if "error: " in line]


class Zygote:
    """Starts programs by forking a process that has imported everything."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        program = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(program, env=environment, **pipes)

    def ask(self, request: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def of_ranks(zygote: Zygote, folder: Path, arguments: list[str], program: Path, ranks: int = 2) -> list[Run]:
    """Starts a program once for each rank of a process group, as a launcher such as ``torchrun`` does."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    return [Run(zygote, folder, arguments, {**shared, "LOCAL_RANK": str(rank)}, program) for rank in range(ranks)]
