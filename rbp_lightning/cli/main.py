"""The command line."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden

from rbp_lightning.checkpoint_file import refuse_unsafe_loading
from rbp_lightning.cli.checkpointing import Checkpointing
from rbp_lightning.cli.checkpoints import NamedCheckpoint, checkpoint_path
from rbp_lightning.cli.claims import Claims
from rbp_lightning.cli.class_list import print_class_list
from rbp_lightning.cli.config_file import YAML, ConfigParser
from rbp_lightning.cli.explain import explain, missing_package
from rbp_lightning.cli.help import PlainHelp, arrange
from rbp_lightning.cli.mistakes import find_mistake, find_user_error
from rbp_lightning.cli.processes import leave_process_group
from rbp_lightning.cli.replaced_callbacks import warn_of_replaced_callbacks
from rbp_lightning.cli.run_folder import keep_results
from rbp_lightning.cli.save_config import SaveConfigWithLogs
from rbp_lightning.cli.saved_arguments import option_name
from rbp_lightning.cli.summary import print_once, print_results, print_training
from rbp_lightning.cli.trainer import RunTrainer, check_trainer
from rbp_lightning.diagnostics.policy import FailurePolicy
from rbp_lightning.errors import UserError
from rbp_lightning.estimators import GradientEstimator
from rbp_lightning.overview import program
from rbp_lightning.version import __version__

_TRUST = (
    "Whether classes, paths and strings among the model's arguments in a checkpoint replace those of the config. The "
    "classes that the file names are then imported and instantiated, so whoever made the file can run any code as you: "
    "use it only for your own files."
)

# With abbreviations, a misspelt option could be taken for another one.
_STRICT = {"exit_on_error": False, "allow_abbrev": False, "parser_mode": YAML, "formatter_class": PlainHelp}


_LOADERS = {
    "fit": "train_dataloader",
    "audit": "train_dataloader",
    "validate": "val_dataloader",
    "test": "test_dataloader",
    "predict": "predict_dataloader",
}
"""The dataloader hook of each subcommand."""


class RBPLightningCLI(LightningCLI):
    """``LightningCLI`` with ``audit`` and options for the estimator, the failure policy and checkpoints.

    Args:
        args: As for ``LightningCLI``.
        kwargs: As for ``LightningCLI``.

    Raises:
        ArgumentError: If an option is wrong.
        UserError: If a value or a file is wrong.
    """

    claims: Claims | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        parsers: dict[str, Any] = {**_STRICT, "version": __version__, "prog": program()}
        parsers |= {name: dict(_STRICT) for name in self.subcommands()}  # one dict each: descriptions differ
        defaults = {
            "save_config_callback": SaveConfigWithLogs,
            "trainer_class": RunTrainer,
            "parser_class": ConfigParser,
            "seed_everything_default": 0,
            "parser_kwargs": parsers,
        }
        given = sys.argv[1:] if kwargs.get("args") is None else kwargs["args"]
        self._words: list[str] = given if isinstance(given, list) else []
        self._named = self._words[0] if self._words and self._words[0] in self.subcommands() else None
        super().__init__(*args, **{**defaults, **kwargs})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands and ``audit``."""
        return {**LightningCLI.subcommands(), "audit": {"model", "train_dataloaders", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Adds ``--debug``, for the help; ``console`` looks for it itself, since parsing may fail."""
        parser = super().init_parser(**kwargs)
        parser.add_argument("--debug", action=_Flag, help="Show the traceback of every error (as RBP_DEBUG=1 does).")
        return parser

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        if self._named not in (None, subcommand):
            # Filling a parser is slow, and the main parser needs only the names of the other subcommands.
            self._subcommand_method_arguments[subcommand] = []
            return self.init_parser(**kwargs)
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if "verbose" in self._subcommand_method_arguments[subcommand]:
            parser.set_defaults(verbose=False)  # Lightning's table cuts long names and numbers; a summary follows
        cast(ConfigParser, parser).help_groups = arrange(parser, subcommand)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--estimator``, ``--policy``, ``--checkpoint`` and ``--trust_checkpoint``."""
        parser.add_lightning_class_args(GradientEstimator, "estimator", subclass_mode=True)
        parser.add_lightning_class_args(FailurePolicy, "policy")
        parser.add_class_arguments(Checkpointing, "checkpoint")
        parser.add_argument("--trust_checkpoint", type=bool, default=False, help=_TRUST)
        parser.set_defaults({"estimator": {"class_path": "rbp_lightning.Implicit"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the arguments; an error explains in one line what is wrong.

        Raises:
            ArgumentError: If an option is wrong.
        """
        options = self._parser(next((word for word in self._words if word in self.subcommands()), "fit"))
        print_class_list(self._words, options)
        try:
            super().parse_arguments(parser, args)
        except argparse.ArgumentError as error:
            # Parsing imports the user's modules.
            if own := find_user_error(error):
                raise own from None
            raise argparse.ArgumentError(None, explain(str(error), options)) from error

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:  # Lightning's message does not name the option
            raise UserError(f"--seed_everything: {error}.") from error

    def _parse_ckpt_path(self) -> None:
        # Lightning's version takes the estimator for a model argument, and does not explain a bad file.
        subcommand, config = self.config.subcommand, self.config[self.config.subcommand]
        warn_of_replaced_callbacks(config.config or [], config.trainer)
        refuse_unsafe_loading(config.get("weights_only"))
        if config.ckpt_path == "auto" and subcommand != "fit":
            raise UserError(f"ckpt_path='auto' is for fit alone: name the checkpoint to {subcommand}.")
        config.ckpt_path = path = checkpoint_path(config)
        self.checkpoint = None if path is None else NamedCheckpoint(path, trusted=config.trust_checkpoint)
        if subcommand != "fit":
            keep_results(config.trainer, subcommand, path)
        if self.checkpoint is not None:
            text = self._parser(subcommand).dump(config, format="json", skip_link_targets=False, skip_unset=False)
            # A continued run stays the one that it was; an evaluation may differ, such as by deeper solves.
            explicit = () if subcommand == "fit" else _model_options(self._words)
            model = self.checkpoint.model_config(json.loads(text)["model"], explicit)
            if model is not None:
                self._replace_model(model, self.checkpoint.source)

    def _replace_model(self, model: dict[str, Any], source: str) -> None:
        subcommand = self.config.subcommand
        try:
            self.config = self.parser.parse_object({subcommand: {"model": model}}, self.config)
        except argparse.ArgumentError as error:
            if own := find_user_error(error):
                raise own from None
            reason = explain(str(error), self._parser(subcommand))
            raise UserError(f"{source} does not fit its model's arguments: {reason}") from error

    def instantiate_classes(self) -> None:
        """Instantiates the classes, and checks that the checkpoint fits the model before anything runs.

        Raises:
            UserError: If a value is invalid, or the checkpoint does not fit.
        """
        config = self.config[self.subcommand]
        if config.get("lr_scheduler") and not config.get("optimizer"):
            raise UserError("--lr_scheduler is ignored without --optimizer: give both.")
        try:
            self._instantiate_classes()
        except BaseException:
            self._release_folders()
            raise

    def _instantiate_classes(self) -> None:
        try:
            with nullcontext() if self.checkpoint is None else self.checkpoint.instantiating_model():
                super().instantiate_classes()
        except (ValueError, TypeError, OSError) as error:
            if missing := missing_package(str(error)):
                raise UserError(missing) from None
            # jsonargparse wraps what a constructor raises.
            mistake = find_mistake(error)
            if inner := find_user_error(error) if mistake is None else mistake:
                raise inner from None
            raise
        if self.checkpoint is not None:
            self.checkpoint.check_parameters(self.model)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Instantiates the Trainer, with the run's checkpoint callbacks.

        Raises:
            UserError: If there is no data.
        """
        loader = _LOADERS[str(self.subcommand)]
        if self.datamodule is None and not is_overridden(loader, self.model):
            name = type(self.model).__name__
            raise UserError(f"{name} has no {loader}: name its data, --data=NAME; --data.help lists the data modules.")
        checkpointing = self._get(self.config_init, "checkpoint")
        if self.save_config_callback is SaveConfigWithLogs:
            self.save_config_kwargs["subcommand"] = self.subcommand
        check_trainer(self._get(self.config_init, "trainer"))
        arguments = checkpointing.trainer_arguments(self._get(self.config_init, "trainer"))
        trainer = super().instantiate_trainer(**{**arguments, **kwargs})
        if trainer.is_global_zero:
            self.claims = Claims(trainer, checkpoints=self.subcommand == "fit")
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if self.checkpoint is not None:
            # Lightning takes a path that begins with "http" for an address.
            arguments["ckpt_path"] = os.path.abspath(self.checkpoint.path)
        if "weights_only" in arguments:  # Lightning loads the file once more
            arguments["weights_only"] = True
        return arguments

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            with nullcontext() if self.checkpoint is None else self.checkpoint.running():
                super()._run_subcommand(subcommand)
        finally:
            self._release_folders()

    def _release_folders(self) -> None:
        if self.claims is not None:
            self.claims.release()

    def before_fit(self) -> None:
        """Prints that no checkpoints are kept, unless they were turned off."""
        if not self.trainer.checkpoint_callbacks and self._get(self.config, "trainer").enable_checkpointing is None:
            print_once("No checkpoints are kept: set trainer.logger or trainer.default_root_dir to keep them.")

    def after_fit(self) -> None:
        """Prints the summary of the training."""
        print_training(self.trainer)

    def _print_evaluation(self) -> None:
        print_results(self.trainer, metrics=not self._get(self.config, "verbose"))

    after_validate = after_test = _print_evaluation

    def after_predict(self) -> None:
        """Prints the path of the results."""
        print_results(self.trainer)

    def after_audit(self) -> None:
        """Prints the path of the results, and which parameters were audited if no checkpoint was named."""
        print_results(self.trainer)
        if self.checkpoint is None:
            print_once("These are the gradients of the initial parameters: --ckpt_path names a checkpoint to audit.")


def _model_options(words: Sequence[str]) -> list[str]:
    """Names of the model's arguments among the words of a command line.

    Example:
        >>> _model_options(["test", "--model.cell.init_args.dims=2", "--model.dict_kwargs.bound", "0.9", "--model=Net"])
        ['cell.dims', 'bound']
    """
    options = [word.partition("=")[0] for word in words]
    return [option_name(option[len("--model.") :]) for option in options if option.startswith("--model.")]


class _Flag(argparse.Action):
    """An option without a value, and without an entry in the configuration."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=kwargs.get("help"))

    def __call__(self, *_: Any, **__: Any) -> None:
        pass


def main(args: ArgsType = None, **options: Any) -> RBPLightningCLI:
    """Runs the command line from Python.

    Args:
        args: The arguments; ``None`` for those of the process.
        options: Other arguments of ``RBPLightningCLI``.

    Returns:
        The command line, with its ``trainer``, ``model`` and ``datamodule``.

    Raises:
        ArgumentError: If an option is wrong.
        UserError: If a value or a file is wrong.
    """
    with warnings.catch_warnings():
        # Lightning 2.6's own use of PyTorch 2.13.
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec")
        # A resumed run writes its checkpoints into its own folder.
        warnings.filterwarnings("ignore", "The dirpath has changed")
        # --optimizer is meant to override it.
        warnings.filterwarnings("ignore", ".*configure_optimizers. will be overridden")
        # ExactResume continues with the remaining batches of the epoch.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
        # An evaluation uses the averaged weights, as it should.
        warnings.filterwarnings("ignore", "You're using the WeightAveraging callback, but loading a checkpoint outside")
        cli = RBPLightningCLI(args=args, **options)
    leave_process_group()
    return cli
