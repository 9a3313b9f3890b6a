"""The command line."""

import sys

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import datamodules  # noqa: F401  so that short class names resolve
import models  # noqa: F401
from rbp_lightning.checkpoints import model_hyperparameters
from rbp_lightning.errors import UserError
from rbp_lightning.estimators import GradientEstimator


class RBPLightningCLI(LightningCLI):
    """LightningCLI with the gradient estimator as an argument of its own."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--estimator``."""
        parser.add_lightning_class_args(GradientEstimator, "estimator", subclass_mode=True, required=False)
        parser.set_defaults({"estimator": {"class_path": "rbp_lightning.NeumannRBP"}})

    def _parse_ckpt_path(self) -> None:
        # In place of Lightning's, which takes the estimator for an argument of the model and does not say what is
        # wrong with a file.
        subcommand = self.config.subcommand
        path, model = (self.config[subcommand].get(key) for key in ("ckpt_path", "model"))
        if path is not None and path not in ("best", "last", "hpc") and ":" not in path:
            saved = {"class_path": model.class_path, "init_args": model_hyperparameters(path, model.class_path)}
            self.config = self.parser.parse_object({subcommand: {"model": saved}}, self.config)

    def after_fit(self) -> None:
        """Prints the last metrics, and where the logs and the best checkpoint are."""
        if self.trainer.is_global_zero:
            for name, value in sorted(self.trainer.callback_metrics.items()):
                print(f"{name}: {float(value):.4g}")
            print(f"Logs: {self.trainer.log_dir}")
            print(f"Best checkpoint: {getattr(self.trainer.checkpoint_callback, 'best_model_path', None)}")


def main(args: ArgsType = None) -> None:
    """Runs the command line.

    A mistake of the user's is told in one line, with exit status 1, or 2 where an option is wrong.

    Args:
        args: Arguments in place of the command line's.
    """
    try:
        RBPLightningCLI(args=args, seed_everything_default=0, save_config_kwargs={"overwrite": True})
    except (UserError, MisconfigurationException) as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        if "Error(s) in loading state_dict" not in str(error):
            raise
        sys.exit(f"error: the checkpoint is of another model. {error}")
