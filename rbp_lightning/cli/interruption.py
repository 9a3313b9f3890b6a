"""SIGINT and SIGTERM: a training ends after its batch, with a checkpoint; anything else ends at once."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch.multiprocessing.spawn import ProcessExitedException

from rbp_lightning.cli.summary import relative

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_DUPLICATE_SECONDS = 1.0
"""Seconds in which signals count as one: processes of a group get each twice, from outside and from process 0."""


class Interrupted(SystemExit):
    """A signal has ended the run; the exit status is that of a process killed by the signal.

    Args:
        signum: The signal.
        checkpoint: The checkpoint that was saved, if any.
    """

    def __init__(self, signum: int, checkpoint: str | None = None) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.checkpoint = checkpoint

    def __str__(self) -> str:
        resume = "" if self.checkpoint is None else f": --ckpt_path {self.checkpoint} resumes it"
        return f"ended by {signal.Signals(self.signum).name}{resume}."


class _State:
    """The state of this process; signals belong to the process, not to a Trainer."""

    signum: int | None = None  # the signal that it got
    since = 0.0
    training = False
    requeue = False  # whether SLURM is to requeue the job
    checkpoint: str | None = None
    program = False  # whether the command line runs as a program, not called from Python


@contextmanager
def signals_end_the_run() -> Iterator[None]:
    """Ends the program cleanly on SIGINT or SIGTERM; a second signal ends it at once.

    Raises:
        Interrupted: If it got a signal.
    """
    _State.signum = _State.checkpoint = None
    _State.training = _State.requeue = False
    _State.program = True
    main_thread = threading.current_thread() is threading.main_thread()
    before = {signum: signal.signal(signum, _on_signal) for signum in _SIGNALS} if main_thread else {}
    try:
        yield
        raise_if_signalled()  # an exception handler may have swallowed it
    except (Exception, SystemExit) as error:
        if isinstance(error, ProcessExitedException) and error.exit_code - 128 in _SIGNALS:
            _State.signum = error.exit_code - 128  # the signal ended the spawned processes
        if _State.signum is None or isinstance(error, Interrupted):
            raise
        # The code that was interrupted may have raised another error, such as a wait for a process that has ended.
        raise Interrupted(_State.signum, _State.checkpoint) from error
    finally:
        _State.program = False
        for signum, handler in before.items():
            signal.signal(signum, handler)


def raise_if_signalled() -> None:
    """Ends a run that got a signal.

    Raises:
        Interrupted: If it got one.
    """
    if _State.signum is not None:
        raise Interrupted(_State.signum, _State.checkpoint)


def _on_signal(signum: int, frame: FrameType | None = None) -> None:
    now = time.monotonic()
    if _State.signum is None:
        _State.signum, _State.since = signum, now
        if not _State.training:
            raise Interrupted(signum)
    elif now - _State.since > _DUPLICATE_SECONDS:
        os._exit(128 + signum)


class SignalConnector(_SignalConnector):
    """Replaces Lightning's signal handlers by ones that act after the batch.

    Lightning's handler of SIGTERM waits for the other processes inside the handler, at a point where they do not expect
    it: two of nine runs with two processes never ended. Its handler of SLURM's warning signal saves a checkpoint there,
    and waits as well.
    """

    def _sigterm_notifier_fn(self, signum: int, frame: FrameType | None) -> None:
        _on_signal(signum)

    def _slurm_sigusr_handler_fn(self, signum: int, frame: FrameType | None) -> None:
        _State.requeue = True
        _on_signal(signum)

    def requeue(self, signum: int) -> str:
        """Saves a checkpoint and has SLURM requeue the job, as Lightning does; returns the checkpoint's file.

        Args:
            signum: The signal that SLURM sent.
        """
        path = self.trainer._checkpoint_connector.hpc_save_path(self.trainer.default_root_dir)
        super()._slurm_sigusr_handler_fn(signum, None)  # type: ignore[arg-type]
        return str(relative(path))


class Interruption(Callback):
    """Ends a training after its batch once a signal has come, in all processes together, with ``last.ckpt``.

    The checkpoint is saved after an optimiser step and, if a validation is due then, after the validation.
    """

    agreed = False
    """Whether all processes have agreed to end."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Handles the signals of a spawned process."""
        if multiprocessing.parent_process() is not None:
            for signum in _SIGNALS:
                signal.signal(signum, _on_signal)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal takes effect at the end of a batch."""
        _State.training = True

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Asks all processes whether one has got a signal."""
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            self.agreed = self._any_signalled(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal ends the run at once; a signal since the last batch ends it now.

        Raises:
            Interrupted: If there was a signal.
        """
        _State.training = False
        if self._any_signalled(trainer):
            raise_if_signalled()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the processes that this one started, unless all end together."""
        _State.training = False
        launcher = trainer.strategy.launcher
        if launcher is not None and not self.agreed:
            launcher.kill(signal.SIGTERM)
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.procs.clear()  # otherwise Lightning also kills this process when one of them has ended

    def end(self, trainer: Trainer) -> None:
        """Saves ``last.ckpt`` or requeues the job, and ends the training, in all processes together.

        Raises:
            Interrupted: Always.
        """
        signum, _State.training = _State.signum or signal.SIGTERM, False
        connector = trainer._signal_connector
        if trainer.strategy.reduce_boolean_decision(_State.requeue, all=False) and isinstance(
            connector, SignalConnector
        ):
            _State.checkpoint = connector.requeue(signum)
        else:
            _State.checkpoint = _save(trainer)
        if not _State.program:
            _State.signum, _State.requeue = None, False  # a Python caller may catch the exception and continue
        raise Interrupted(signum, _State.checkpoint)

    @staticmethod
    def _any_signalled(trainer: Trainer) -> bool:
        signalled: bool = trainer.strategy.reduce_boolean_decision(_State.signum is not None, all=False)
        if signalled and _State.signum is None:
            _State.signum, _State.since = signal.SIGTERM, time.monotonic()  # another process got one
        return signalled


def _save(trainer: Trainer) -> str | None:
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    # The callback of last.ckpt comes first, if there is one.
    for callback in sorted(callbacks, key=lambda callback: callback.monitor is not None):
        if callback.dirpath is not None:
            path = Path(callback.dirpath) / "last.ckpt"
            if callback._last_checkpoint_saved != str(path) or callback._last_global_step_saved != trainer.global_step:
                trainer.save_checkpoint(path)
            return str(relative(path))
    return None
