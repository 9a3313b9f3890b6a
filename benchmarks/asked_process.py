"""An interpreter that answers requests, so that measurements in several of them can take turns."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rbp_lightning.errors import UserError

Process = TypeVar("Process", bound="AskedProcess")


class AskedProcess:
    """A process that reads a request from a line of its standard input, in JSON, and answers on its standard output.

    It ends when the ``with`` block does.

    Args:
        command: The command and its arguments.
        name: The name of the process in error messages.
        environment: Environment variables to set for it.

    Raises:
        UserError: If there is no such command.
    """

    def __init__(self, command: Sequence[str], name: str, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **(environment or {})},
            )
        except OSError as error:
            raise UserError(f"{command[0]} does not run: {error.strerror}.") from error

    def __enter__(self: Process) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def ask(self, **request: Any) -> Any:
        """Sends a request and waits for its answer.

        Args:
            **request: The request.

        Raises:
            UserError: If the process has failed.
        """
        assert self.process.stdin is not None  # both are pipes
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError) as error:
            raise UserError(f"{self.name} failed; its message is above.") from error
