"""The command line."""

import argparse
import gc
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from rbp_lightning.cli.checkpointing import Checkpointing
from rbp_lightning.cli.checkpoints import NamedCheckpoint
from rbp_lightning.cli.class_list import print_class_list
from rbp_lightning.cli.errors import find_mistake, one_line_errors, root_cause, users_own
from rbp_lightning.cli.explain import explain
from rbp_lightning.cli.replaced_callbacks import warn_of_replaced_callbacks
from rbp_lightning.cli.run_folder import check_writable, keep_results, newest_checkpoint
from rbp_lightning.cli.save_config import SaveConfigWithLogs
from rbp_lightning.cli.summary import print_once, print_results, print_training
from rbp_lightning.cli.trainer import RunTrainer
from rbp_lightning.diagnostics.policy import FailurePolicy
from rbp_lightning.errors import UserError
from rbp_lightning.estimators import GradientEstimator
from rbp_lightning.version import __version__

_DESCRIPTION = "Trains, evaluates and audits networks that run to a fixed point."

# An abbreviation would turn a misspelt option into another one.
_STRICT = {"exit_on_error": False, "allow_abbrev": False}


class RBPLightningCLI(LightningCLI):
    """LightningCLI with ``audit`` and with arguments of their own for estimator, policy and checkpoints.

    Args:
        args: As for ``LightningCLI``.
        kwargs: As for ``LightningCLI``.

    Raises:
        ArgumentError: If an option is wrong.
        UserError: If a value or a file is.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        parsers: dict[str, Any] = {**_STRICT, "version": __version__, "description": _DESCRIPTION}
        parsers |= {name: dict(_STRICT) for name in self.subcommands()}  # each gets a description of its own
        if Path(sys.argv[0]).name == "__main__.py":
            parsers["prog"] = "python -m rbp_lightning"
        defaults = {
            "save_config_callback": SaveConfigWithLogs,
            "trainer_class": RunTrainer,
            "seed_everything_default": 0,
            "parser_kwargs": parsers,
        }
        super().__init__(*args, **{**defaults, **kwargs})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands and ``audit``."""
        return {**LightningCLI.subcommands(), "audit": {"model", "train_dataloaders", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Adds ``--debug``, which ``console`` looks for itself since parsing may be what fails."""
        parser = super().init_parser(**kwargs)
        parser.add_argument("--debug", action=_Flag, help="Show the traceback of every error (as RBP_DEBUG=1 does).")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--estimator``, ``--policy`` and ``--checkpoint``."""
        parser.add_lightning_class_args(GradientEstimator, "estimator", subclass_mode=True)
        parser.add_lightning_class_args(FailurePolicy, "policy")
        parser.add_class_arguments(Checkpointing, "checkpoint")
        parser.set_defaults({"estimator": {"class_path": "rbp_lightning.NeumannRBP"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the arguments; says what is wrong with them in one line.

        Raises:
            ArgumentError: If an option is wrong.
        """
        given = sys.argv[1:] if args is None else args
        words = given if isinstance(given, list) else []
        options = self._parser(next((word for word in words if word in self.subcommands()), "fit"))
        print_class_list(words, options)
        try:
            super().parse_arguments(parser, args)
        except argparse.ArgumentError as error:
            # Parsing imports the user's modules.
            if own := users_own(error):
                raise own from None
            raise argparse.ArgumentError(None, explain(str(error), options)) from error

    def _parse_ckpt_path(self) -> None:
        # Lightning's takes the estimator for an argument of the model and does not say what is wrong with a file.
        subcommand, config = self.config.subcommand, self.config[self.config.subcommand]
        warn_of_replaced_callbacks(config.config or [], config.trainer)
        if config.ckpt_path in ("last", "best"):
            config.ckpt_path = str(newest_checkpoint(config.trainer, config.ckpt_path))
            print_once(f"Checkpoint: {config.ckpt_path}")
        local = config.ckpt_path is not None and "://" not in config.ckpt_path and config.ckpt_path != "hpc"
        self.checkpoint = NamedCheckpoint(config.ckpt_path) if local else None
        if subcommand != "fit":
            keep_results(config.trainer, subcommand, config.ckpt_path if local else None)
        if self.checkpoint is not None:
            model = self.checkpoint.model_config(config.model)
            self.config = self.parser.parse_object({subcommand: {"model": model}}, self.config)

    def instantiate_classes(self) -> None:
        """Makes the objects; refuses a checkpoint of another model before anything is run.

        Raises:
            UserError: If a value is refused, or a checkpoint does not fit.
        """
        config = self.config[self.subcommand]
        if config.get("lr_scheduler") and not config.get("optimizer"):
            raise UserError("--lr_scheduler is ignored without --optimizer: give both.")
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, OSError) as error:
            # jsonargparse wraps what a constructor raises.
            if inner := find_mistake(error) or users_own(error):
                raise inner from None
            if isinstance(error, TypeError):
                raise
            raise UserError(str(root_cause(error))) from error  # a value that PyTorch or Lightning refuses
        if self.checkpoint is not None:
            self.checkpoint.check_parameters(self.model)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the Trainer, with the run's checkpoints."""
        checkpointing = self._get(self.config_init, "checkpoint")
        if self.save_config_callback is SaveConfigWithLogs:
            self.save_config_kwargs["subcommand"] = self.subcommand
        arguments = checkpointing.trainer_arguments(self._get(self.config_init, "trainer"))
        trainer = super().instantiate_trainer(**{**arguments, **kwargs})
        check_writable(trainer)
        return trainer

    def before_fit(self) -> None:
        """Says that nothing is kept, where that was not asked for."""
        if not self.trainer.checkpoint_callbacks and self._get(self.config, "trainer").enable_checkpointing is None:
            print_once("No checkpoints are kept: set trainer.logger or trainer.default_root_dir to keep them.")

    def after_fit(self) -> None:
        """Prints what came out."""
        print_training(self.trainer)

    def _print_results(self) -> None:
        print_results(self.trainer)

    after_validate = after_test = after_predict = after_audit = _print_results


class _Flag(argparse.Action):
    """An option without a value that leaves nothing in the configuration."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=kwargs.get("help"))

    def __call__(self, *_: Any, **__: Any) -> None:
        pass


def main(args: ArgsType = None) -> RBPLightningCLI:
    """Runs the command line from Python.

    Args:
        args: The arguments; ``None`` takes those of the process.

    Returns:
        The command line, with its ``trainer``, ``model`` and ``datamodule``.

    Raises:
        ArgumentError: If an option is wrong.
        UserError: If a value or a file is.
    """
    with warnings.catch_warnings():
        # Lightning 2.6 says it of itself with PyTorch 2.13.
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec")
        # A run keeps its own checkpoints, also where it continues another one.
        warnings.filterwarnings("ignore", "The dirpath has changed")
        # It is what --optimizer is given for.
        warnings.filterwarnings("ignore", ".*configure_optimizers. will be overridden")
        cli = RBPLightningCLI(args=args)
    if torch.distributed.is_initialized():
        # Lightning leaves the process group to the interpreter's exit, where gloo's threads abort it at times.
        torch.distributed.destroy_process_group()
        gc.collect()  # ends the threads: cycles through the trainer still hold the group
    return cli


def console(args: list[str] | None = None) -> None:
    """Runs the command line for a shell: a mistake in the input is one line and an exit status.

    Args:
        args: The arguments; ``None`` takes those of the process.
    """
    # A console script has its own folder there, not the one where the user's modules are.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with one_line_errors(debug="--debug" in (sys.argv if args is None else args)):
        main(args)
