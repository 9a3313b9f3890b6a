"""Is a one-step gradient enough?"""

import copy
import time
import warnings
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.puzzles import IGNORED
from experiments.one_step.audit import AUDITED, audited
from experiments.one_step.gradients import FIGURES, MEASURED, gradient_errors
from experiments.one_step.limits import KINDS, limits_of, path_independence, share_of_examples
from experiments.one_step.report import draw, report
from experiments.one_step.tasks import QUIET, TASKS, VARIANTS, Model, Task, arguments_of
from experiments.runs import Row, config_keys, fit, run_missing
from rbp_lightning import UserError

MOMENTS = (0.0, 0.25, 0.5, 1.0)
"""When gradients are measured, as fractions of the training."""

SAMPLES = 8
"""Number of samples on which they are measured."""

AT_MOMENTS = [
    *["loss", "spectral radius", "residual", "adjoint residual"],
    *(f"{name}: {figure}" for name in MEASURED for figure in FIGURES),
]


def moments(batches: int) -> list[int]:
    """Numbers of batches after which gradients are measured.

    Args:
        batches: Number of batches of a training.
    """
    return [round(part * batches) for part in MOMENTS]


class Snapshots(Callback):
    """Keeps the parameters after given numbers of batches."""

    def __init__(self, batches: list[int]) -> None:
        self.batches = batches
        self.kept: dict[int, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the initial parameters."""
        self._keep(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Keeps later parameters."""
        self._keep(trainer, pl_module)

    def _keep(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step in self.batches:
            self.kept[trainer.global_step] = copy.deepcopy(module.state_dict())


def over_training(
    model: Model, snapshots: dict[int, dict[str, Tensor]], batch: dict[str, Tensor], entries: tuple[str, str]
) -> dict[str, str]:
    """Measures gradients at several moments of a training.

    Args:
        model: The model; it keeps the last parameters.
        snapshots: Its parameters, by number of batches.
        batch: The batch to measure on.
        entries: The names of its inputs and targets.

    Returns:
        Figures by name, each with one number per moment, separated by spaces.
    """
    found = []
    inputs, targets = (batch[name] for name in entries)
    model.eval()
    for state in snapshots.values():
        model.load_state_dict(state)
        with torch.no_grad():
            scores = model.cell.scores(model(inputs).state)
            loss = torch.nn.functional.cross_entropy(scores, targets, ignore_index=IGNORED)
        found.append({"loss": float(loss), **gradient_errors(model, batch)})
    return {name: " ".join(f"{one[name]:.4g}" for one in found) for name in found[0]}


def after_training(model: Model, data: Any, task: Task) -> dict[str, str]:
    """Tests examples of each size, and classifies the limits of the states.

    Args:
        model: The model.
        data: The data module, after ``setup("test")``.
        task: The task.

    Returns:
        Figures by name.
    """
    cell = model.eval().cell
    found: dict[str, str] = {}
    loaders = data.test_dataloader()
    loaders = loaders if isinstance(loaders, list) else [loaders]
    for (size, steps), loader in zip(task.budgets.items(), loaders, strict=True):
        inputs, targets = (torch.cat(parts) for parts in zip(*map(itemgetter(*task.entries), loader), strict=True))
        with torch.no_grad():
            limits = limits_of(*cell.start(inputs), steps)
            right = (cell.scores(limits.state).argmax(1) == targets) | (targets == IGNORED)
        alike, distance = path_independence(cell, inputs, steps)
        figures = {
            "exact": share_of_examples(right),
            "residual": float(limits.residual.median()),
            "residual twice": float(limits.residual_twice.median()),
            "radius": float(limits.radius.median()),
            **{kind: limits.share(kind) for kind in KINDS},
            "alike": alike,
            "distance": distance,
        }
        found |= {f"{name} {size}": f"{value:.4g}" for name, value in figures.items()}
    return found


def train_and_measure(keys: Row, task: Task, measure_after: list[int], samples: int) -> dict[str, Any]:
    """Runs one training, measures its gradients and its results, and audits it.

    Args:
        keys: The result of ``config_keys``, number of batches, cell, variant, estimator and seed.
        task: The task.
        measure_after: Numbers of batches after which gradients are measured.
        samples: Number of samples on which they are measured.
    """
    snapshots = Snapshots(measure_after)
    arguments = [*QUIET, *task.arguments, *task.cells[keys["cell"]], *VARIANTS[keys["variant"]]]
    arguments += [*arguments_of(keys["estimator"]), f"--data.data_seed={keys['seed']}"]
    # These come last, to override the others.
    arguments += [f"--trainer.max_steps={keys['batches']}", *keys["overrides"].split()]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*val_dataloader|.*smaller than the logging")
        begin = time.perf_counter(), time.process_time()
        cli = fit({**keys, "overrides": ""}, *arguments, callbacks=[snapshots])
        seconds, processor = time.perf_counter() - begin[0], time.process_time() - begin[1]
    data: Any = cli.datamodule
    data.setup("test")
    batch = {name: part[:samples] for name, part in next(iter(data.train_dataloader())).items()}
    return {
        "seconds": f"{seconds:.1f}",
        "processor seconds": f"{processor:.1f}",
        **over_training(cli.model, snapshots.kept, batch, task.entries),
        **after_training(cli.model, data, task),
        **audited(cli.model, batch, keys["estimator"]),
    }


def one_step(
    task: Literal["prefix_sums", "sudoku", "mazes", "digits"] = "prefix_sums",
    cells: list[str] = ["one", "two"],
    variants: list[str] = ["plain"],
    estimators: list[str] = ["JFB", "PhantomGradient:5", "NeumannRBP:4", "TBPTT:5", "CGRBP:5", "GMRES:5", "BPTT"],
    seeds: PositiveInt = 5,
    batches: PositiveInt | None = None,
    overrides: str = "",
    jobs: PositiveInt | None = None,
    csv: Path | None = None,
) -> None:
    """Is a one-step gradient enough?

    Trains cells with one and with two latent states, by several estimators with the same seeds and number of batches.
    At four moments, compares each cheap gradient with the exact adjoint and with BPTT. After the training, tests
    puzzles of the training size and larger ones, or images, checks whether states end in a fixed point, a 2-cycle or
    neither, and whether two random initial states lead to the same answers, and asks the library's audit. Prints
    tables, with differences to the first estimator paired by seed, and writes a picture next to the CSV file. Finished
    runs are kept in that file, and repeated only if the config changed; if the code changed, delete the file.

    Args:
        task: The task.
        cells: Cells with one or two latent states.
        variants: Any of plain, penalty (a Jacobian penalty) and random start; digits have plain trainings alone.
        estimators: Estimators to train with, as NAME or NAME:STEPS.
        seeds: Number of seeds of network and puzzles, counted from 0.
        batches: Number of batches of a training; null for the task's own number.
        overrides: Further arguments of the command line of each training, separated by spaces.
        jobs: Number of trainings at once; null for one per GPU or, without GPUs, one per core. Tables show
            CPU time.
        csv: File of finished runs; null for logs/one_step_TASK.csv.

    Raises:
        UserError: If the task has no such cell or variant.
    """
    for name, given, offered in (("cells", cells, TASKS[task].cells), ("variants", variants, TASKS[task].variants)):
        if unknown := [one for one in given if one not in offered]:
            raise UserError(f"one_step: {name}={unknown} of {task} do not exist: choose from {', '.join(offered)}.")
    chosen, path = TASKS[task], Path(f"logs/one_step_{task}.csv") if csv is None else csv
    count = chosen.batches if batches is None else batches
    wanted = [
        {
            **config_keys(chosen.config, overrides),
            "batches": str(count),
            "cell": cell,
            "variant": variant,
            "estimator": estimator,
            "seed": str(seed),
        }
        for seed in range(seeds)
        for variant in variants
        for cell in cells
        for estimator in estimators
    ]
    ends = ["exact", "residual", "residual twice", "radius", *KINDS, "alike", "distance"]
    measured = ["seconds", "processor seconds", *AT_MOMENTS]
    measured += [*(f"{name} {size}" for size in chosen.budgets for name in ends), *AUDITED]
    run = partial(train_and_measure, task=chosen, measure_after=moments(count), samples=SAMPLES)
    rows = run_missing(path, wanted, measured, run, jobs)
    print(report(rows, list(chosen.budgets), moments(count)))
    draw(rows, list(chosen.budgets), moments(count), path.with_suffix(".png"))
