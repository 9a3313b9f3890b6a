"""The command line."""

import torch
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import datamodules  # noqa: F401  so that short class names resolve
import models  # noqa: F401
from rbp_lightning.checkpoints import NamedCheckpoint
from rbp_lightning.cli_errors import one_line_errors, refused_arguments
from rbp_lightning.estimators import GradientEstimator
from rbp_lightning.save_config import SaveConfigWithLogs


class RBPLightningCLI(LightningCLI):
    """LightningCLI with the gradient estimator as an argument of its own."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--estimator``."""
        parser.add_lightning_class_args(GradientEstimator, "estimator", subclass_mode=True)
        parser.set_defaults({"estimator": {"class_path": "rbp_lightning.NeumannRBP"}})

    def _parse_ckpt_path(self) -> None:
        # In place of Lightning's, which takes the estimator for an argument of the model and does not say what is
        # wrong with a file. When fitting, "last" is the newest checkpoint if there is one.
        subcommand, config = self.config.subcommand, self.config[self.config.subcommand]
        path, self.checkpoint = config.get("ckpt_path"), None
        if path is not None and "://" not in path and (subcommand, path) not in (("fit", "last"), ("fit", "hpc")):
            self.checkpoint = NamedCheckpoint(path)
            saved = {subcommand: {"model": self.checkpoint.model_config(config.model)}}
            self.config = self.parser.parse_object(saved, self.config)

    def instantiate_classes(self) -> None:
        """Makes the objects; refuses a checkpoint of another model before anything is run or written."""
        with refused_arguments(self.config[self.subcommand]):
            super().instantiate_classes()
        if self.checkpoint is not None:
            self.checkpoint.check_parameters(self.model)

    def after_fit(self) -> None:
        """Prints the last metrics, and where the logs and the best checkpoint are."""
        log_dir = self.trainer.log_dir  # every rank has to ask
        if self.trainer.is_global_zero:
            for name, value in sorted(self.trainer.callback_metrics.items()):
                print(f"{name}: {float(value):.4g}")
            print(f"Logs: {log_dir}")
            if best := getattr(self.trainer.checkpoint_callback, "best_model_path", None):
                print(f"Best checkpoint: {best}")


def main(args: ArgsType = None) -> None:
    """Runs the command line, with ``args`` in place of the command line's arguments where they are given."""
    # An abbreviation would turn a misspelt option into another one.
    strict = {"exit_on_error": False, "allow_abbrev": False}
    parsers = {**strict, **dict.fromkeys(LightningCLI.subcommands(), strict)}
    with one_line_errors():
        RBPLightningCLI(None, None, SaveConfigWithLogs, args=args, seed_everything_default=0, parser_kwargs=parsers)
        # Lightning leaves gloo's process group to the interpreter's exit, which aborts at times.
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
