"""The command line."""

import gc
from typing import Any

import torch
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import datamodules  # noqa: F401  so that short class names resolve
import models  # noqa: F401
from rbp_lightning.audit import AuditTrainer
from rbp_lightning.cli.checkpoints import NamedCheckpoint
from rbp_lightning.cli.errors import STRICT, one_line_errors, refused_arguments
from rbp_lightning.cli.save_config import SaveConfigWithLogs
from rbp_lightning.cli.summary import print_summary
from rbp_lightning.estimators import GradientEstimator
from rbp_lightning.policy import FailurePolicy


class RBPLightningCLI(LightningCLI):
    """LightningCLI with the gradient estimator and the policy as arguments of their own, and ``audit``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"trainer_class": AuditTrainer, **kwargs})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands and ``audit``."""
        return {**LightningCLI.subcommands(), "audit": {"model", "train_dataloaders", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--estimator`` and ``--policy``."""
        parser.add_lightning_class_args(GradientEstimator, "estimator", subclass_mode=True)
        parser.add_lightning_class_args(FailurePolicy, "policy")
        parser.set_defaults({"estimator": {"class_path": "rbp_lightning.NeumannRBP"}})

    def _parse_ckpt_path(self) -> None:
        # Lightning's takes the estimator for an argument of the model and does not say what is wrong with a file.
        subcommand, config = self.config.subcommand, self.config[self.config.subcommand]
        self.checkpoint = NamedCheckpoint.of(subcommand, config.get("ckpt_path"))
        if self.checkpoint is not None:
            model = self.checkpoint.model_config(config.model)
            self.config = self.parser.parse_object({subcommand: {"model": model}}, self.config)

    def instantiate_classes(self) -> None:
        """Makes the objects; refuses a checkpoint of another model before anything is run."""
        with refused_arguments(self.config[self.subcommand]):
            super().instantiate_classes()
        if self.checkpoint is not None:
            self.checkpoint.check_parameters(self.model)

    def after_fit(self) -> None:
        """Prints what came out."""
        print_summary(self.trainer)


def main(args: ArgsType = None) -> None:
    """Runs the command line, with ``args`` in place of the command line's arguments where they are given."""
    parsers = {**STRICT, **{name: dict(STRICT) for name in RBPLightningCLI.subcommands()}}  # each its description
    with one_line_errors():
        RBPLightningCLI(None, None, SaveConfigWithLogs, args=args, seed_everything_default=0, parser_kwargs=parsers)
        if torch.distributed.is_initialized():
            # Lightning leaves the process group to the interpreter's exit, where gloo's threads abort it at times.
            torch.distributed.destroy_process_group()
            gc.collect()  # ends the threads: cycles through the trainer still hold the group
