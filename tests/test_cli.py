"""The command line, in this process and through the console script."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models import HopfieldMemory

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "hopfield.yaml"


TINY = [
    f"--config={CONFIG}",
    "--model.num_hidden=16",
    "--data.train_draws=2",
    "--data.eval_draws=1",
    "--trainer.max_epochs=2",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
RUN = Path("logs/hopfield/version_0")


def test_fit_leaves_checkpoints_pictures_and_curves(cli) -> None:
    status, out, err = cli("fit", *TINY, "--estimator=RBP", "--estimator.steps=7", "--estimator.solver.max_steps=30")
    assert status == 0, err
    assert f"Logs: {RUN}" in out
    assert f"Best checkpoint: {RUN}/checkpoints/best.ckpt" in out
    assert "val/exact_recall: " in out
    assert (RUN / "recall.png").is_file()
    assert f"{RUN}/recall.png" in out

    estimator = {
        "class_path": "rbp_lightning.estimators.rbp.RBP",
        "init_args": {
            "steps": 7,
            "tol": 1e-4,
            "start": "uniform",
            "seed": 0,
            "check_every": 10,
            "solver": {
                "class_path": "rbp_lightning.solvers.picard.Picard",
                "init_args": {"max_steps": 30, "tol": 1e-3, "check_every": 10},
            },
        },
    }
    for name in ("best", "last"):
        checkpoint = torch.load(RUN / f"checkpoints/{name}.ckpt", weights_only=True)
        assert checkpoint["hyper_parameters"]["estimator"] == estimator
        assert checkpoint["hyper_parameters"]["num_hidden"] == 16
    loaded = HopfieldMemory.load_from_checkpoint(RUN / "checkpoints/last.ckpt")
    assert torch.equal(
        loaded.cell.parametrizations.weight.original, checkpoint["state_dict"]["cell.parametrizations.weight.original"]
    )

    events = EventAccumulator(str(RUN), size_guidance={"images": 0, "scalars": 0}).Reload()
    assert len(events.Images("val/recall")) == 2  # one at each validation
    assert events.Images("val/recall")[0].width == 100
    for tag in ("train/loss", "train/steps", "train/residual", "val/pixel_error", "val/exact_recall", "val/steps"):
        curve = [event.value for event in events.Scalars(tag)]
        assert len(curve) >= 2
        assert all(0 <= value < 100 for value in curve)
    exact = [event.value for event in events.Scalars("val/exact_recall")]
    assert [event.value for event in events.Scalars("hp_metric")][-2:] == exact
    hparams = yaml.safe_load((RUN / "hparams.yaml").read_text())
    assert hparams["estimator"] == estimator
    plugin = events.PluginTagToContent("hparams")
    assert b"estimator/class_path" in plugin["_hparams_/session_start_info"]
    assert b"rbp_lightning.estimators.rbp.RBP" in plugin["_hparams_/session_start_info"]


def test_a_checkpoint_serves_every_subcommand_and_any_estimator(cli) -> None:
    assert cli("fit", *TINY)[0] == 0
    last = RUN / "checkpoints/last.ckpt"
    for subcommand in ("validate", "test", "predict"):
        # The checkpoint's 16 hidden units take the place of the config's 256.
        status, _, err = cli(
            subcommand, f"--config={CONFIG}", "--trainer.accelerator=cpu", f"--ckpt_path={last}", "--estimator=CGRBP"
        )
        assert status == 0, err
    status, _, err = cli("fit", *TINY, "--trainer.max_epochs=3", f"--ckpt_path={last}", "--estimator=BPTT")
    assert status == 0, err
    resumed = torch.load("logs/hopfield/version_4/checkpoints/last.ckpt", weights_only=True)
    assert resumed["epoch"] == 2
    assert resumed["hyper_parameters"]["estimator"]["class_path"].endswith("BPTT")


@pytest.mark.parametrize("name", ["BPTT", "TBPTT", "RBP", "NeumannRBP", "CGRBP"])
def test_help_of_each_estimator_lists_its_arguments(cli, name) -> None:
    status, out, _ = cli("fit", f"--estimator.help={name}")
    assert status == 0
    assert "--estimator.solver SOLVER" in out
    assert ("--estimator.steps STEPS" in out) == (name != "BPTT")


def test_print_config_can_be_run_again(cli) -> None:
    status, out, _ = cli("fit", *TINY, "--estimator=TBPTT", "--estimator.steps=3", "--print_config")
    assert status == 0
    config = yaml.safe_load(out)
    assert config["estimator"]["class_path"] == "rbp_lightning.TBPTT"
    assert config["estimator"]["init_args"]["steps"] == 3
    Path("printed.yaml").write_text(out)
    assert cli("fit", "--config=printed.yaml")[0] == 0


def test_later_configs_override_earlier_ones_and_short_names_do(cli) -> None:
    Path("change.yaml").write_text(
        "estimator: CGRBP\nmodel:\n  class_path: HopfieldMemory\n  init_args:\n    num_hidden: 3\n"
    )
    status, out, err = cli("fit", *TINY[:1], "--config=change.yaml", "--print_config")
    assert status == 0, err
    config = yaml.safe_load(out)
    assert config["estimator"]["class_path"] == "rbp_lightning.CGRBP"
    assert config["model"]["init_args"]["num_hidden"] == 3
    assert config["data"]["class_path"] == "datamodules.ImagePatterns"


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        (["--estimator=Neuman"], "AdaptiveNeumann, BPTT, CGRBP, ExactAdjoint, NeumannRBP, RBP, TBPTT"),
        (["--estimator.solver=Newton"], "Picard"),
        (["--model=Hopfield"], "CitationGNN, HopfieldMemory, HyperparameterOptimizer, LinearClassifier"),
        (
            ["--model=HyperparameterOptimizer", "--model.hyperparameters=[Weights]"],
            "ClassWeights, ExampleWeights, LabelSmoothing, WeightDecay",
        ),
    ],
)
def test_a_wrong_name_of_a_class_is_answered_by_those_that_exist(cli, arguments, known) -> None:
    status, _, err = cli("fit", f"--config={CONFIG}", *arguments)
    assert status != 0
    assert "Traceback" not in err
    (named,) = re.findall(r"Known: (.*)\.$", err, re.MULTILINE)
    # Other tests of this process may have classes of their own.
    assert set(known.split(", ")) <= set(named.split(", "))
    assert named.split(", ") == sorted(named.split(", "))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--estimator.step=3"], "Option 'step' is not accepted. Options of NeumannRBP: steps, solver."),
        (["--estimator=BPTT", "--estimator.steps=3"], "Options of BPTT: solver."),
        (["--estimator.solver.toll=3"], "Options of Picard: max_steps, tol, check_every."),
        (["--data.level_=3"], "Options of ImagePatterns: source, num_patterns,"),
        (["--trainer.max_epoch=3"], "unrecognized arguments: --trainer.max_epoch"),
        (["--nonsense=3"], "unrecognized arguments: --nonsense"),
        (["--estimator.steps=-1"], "NeumannRBP: steps=-1 must be a whole number of at least 0."),
        (["--estimator.steps=many"], "many"),
        (["--estimator.solver.tol=-1"], "Picard: tol=-1.0 must be a number in [0, inf)."),
        (["--estimator.solver.max_steps=0"], "Picard: max_steps=0 must be a whole number of at least 1."),
        (["--model.gain=0"], "gain=0.0 must be a number in (0, inf)."),
        (["--data.source=cifar"], "Literal['digits', 'mnist', 'folder']"),
        (["--data.source=mnist", "--data.data_dir=nowhere"], "Put what is missing into nowhere/mnist/raw"),
        (["--model.num_pixels=100"], "set num_pixels to 64"),
        (["--trainer.accelerator=foo"], "foo"),
        (["--trainer.strategy=foo"], "foo"),
        (["--trainer.logger.save_dir=/proc/x"], "/proc/x"),
        (["--data.source=mnist", "--data.data_dir=/proc/x"], "Put what is missing into /proc/x/mnist/raw"),
        (["--optimizer=Adam", "--optimizer.lr=-1"], "Invalid learning rate: -1.0"),
        (["--lr_scheduler=StepLR", "--lr_scheduler.step_size=3"], "--lr_scheduler is ignored without --optimizer"),
        (["--trainer.max_epochs=-1"], "the learning rate's decay needs max_epochs or max_steps"),
        (["--ckpt_path=best"], "ckpt_path='best' is not a file"),
        (["--ckpt_path=none.ckpt"], "ckpt_path='none.ckpt' is not a file"),
        (["--config=none.yaml"], "none.yaml"),
    ],
)
def test_each_mistake_gets_one_clear_error(cli, arguments, message) -> None:
    status, _, err = cli("fit", *TINY, *arguments)
    assert status in (1, 2)
    (told,) = [line for line in err.splitlines() if "error: " in line]
    assert message in told
    assert "Traceback" not in err
    assert not list(Path().rglob("*.ckpt"))


def test_a_command_without_a_config_is_told_of_one(cli) -> None:
    status, _, err = cli("fit")
    assert status == 2
    assert err.splitlines()[-1].endswith("--config configs/hopfield.yaml.")


def test_options_that_a_checkpoint_replaces_are_named(cli) -> None:
    assert cli("fit", *TINY)[0] == 0
    status, out, _ = cli("test", *TINY, f"--ckpt_path={RUN}/checkpoints/last.ckpt", "--model.gain=5")
    assert status == 0
    assert "The checkpoint's gain=2.0 takes the place of 5.0." in out
    assert "num_hidden" not in out  # the same in both


def test_a_named_newest_checkpoint_has_to_exist_outside_of_fit(cli) -> None:
    status, _, err = cli("test", *TINY, "--ckpt_path=last")
    assert (status, "ckpt_path='last' is not a file" in err) == (1, True)


def test_a_run_can_be_continued_in_its_folder_and_a_user_s_file_is_left_alone(cli) -> None:
    for epochs in (1, 2):
        status, _, err = cli("fit", *TINY, "--trainer.logger.version=here", f"--trainer.max_epochs={epochs}")
        assert status == 0, err
    assert yaml.safe_load(Path("logs/hopfield/here/config.yaml").read_text())["trainer"]["max_epochs"] == 2
    last = "logs/hopfield/here/checkpoints/last.ckpt"
    assert cli("test", *TINY, "--trainer.logger.version=here", f"--ckpt_path={last}")[0] == 0
    assert "verbose" not in yaml.safe_load(Path("logs/hopfield/here/config.yaml").read_text())  # the training's own
    Path("config.yaml").write_text("the user's")
    assert cli("fit", *TINY, "--trainer.logger=false", "--trainer.callbacks=[]")[0] == 0
    assert Path("config.yaml").read_text() == "the user's"


class WithoutArguments(HopfieldMemory):
    """A model that takes none, with a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__(num_hidden=4)

    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"a": 1}


def test_a_checkpoint_of_a_model_without_arguments(cli, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    small = ["--model=tests.test_cli.WithoutArguments", "--data=ImagePatterns"]
    small += [option for option in TINY if not option.startswith(("--model", "--config"))]
    assert cli("fit", *small, "--trainer.default_root_dir=run")[0] == 0
    (last,) = Path("run").rglob("*.ckpt")
    status, _, err = cli("test", *small, f"--ckpt_path={last}")
    assert status == 0, err


class OtherModel(LightningModule):
    """A model with other parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


def test_bad_checkpoints_are_refused(cli) -> None:
    assert cli("fit", *TINY)[0] == 0
    good = (RUN / "checkpoints/last.ckpt").read_bytes()
    checkpoint = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    Path("cut.ckpt").write_bytes(good[: len(good) // 2])
    middle = len(good) // 2
    flipped = bytes(byte ^ 255 for byte in good[middle : middle + 64])
    Path("flipped.ckpt").write_bytes(good[:middle] + flipped + good[middle + 64 :])
    Path("text.ckpt").write_text("no checkpoint")
    torch.save({"state_dict": {}}, "weights.ckpt")
    torch.save([1, 2], "list.ckpt")
    torch.save({**checkpoint, "state_dict": OtherModel().state_dict()}, "other.ckpt")
    renamed = {**checkpoint["hyper_parameters"], "_class_path": "models.Another"}
    torch.save({**checkpoint, "hyper_parameters": renamed}, "renamed.ckpt")
    for name, message in {
        "cut": "is corrupt, or is no checkpoint",
        "flipped": "is corrupt, or is no checkpoint",
        "weights": "is corrupt, or is no checkpoint",
        "text": "is corrupt, or is no checkpoint",
        "list": "is corrupt, or is no checkpoint",
        "other": "weight.original is missing there and (144, 144) in HopfieldMemory",
        "renamed": "is a checkpoint of models.Another, not of models.HopfieldMemory",
    }.items():
        for subcommand in ("fit", "predict"):
            status, _, err = cli(subcommand, *TINY, f"--ckpt_path={name}.ckpt")
            assert (status, message in err) == (1, True), err
    assert len(list(Path("logs").rglob("*.ckpt"))) == 2


def test_an_error_that_is_not_the_user_s_is_not_hidden(cli, monkeypatch) -> None:
    def broken(self: HopfieldMemory, *_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(HopfieldMemory, "training_step", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli("fit", *TINY)


def test_console_script_and_checkout_are_the_same(tmp_path) -> None:
    script = Path(sys.executable).parent / "rbp-lightning"
    for command in ([str(script)], [sys.executable, str(ROOT / "train.py")]):
        finished = subprocess.run(
            [*command, "fit", "--estimator=Nothing"], capture_output=True, text=True, cwd=tmp_path
        )
        assert finished.returncode == 2
        assert finished.stderr.splitlines()[-1].startswith('error: Parser key "estimator"')
