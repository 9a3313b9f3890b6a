"""The command line."""

import torch
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import datamodules  # noqa: F401  so that short class names resolve
import models  # noqa: F401
from rbp_lightning.checkpoints import check_parameters, model_arguments, read_checkpoint
from rbp_lightning.cli_errors import one_line_errors
from rbp_lightning.estimators import GradientEstimator


class RBPLightningCLI(LightningCLI):
    """LightningCLI with the gradient estimator as an argument of its own."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--estimator``."""
        parser.add_lightning_class_args(GradientEstimator, "estimator", subclass_mode=True)
        parser.set_defaults({"estimator": {"class_path": "rbp_lightning.NeumannRBP"}})

    def _parse_ckpt_path(self) -> None:
        # In place of Lightning's, which takes the estimator for an argument of the model and does not say what is
        # wrong with a file.
        config = self.config[self.config.subcommand]
        path, model = config.get("ckpt_path"), config.model
        self.checkpoint = None
        if path is not None and path not in ("best", "last", "hpc") and ":" not in path:
            self.checkpoint = read_checkpoint(path)
            arguments = model_arguments(path, self.checkpoint, model.class_path)
            saved = {"class_path": model.class_path, "init_args": arguments}
            self.config = self.parser.parse_object({self.config.subcommand: {"model": saved}}, self.config)

    def after_instantiate_classes(self) -> None:
        """Refuses a checkpoint of another model before anything is run or written."""
        if self.checkpoint is not None:
            check_parameters(self.config[self.subcommand].ckpt_path, self.checkpoint, self.model)
            self.checkpoint = None

    def after_fit(self) -> None:
        """Prints the last metrics, and where the logs and the best checkpoint are."""
        log_dir = self.trainer.log_dir  # every rank has to ask
        if self.trainer.is_global_zero:
            for name, value in sorted(self.trainer.callback_metrics.items()):
                print(f"{name}: {float(value):.4g}")
            print(f"Logs: {log_dir}")
            print(f"Best checkpoint: {getattr(self.trainer.checkpoint_callback, 'best_model_path', None)}")


def main(args: ArgsType = None) -> None:
    """Runs the command line, with ``args`` in place of the command line's arguments where they are given."""
    # An abbreviation would turn a misspelt option into another one.
    strict = {"exit_on_error": False, "allow_abbrev": False}
    parsers = {**strict, **dict.fromkeys(LightningCLI.subcommands(), strict)}
    with one_line_errors():
        RBPLightningCLI(args=args, seed_everything_default=0, parser_kwargs=parsers)
        # Lightning leaves gloo's process group to the interpreter's exit, which aborts at times.
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
