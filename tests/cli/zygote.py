"""A process that has imported everything and forks a child for each program, so that programs start at once.

Each request is a line of JSON, to run a program or to wait for one; the reply is a line with its pid or status.
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
    """Forks a child that runs a program in a folder, with its output in files there; returns its pid."""
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
    """The exit status of a process, negative if a signal ended it; ``None`` if it had to be killed."""
    for _ in range(int(100 * seconds)):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


if __name__ == "__main__":
    # Children do not collect the shared objects, which would copy their pages.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(wait(**request["wait"]) if "wait" in request else start(request)), flush=True)
