"""The folders of runs: the newest checkpoint in them, and where the results of a checkpoint go."""

import re
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from rbp_lightning.errors import UserError

_FOLDER_LOGGERS = [f"lightning.pytorch.loggers.{logger.__name__}" for logger in (TensorBoardLogger, CSVLogger)]


def newest_checkpoint(trainer: Namespace, name: str) -> Path:
    """Finds the newest checkpoint with a given name among the runs of a Trainer's configuration.

    Args:
        trainer: The Trainer's configuration.
        name: ``last`` or ``best``.

    Raises:
        UserError: If there is none.
    """
    folder = _runs(trainer)
    depths = ("checkpoints", "*/checkpoints", "*/*/checkpoints")  # of a run, of versions, and of named versions
    found = [path for depth in depths for path in folder.glob(f"{depth}/{name}*.ckpt")]
    if not found:
        raise UserError(
            f"ckpt_path={name!r}: no run under {folder} has a {name}.ckpt: train first, or give a checkpoint's path."
        )
    return max(found, key=lambda path: path.stat().st_mtime)


def own_checkpoint(trainer: Namespace) -> Path | None:
    """Finds the checkpoint from which a run resumes if the same command starts it again.

    Args:
        trainer: The Trainer's configuration.

    Returns:
        The newer of the run's ``last.ckpt`` and the one saved before SLURM requeued it; ``None`` if there is neither.

    Raises:
        UserError: If the run would get a new folder each time.
    """
    logger = trainer.logger[0] if isinstance(trainer.logger, list) and trainer.logger else trainer.logger
    if isinstance(logger, Namespace):
        fixed = (logger.get("init_args") or {}).get("version") is not None
    else:
        fixed = logger is False and trainer.default_root_dir is not None
    if not fixed:
        raise UserError(
            "ckpt_path='auto' needs a folder that stays the same whenever this run is started: set "
            "--trainer.logger.version to a name or, without a logger, set --trainer.default_root_dir."
        )
    last = _runs(trainer) / "checkpoints" / "last.ckpt"
    found = [path for path in (last, requeued_checkpoint(trainer)) if path is not None and path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def requeued_checkpoint(trainer: Namespace) -> Path | None:
    """Finds the newest checkpoint that Lightning saved before SLURM requeued a job.

    Args:
        trainer: The Trainer's configuration.
    """
    folder = Path(trainer.default_root_dir or ".")
    versions = {one: re.fullmatch(r"hpc_ckpt_(\d+)", one.stem) for one in folder.glob("hpc_ckpt_*.ckpt")}
    saved = {int(version[1]): one for one, version in versions.items() if version}
    return saved[max(saved)] if saved else None


def keep_results(trainer: Namespace, subcommand: str, checkpoint: str | None) -> None:
    """Makes the loggers write into a folder named after the subcommand, inside the folder of the checkpoint's run.

    Without a checkpoint, that folder is beside the runs. Loggers that have a version, or do not log into a folder, are
    not changed.

    Args:
        trainer: The Trainer's configuration, which is changed.
        subcommand: The subcommand, other than ``fit``.
        checkpoint: The checkpoint's file, if any.
    """
    run = None if checkpoint is None else str(_run_of(Path(checkpoint)))
    if trainer.logger is None or trainer.logger is True:
        folder = run or str(_runs(trainer))
        arguments = {"save_dir": folder, "name": "", "version": subcommand}
        trainer.logger = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": arguments}
        return
    for logger in trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]:
        if logger and logger.class_path in _FOLDER_LOGGERS and logger.init_args.version is None:
            logger.init_args.version = subcommand
            if run is not None:
                logger.init_args.save_dir, logger.init_args.name = run, ""


def _runs(trainer: Namespace) -> Path:
    logger = trainer.logger[0] if isinstance(trainer.logger, list) and trainer.logger else trainer.logger
    root = Path(trainer.default_root_dir or ".")
    if not isinstance(logger, Namespace):
        return root if logger is False else root / "lightning_logs"
    arguments = logger.get("init_args") or {}
    version = arguments.get("version")
    version = f"version_{version}" if isinstance(version, int) else version
    return Path(arguments.get("save_dir") or root, arguments.get("name") or "", version or "")


def _run_of(checkpoint: Path) -> Path:
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
