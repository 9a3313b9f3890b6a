"""Programs that start at once: a process that has imported everything, and forks one for each program.

A line of JSON says what to run, or whose end to wait for; a line answers with the process's number or its status.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import datamodules  # noqa: E402, F401
import models  # noqa: E402, F401
import rbp_lightning.cli  # noqa: E402, F401


def start(request: dict[str, Any]) -> int:
    """Runs a program in a folder, with its output in the files ``out`` and ``err`` there."""
    if pid := os.fork():
        return pid
    os.setsid()
    os.chdir(request["folder"])
    for number, name in enumerate((os.devnull, request["name"] + ".out", request["name"] + ".err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    os.environ |= request["environment"]
    sys.argv = [request["program"], *request["arguments"]]
    status: Any = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def wait(pid: int, seconds: float) -> int | None:
    """The status of a process, negative where a signal ended it; ``None`` for one that had to be killed."""
    for _ in range(int(100 * seconds)):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


if __name__ == "__main__":
    # No program collects, and so copies, what all of them share.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(wait(**asked["wait"]) if "wait" in asked else start(asked)), flush=True)
