"""The files and messages that runs leave."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rbp_lightning.cli
from models import HopfieldMemory
from rbp_lightning import FixedPointLayer
from tests.cli.options import CONFIG, ROOT, RUN, TINY
from tests.cli.own import OPTIONS
from tests.cli.sweep.own import NET
from tests.training import hparams_of


def files(*names: str) -> list[str]:
    return sorted(str(path) for name in names for path in Path().rglob(name))


def metrics_in(out: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^ +(\S+/\S+) +([\d.e-]+)$", out, re.MULTILINE)}


def test_fit_writes_checkpoints_pictures_and_curves(cli) -> None:
    estimator = ["--estimator=RBP", "--estimator.steps=60", "--estimator.solver.max_steps=60"]
    status, out, err = cli("fit", *TINY, *estimator, "--trainer.callbacks.plot_every_n_steps=100")
    assert status == 0, err
    assert f"Logs: {RUN}" in out
    assert f"Best checkpoint: {RUN}/checkpoints/best.ckpt" in out
    named = list(metrics_in(out))
    assert named == ["train/loss", "val/exact_recall", "val/loss", "val/pixel_error"]  # without the monitor's metrics
    pictures = ["adjoint_solve.png", "forward_solve.png", "recall.png", "spectrum.png"]
    assert all(name in out for name in pictures)
    assert files("*.png") == [f"{RUN}/{name}" for name in pictures]
    assert files("*.ckpt") == [f"{RUN}/checkpoints/best.ckpt", f"{RUN}/checkpoints/last.ckpt"]

    checkpoint = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["num_hidden"] == 16
    loaded = HopfieldMemory.load_from_checkpoint(RUN / "checkpoints/last.ckpt")
    weight = "cell.parametrizations.weight.original"
    assert torch.equal(loaded.state_dict()[weight], checkpoint["state_dict"][weight])

    events = EventAccumulator(str(RUN), size_guidance={"images": 0, "scalars": 0}).Reload()
    tags = events.Tags()
    assert not set(tags["images"]) & set(tags["scalars"])
    assert len(events.Images("val/recall")) == 2  # one per validation
    assert events.Images("val/recall")[0].width > 1000
    assert [event.step for event in events.Images("monitor/forward_solve")] == [0, 1]  # the first and the last step
    for tag in ("train/loss", "train/steps", "train/residual", "val/pixel_error", "val/exact_recall", "val/steps"):
        curve = [event.value for event in events.Scalars(tag)]
        assert len(curve) >= 2
        assert all(0 <= value < 100 for value in curve)
    columns, metrics, _ = hparams_of(events)
    assert {"model", "seed", "num_hidden", "estimator/class_path"} <= set(columns)
    assert metrics == named
    assert "hp_metric" not in tags["scalars"]

    (following,) = re.findall(r"python train.py (test .*)$", out, re.MULTILINE)
    status, out, err = cli(*shlex.split(following))
    assert status == 0, err
    assert files("recall.png") == [f"{RUN}/recall.png", f"{RUN}/test/recall.png"]


@pytest.mark.parametrize(
    ("subcommand", "names"),
    [
        ("test", ["test/exact_recall", "test/pixel_error"]),
        ("validate", ["val/exact_recall", "val/loss", "val/pixel_error"]),
    ],
)
def test_an_evaluation_prints_the_metrics_that_matter_or_all(cli, subcommand: str, names: list[str]) -> None:
    status, out, err = cli(subcommand, *TINY)
    assert status == 0, err
    (folder,) = re.findall("^Results: (.*)$", out, re.MULTILINE)
    events = EventAccumulator(folder).Reload()
    logged = {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"] if name != "epoch"}
    printed = metrics_in(out)
    assert printed == pytest.approx({name: logged[name] for name in names}, rel=1e-3)
    assert re.findall(r"and (\d+) more", out) == [str(len(logged) - len(printed))]

    status, out, err = cli(subcommand, *TINY, "--verbose=true")
    assert status == 0, err
    assert not metrics_in(out)
    assert all(name in out for name in logged)


@pytest.mark.parametrize("validated", [True, False])
def test_hparams_name_the_metrics_of_a_module_of_one_s_own(cli, validated: bool) -> None:
    unvalidated = [] if validated else ["--trainer.limit_val_batches=0", "--checkpoint.monitor=null"]
    status, _, err = cli("fit", *NET, *unvalidated, "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false")
    assert status == 0, err
    events = EventAccumulator("lightning_logs/version_0").Reload()
    columns, metrics, values = hparams_of(events)
    assert {"model", "seed", "rate", "estimator/class_path"} <= set(columns)
    assert values["rate"] == 0.01
    assert metrics == (["val/loss"] if validated else ["train/level", "train/loss"])
    assert set(events.Tags()["scalars"]) == {"epoch", "train/level", "train/loss", *metrics}  # and no hp_metric


def test_the_default_gradient_is_that_of_a_layer(cli) -> None:
    status, out, err = cli("fit", *NET, "--print_config")
    assert status == 0, err
    name = type(FixedPointLayer(torch.nn.Identity()).estimator).__name__
    assert yaml.safe_load(out)["estimator"]["class_path"].endswith(f".{name}")


def test_a_linear_solver_can_be_set_by_option_or_file(cli) -> None:
    options = ["--estimator=Implicit", "--estimator.linear_solver=GMRES", "--estimator.linear_solver.restart=7"]
    status, out, err = cli("fit", *TINY, *options, "--print_config")
    assert status == 0, err
    estimator = yaml.safe_load(out)["estimator"]
    assert estimator["init_args"]["linear_solver"]["init_args"]["restart"] == 7
    Path("own.yaml").write_text("estimator: {class_path: Implicit, init_args: {linear_solver: {class_path: GMRES}}}")
    status, _, err = cli("fit", *TINY, "--config=own.yaml", "--trainer.max_epochs=1")
    assert status == 0, err
    saved = yaml.safe_load((RUN / "config.yaml").read_text())["estimator"]["init_args"]["linear_solver"]
    assert saved["class_path"].endswith("GMRES")


def test_results_of_a_checkpoint_are_saved_in_its_run(cli) -> None:
    assert cli("fit", *TINY)[0] == 0
    before = files("*")
    last = RUN / "checkpoints/last.ckpt"
    for subcommand in ("validate", "test", "test", "predict"):
        # The checkpoint's 16 hidden units override the config's 256.
        options = [f"--config={CONFIG}", "--trainer.accelerator=cpu", f"--ckpt_path={last}", "--estimator=CGRBP"]
        status, out, err = cli(subcommand, *options, "--data.eval_draws=1")
        assert status == 0, err
        assert f"Results: {RUN}/{subcommand}" in out
        assert (RUN / subcommand / "recall.png").is_file()
        assert "dirpath" not in err
    status, out, err = cli("audit", *TINY, f"--ckpt_path={last}", "--steps=[5]")
    assert status == 0, err
    assert f"Results: {RUN}/audit" in out
    assert (RUN / "audit/audit.csv").is_file()
    folders = {Path(path).relative_to(RUN).parts[0] for path in set(files("*")) - set(before)}
    assert folders == {"validate", "test", "predict", "audit"}
    assert yaml.safe_load((RUN / "config.yaml").read_text())["checkpoint"]["monitor"] == "val/loss"


def test_the_next_command_of_a_module_without_a_test_audits_its_checkpoint(cli) -> None:
    status, out, err = cli("fit", "--model=tests.cli.own.Net", "--data=tests.cli.own.Inputs", *OPTIONS)
    assert status == 0, err
    (command,) = re.findall("^Next: (.*)$", out, re.MULTILINE)
    words = shlex.split(command)
    status, out, err = cli(*words[words.index("audit") :], "--steps=[1]")
    assert status == 0, err
    assert "audit.csv" in out
    assert "initial parameters" not in out


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
@pytest.mark.parametrize(("steps", "failures"), [(100, []), (1, ["the forward solve did not converge"])])
def test_fit_names_its_gradient_and_what_failed(cli, steps: int, failures: list[str]) -> None:
    words = ["--model=tests.cli.own.Net", "--data=tests.cli.own.Inputs", *OPTIONS]
    words += ["--estimator=NeumannRBP", "--estimator.solver=Auto", f"--estimator.solver.max_steps={steps}"]
    status, out, err = cli("fit", *words)
    assert status == 0, err
    (gradient,) = re.findall("^Gradient: (.*)$", out, re.MULTILINE)
    assert gradient.startswith("NeumannRBP(")
    assert f"max_steps={steps}" in gradient
    assert re.findall("^Failures: (.*?)\\. ", out, re.MULTILINE) == failures


def test_results_without_a_checkpoint_are_saved_beside_the_runs(cli) -> None:
    for subcommand in ("test", "test", "predict"):
        assert cli(subcommand, *TINY)[0] == 0
    assert files("recall.png") == ["logs/hopfield/predict/recall.png", "logs/hopfield/test/recall.png"]
    assert not files("version_*", "*.ckpt")


def test_a_run_resumes_from_the_newest_checkpoint(cli) -> None:
    for subcommand in ("fit", "test"):
        status, _, err = cli(subcommand, *TINY, "--ckpt_path=last")
        assert status == 1
        assert "ckpt_path='last'" in err
        assert "logs/hopfield" in err
    assert not files("*.ckpt", "version_*")
    assert cli("fit", *TINY)[0] == 0
    status, out, err = cli("fit", *TINY, "--trainer.max_epochs=3", "--ckpt_path=last", "--estimator=BPTT")
    assert status == 0, err
    assert f"Checkpoint: {RUN}/checkpoints/last.ckpt" in out
    assert torch.load("logs/hopfield/version_1/checkpoints/last.ckpt", weights_only=True)["epoch"] == 2
    status, out, _ = cli("test", *TINY, "--ckpt_path=best")
    assert status == 0
    assert "Checkpoint: logs/hopfield/version_1/checkpoints/best.ckpt" in out


def test_a_test_of_averaged_weights_does_not_warn(cli) -> None:
    averaged = [*NET, "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging"]
    assert cli("fit", *averaged)[0] == 0
    status, _, err = cli("test", *averaged, "--ckpt_path=last")
    assert status == 0, err
    assert "WeightAveraging" not in err


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # exists already
def test_a_run_can_be_resumed_in_its_folder(cli) -> None:
    here = [*TINY, "--trainer.logger.version=here"]
    for epochs in (1, 2):
        status, _, err = cli("fit", *here, f"--trainer.max_epochs={epochs}")
        assert status == 0, err
    config = Path("logs/hopfield/here/config.yaml")
    assert yaml.safe_load(config.read_text())["trainer"]["max_epochs"] == 2
    assert cli("test", *here, "--ckpt_path=last")[0] == 0
    assert "verbose" not in yaml.safe_load(config.read_text())  # still the config of the training


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # exists already
def test_ckpt_path_auto_starts_a_run_or_resumes_it(cli) -> None:
    again = ["fit", *TINY, "--ckpt_path=auto"]
    for own in (["--trainer.logger.version=here"], ["--trainer.logger=false", "--trainer.default_root_dir=run"]):
        status, out, err = cli(*again, *own, "--trainer.max_epochs=1")
        assert (status, "Checkpoint: " in out) == (0, False), err
        status, out, err = cli(*again, *own)
        assert status == 0, err
        (last,) = re.findall("^Checkpoint: (.*)$", out, re.MULTILINE)
        assert torch.load(last, weights_only=True)["epoch"] == 1
    for words, message in (
        (again, "set --trainer.logger.version"),
        (["test", *again[1:]], "name the checkpoint to test"),
    ):
        status, _, err = cli(*words)
        assert status == 1
        assert message in err


def test_a_run_without_a_logger_writes_nothing_to_the_current_folder(cli) -> None:
    Path("config.yaml").write_text("the user's")
    status, out, err = cli("fit", *TINY, "--trainer.logger=false", "--trainer.callbacks=null")
    assert status == 0, err
    assert "ckpt" not in out
    assert "trainer.default_root_dir" in out  # keeps checkpoints
    assert files("*") == ["config.yaml"]
    assert Path("config.yaml").read_text() == "the user's"
    assert cli("fit", *TINY, "--trainer.logger=false", "--trainer.default_root_dir=run")[0] == 0
    assert files("*.ckpt") == ["run/checkpoints/best.ckpt", "run/checkpoints/last.ckpt"]
    assert cli("fit", *TINY, "--trainer.logger=false", "--trainer.enable_checkpointing=false")[0] == 0


@pytest.mark.parametrize("logger", ["CSVLogger", "tests.cli.own.FolderlessLogger"])
def test_each_run_of_another_logger_has_its_own_folder(cli, logger) -> None:
    for seed in ("1", "2"):
        options = [f"--trainer.logger={logger}", "--trainer.logger.save_dir=other", f"--seed_everything={seed}"]
        status, _, err = cli("fit", *TINY, *options)
        assert status == 0, err
    assert [yaml.safe_load(Path(path).read_text())["seed_everything"] for path in files("config.yaml")] == [1, 2]
    assert len(files("recall.png")) == 2
    assert len(files("last.ckpt")) == 2


# pytest.warns raises Lightning's own warning again, as if from here.
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_callbacks_that_replace_those_of_a_config_warn_and_keep_checkpoints(cli) -> None:
    with pytest.warns(UserWarning, match=r"trainer.callbacks.*hopfield.yaml.*EquilibriumMonitor"):
        status, _, err = cli("fit", *TINY, "--trainer.callbacks=[LearningRateMonitor]")
    assert status == 0, err
    assert len(files("*.ckpt")) == 2
    assert cli("fit", *TINY, "--trainer.callbacks+=LearningRateMonitor", "--print_config")[0] == 0  # no warning


def test_a_user_s_checkpoint_callback_replaces_one_with_the_same_metric(cli) -> None:
    own = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": "val/loss"}}
    own["init_args"]["filename"] = "mine"
    Path("own.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": ["EquilibriumMonitor", own]}}))
    status, _, err = cli("fit", *TINY, "--config=own.yaml")
    assert status == 0, err
    assert files("*.ckpt") == [f"{RUN}/checkpoints/last.ckpt", f"{RUN}/checkpoints/mine.ckpt"]


def test_a_run_without_a_validation_reports_that_there_is_no_best_checkpoint(cli) -> None:
    status, out, err = cli("fit", *TINY, "--trainer.check_val_every_n_epoch=5")
    assert status == 0, err
    assert "best.ckpt" not in out
    assert "val/loss" in out
    assert "check_val_every_n_epoch=5" in out


def test_print_config_can_be_run_again(cli) -> None:
    status, out, _ = cli("fit", *TINY, "--estimator=TBPTT", "--estimator.steps=20", "--print_config")
    assert status == 0
    config = yaml.safe_load(out)
    assert config["estimator"]["class_path"] == "rbp_lightning.TBPTT"
    assert config["estimator"]["init_args"]["steps"] == 20
    Path("printed.yaml").write_text(out)
    assert cli("fit", "--config=printed.yaml")[0] == 0


def test_later_configs_override_earlier_ones_and_accept_short_names(cli) -> None:
    Path("change.yaml").write_text(
        "estimator: CGRBP\nmodel:\n  class_path: HopfieldMemory\n  init_args:\n    num_hidden: 3\n"
    )
    status, out, err = cli("fit", *TINY[:1], "--config=change.yaml", "--print_config")
    assert status == 0, err
    config = yaml.safe_load(out)
    assert config["estimator"]["class_path"] == "rbp_lightning.CGRBP"
    assert config["model"]["init_args"]["num_hidden"] == 3
    assert config["data"]["class_path"] == "datamodules.ImagePatterns"


def test_main_returns_its_objects_and_raises_its_errors(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["sweep.py"])
    monkeypatch.chdir(tmp_path)
    found = rbp_lightning.cli.main(["fit", *TINY])
    assert found.trainer.callback_metrics["val/loss"] < 1
    assert isinstance(found.model, HopfieldMemory)
    with pytest.raises(rbp_lightning.UserError, match="gain=0"):
        rbp_lightning.cli.main(["fit", *TINY, "--model.gain=0"])
    assert ROOT not in Path().resolve().parents
