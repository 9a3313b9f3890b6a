"""The stability of recurrent back-propagation in the setting of the paper's released code (section 4.2)."""

from pathlib import Path

from benchmarks.report import markdown
from experiments.paper.findings import UNSTABLE, Finding, less
from experiments.paper.instability import UNSCALED, called
from experiments.paper.runs import Curve, Measured, Scale, fit, values_of, watched
from experiments.runs import Row, estimators_in, mean_and_spread

NAME = "Instability with the features in the first state"
STARTS = {UNSCALED: "unscaled start", "RBP": "scaled start"}
STEPS = 20
ESTIMATORS = [f"{name}:{STEPS}" for name in (*STARTS, "NeumannRBP")]
SETTING = "--model.cell.features_enter=first_state --trainer.limit_val_batches=0"
FULL = Scale(["configs/paper/cora.yaml"], ESTIMATORS, f"{SETTING} --trainer.max_epochs=30", seeds=5)
QUICK = Scale(
    ["configs/paper/cora.yaml"],
    ESTIMATORS,
    f"{SETTING} --trainer.max_epochs=10 --estimator.solver.max_steps=30",
    seeds=2,
)
MEASURED = ["loss", "test_accuracy", "warnings", "minutes", "version"]


@watched
def run(keys: Row) -> Measured:
    """Trains a network whose features enter the first state only, and tests it.

    Args:
        keys: Path of a config, further arguments of the command line, estimator and seed.

    Returns:
        The values of ``MEASURED``: the last training loss, and the test accuracy after training in percent.
    """
    curve = Curve("train/loss")
    cli = fit(keys, f"--data.split_seed={keys['seed']}", callbacks=[curve])
    (metrics,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    return {"loss": curve.values[-1], "test_accuracy": round(100 * metrics["test/accuracy"], 2)}


def section(rows: list[Row], folder: Path) -> str:
    """The section of the report.

    Args:
        rows: The runs.
        folder: The folder of the pictures; there are none.
    """
    lines = []
    for name in estimators_in(rows):
        losses, accuracies = (values_of(rows, name, figure) for figure in ("loss", "test_accuracy"))
        lines.append([called(name), mean_and_spread(losses, 4), f"{mean_and_spread(accuracies)} %", len(losses)])
    return f"""In the released code the features enter the first state only, and not every step as in the section on
documents. The network is otherwise the same. Mean and standard deviation over the seeds, after the last epoch:

{markdown(["gradient", "training loss", "test accuracy", "seeds"], lines)}"""


def findings(rows: list[Row]) -> list[Finding]:
    """Compares these runs with the paper's findings."""
    found = []
    for kind, start in STARTS.items():
        pair = {called(name): values_of(rows, name, "loss") for name in (f"NeumannRBP:{STEPS}", f"{kind}:{STEPS}")}
        found.append(less(UNSTABLE, f"training loss on Cora, features in the first state, {start}", pair))
    return found
