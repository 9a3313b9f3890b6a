"""The interpreter with JAX, as seen from the one with PyTorch."""

import subprocess
from pathlib import Path
from typing import Any

from benchmarks.asked_process import AskedProcess
from rbp_lightning.errors import UserError

ENVIRONMENT = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "EQX_ON_ERROR": "off",  # a linear solve that misses its tolerance is judged by its gradient, like all others
}


def check_interpreter(python: Path) -> None:
    """Refuses an interpreter that lacks a package.

    Args:
        python: Path of the interpreter.

    Raises:
        UserError: If it does not run, or lacks a package.
    """
    remedy = "`make bench-jax` makes an environment with all packages."
    try:
        command = [str(python), "-c", "import jax, jaxopt, lineax, optimistix"]
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"--python={str(python)!r} does not run ({error.strerror}): {remedy}") from error
    if found.returncode:
        raise UserError(f"--python={str(python)!r}: {found.stderr.splitlines()[-1]}: {remedy}")


class AskedWorker(AskedProcess):
    """An interpreter with JAX.

    Args:
        python: Path of the interpreter.

    Raises:
        UserError: If it does not run, or lacks a package.
    """

    def __init__(self, python: Path) -> None:
        check_interpreter(python)
        command = [str(python), str(Path(__file__).with_name("worker.py"))]
        super().__init__(command, "The interpreter with JAX", ENVIRONMENT)

    def answer(self, ask: str, **request: Any) -> Any:
        """Calls a method of ``worker.Worker`` there, and returns its result.

        Args:
            ask: The name of the method.
            **request: The arguments of the method.

        Raises:
            RuntimeError: If it fails.
        """
        found = self.ask(ask=ask, **request)
        if "failure" in found:
            raise RuntimeError(found["failure"])
        return found["answer"]
