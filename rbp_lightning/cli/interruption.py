"""Runs that are told to end: a training after its batch and with a checkpoint, everything else at once."""

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

_SAME = 1.0
"""Seconds in which signals count as one: a group of processes gets each twice, from outside and from the first."""


class Interrupted(SystemExit):
    """A signal has ended the run; the exit status is that of a process that the signal ends.

    Args:
        signum: The signal.
        kept: The checkpoint that was saved for it.
    """

    def __init__(self, signum: int, kept: str | None = None) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.kept = kept

    def __str__(self) -> str:
        continued = "" if self.kept is None else f": --ckpt_path {self.kept} goes on from where it was"
        return f"ended by {signal.Signals(self.signum).name}{continued}."


class _Told:
    """What this process was told; signals are the process's, not a Trainer's."""

    signum: int | None = None
    since = 0.0
    training = False
    requeue = False  # whether SLURM is to start the job again
    kept: str | None = None
    program = False  # whether the process is the command line's own, not that of a Python caller


@contextmanager
def signals_end_the_run() -> Iterator[None]:
    """Ends a program in order where it gets SIGINT or SIGTERM; a second signal ends it at once.

    Raises:
        Interrupted: If it got one.
    """
    _Told.signum = _Told.kept = None
    _Told.training = _Told.requeue = False
    _Told.program = True
    main_thread = threading.current_thread() is threading.main_thread()
    before = {signum: signal.signal(signum, _on_signal) for signum in _SIGNALS} if main_thread else {}
    try:
        yield
        raise_if_told()  # somebody's handler of exceptions may have swallowed it
    except (Exception, SystemExit) as error:
        if isinstance(error, ProcessExitedException) and error.exit_code - 128 in _SIGNALS:
            _Told.signum = error.exit_code - 128  # all that this one has started have ended so
        if _Told.signum is None or isinstance(error, Interrupted):
            raise
        # What it interrupted may have made another error of it, as a process does that waits for one that has ended.
        raise Interrupted(_Told.signum, _Told.kept) from error
    finally:
        _Told.program = False
        for signum, handler in before.items():
            signal.signal(signum, handler)


def raise_if_told() -> None:
    """Ends a run that was told to end.

    Raises:
        Interrupted: If it was.
    """
    if _Told.signum is not None:
        raise Interrupted(_Told.signum, _Told.kept)


def _on_signal(signum: int, frame: FrameType | None = None) -> None:
    now = time.monotonic()
    if _Told.signum is None:
        _Told.signum, _Told.since = signum, now
        if not _Told.training:
            raise Interrupted(signum)
    elif now - _Told.since > _SAME:
        os._exit(128 + signum)


class SignalConnector(_SignalConnector):
    """Lightning's handlers of signals, which act after the batch.

    Lightning's own handler of SIGTERM waits for the other processes within the handler, which they do not expect at
    that point: two of nine runs of two processes never ended. That of SLURM's warning saves a checkpoint there, and
    waits as well.
    """

    def _sigterm_notifier_fn(self, signum: int, frame: FrameType | None) -> None:
        _on_signal(signum)

    def _slurm_sigusr_handler_fn(self, signum: int, frame: FrameType | None) -> None:
        _Told.requeue = True
        _on_signal(signum)

    def requeue(self, signum: int) -> str:
        """Saves a checkpoint and has SLURM start the job again, as Lightning does; returns the checkpoint's file.

        Args:
            signum: The signal that asked for it.
        """
        path = self.trainer._checkpoint_connector.hpc_save_path(self.trainer.default_root_dir)
        super()._slurm_sigusr_handler_fn(signum, None)  # type: ignore[arg-type]
        return str(relative(path))


class Interruption(Callback):
    """Ends a training that was told to end after its batch, in all processes together, with ``last.ckpt``.

    The checkpoint is of the end of an optimiser's step and, where a validation is due then, of the validation.
    """

    agreed = False
    """Whether all processes know that they are to end."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the signals of a process that was spawned."""
        if multiprocessing.parent_process() is not None:
            for signum in _SIGNALS:
                signal.signal(signum, _on_signal)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the end of a batch."""
        _Told.training = True

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Asks all processes whether one was told to end."""
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            self.agreed = self._one_was_told(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal ends the run at once; one that came since the last batch ends it now.

        Raises:
            Interrupted: If there was one.
        """
        _Told.training = False
        if self._one_was_told(trainer):
            raise_if_told()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the processes that this one has started, unless all end together."""
        _Told.training = False
        launcher = trainer.strategy.launcher
        if launcher is not None and not self.agreed:
            launcher.kill(signal.SIGTERM)
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.procs.clear()  # Lightning kills this process, too, where it finds that one of them has ended

    def end(self, trainer: Trainer) -> None:
        """Saves ``last.ckpt``, or has the job requeued, and ends the training, in all processes together.

        Raises:
            Interrupted: Always.
        """
        signum, _Told.training = _Told.signum or signal.SIGTERM, False
        connector = trainer._signal_connector
        if trainer.strategy.reduce_boolean_decision(_Told.requeue, all=False) and isinstance(
            connector, SignalConnector
        ):
            _Told.kept = connector.requeue(signum)
        else:
            _Told.kept = _save(trainer)
        if not _Told.program:
            _Told.signum, _Told.requeue = None, False  # who called may catch it and go on
        raise Interrupted(signum, _Told.kept)

    @staticmethod
    def _one_was_told(trainer: Trainer) -> bool:
        told: bool = trainer.strategy.reduce_boolean_decision(_Told.signum is not None, all=False)
        if told and _Told.signum is None:
            _Told.signum, _Told.since = signal.SIGTERM, time.monotonic()  # another process was
        return told


def _save(trainer: Trainer) -> str | None:
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    # That of the last epoch, where there is one.
    for callback in sorted(callbacks, key=lambda callback: callback.monitor is not None):
        if callback.dirpath is not None:
            path = Path(callback.dirpath) / "last.ckpt"
            if callback._last_checkpoint_saved != str(path) or callback._last_global_step_saved != trainer.global_step:
                trainer.save_checkpoint(path)
            return str(relative(path))
    return None
