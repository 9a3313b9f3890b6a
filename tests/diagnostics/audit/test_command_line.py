"""The audit of three tasks from the command line."""

import json
from pathlib import Path

import pytest
import yaml

from tests.training import ROOT

SMALL = {
    "hopfield": ["--model.num_hidden=16", "--data.train_draws=2"],
    "cora": [
        "--data.dataset=tests.graphs.RandomGraph",
        "--model.cell.num_features=5",
        "--model.cell.num_classes=3",
        "--model.cell.num_hidden=8",
    ],
    "hypergrad": [
        "--data.num_train=50",
        "--model.hyperparameters=null",
        "--estimator.solver.max_steps=6",
        "--model.network.sizes=[64,4,10]",
        "--estimator.steps=5",
    ],
}


@pytest.mark.parametrize("task", SMALL)
def test_a_task_is_audited_from_the_command_line(task: str, cli) -> None:
    config = f"--config={ROOT / 'configs' / task}.yaml"
    steps = [1, 5] if task == "hypergrad" else [1, 50]
    status, out, err = cli("audit", config, *SMALL[task], f"--steps={steps}", "--trainer.accelerator=cpu")
    assert status == 0, err
    folder = Path("logs") / task / "audit"
    content = json.loads((folder / "audit.json").read_text())
    (reference,) = content["references"]
    errors = {row["gradient"]: row["relative_error"] for row in content["gradients"]}
    assert yaml.safe_load((folder / "config.yaml").read_text())["steps"] == steps
    assert not list(folder.rglob("*.ckpt"))  # nothing is trained
    assert content["advice"] in out
    if task == "hypergrad":
        # An inner training has a fixed number of steps and has not converged, so the reference is BPTT.
        assert reference["kind"] == "BPTT"
        assert errors["BPTT"] < 1e-4
        assert errors["TBPTT(steps=5)"] < errors["TBPTT(steps=1)"]
    else:
        assert reference["kind"] == "exact adjoint"
        assert reference["adjoint_residual"] < 1e-11
        assert reference["residual"] < 1e-11
        for kind in ("NeumannRBP", "CGRBP"):
            assert errors[f"{kind}(steps=1)"] > 10 * errors[f"{kind}(steps=50)"]
            assert errors[f"{kind}(steps=50)"] < 0.01  # the forward solve's tolerance is 1e-3
        assert content["advice"].startswith("Take ")


def test_an_audit_of_a_checkpoint_uses_its_weights(cli) -> None:
    config = f"--config={ROOT / 'configs' / 'hopfield.yaml'}"
    tiny = ["--model.num_hidden=8", "--data.train_draws=2", "--data.eval_draws=1", "--trainer.accelerator=cpu"]
    short = ["--trainer.max_epochs=20", "--trainer.check_val_every_n_epoch=20", "--trainer.callbacks=null"]
    status, _, err = cli("fit", config, *tiny, *short)
    assert status == 0, err
    radii = []
    last = "--ckpt_path=logs/hopfield/version_0/checkpoints/last.ckpt"
    for arguments in ([last, "--data.train_draws=2"], tiny):
        status, _, err = cli("audit", config, "--trainer.accelerator=cpu", "--steps=[1]", *arguments)
        assert status == 0, err
        newest = max(Path("logs").rglob("audit.json"), key=lambda path: path.stat().st_mtime_ns)
        radii.append(json.loads(newest.read_text())["references"][0]["spectral_radius"])
    assert abs(radii[0] - radii[1]) > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches=0"], "batches=0"),
        (["--steps=[-1]"], "steps=-1 must be"),
        (["--trainer.devices=2", "--trainer.strategy=ddp"], "runs in one process"),
        (["--ckpt_path=none.ckpt"], "is not a file"),
        (["--sweep=3"], "--sweep=3"),
    ],
)
def test_invalid_options_are_refused_in_one_line(arguments: list[str], message: str, cli) -> None:
    status, _, err = cli(
        "audit", f"--config={ROOT / 'configs' / 'hopfield.yaml'}", "--trainer.accelerator=cpu", *arguments
    )
    assert status != 0
    assert message in err
    assert "Traceback" not in err
