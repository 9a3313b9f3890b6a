"""The tasks of the study, their cells, and their variants."""

from dataclasses import dataclass

from experiments.runs import estimator_arguments
from models import EquilibriumClassifier, EquilibriumReasoner, ImageCell, ReasoningCell

Model = EquilibriumReasoner | EquilibriumClassifier
Cell = ReasoningCell | ImageCell

VARIANTS = {
    "plain": [],
    "penalty": ["--model.jacobian_penalty=0.1"],
    "random start": ["--model.random_start=true"],
}
"""Ways to train a cell."""


@dataclass(frozen=True)
class Task:
    """A task of the study.

    Attributes:
        config: Config of an ``EquilibriumReasoner`` or ``EquilibriumClassifier``.
        batches: Number of batches of each training.
        budgets: Numbers of steps in evaluation, by size of the test examples; the last of several tests extrapolation.
        cells: Arguments of the command line for cells with one and with two latent states.
        arguments: Arguments of the command line for both.
        entries: The names of the inputs and of the targets in a batch.
        variants: The ``VARIANTS`` that its model has.
    """

    config: str
    batches: int
    budgets: dict[int, int]
    cells: dict[str, list[str]]
    arguments: list[str]
    entries: tuple[str, str] = ("inputs", "targets")
    variants: tuple[str, ...] = tuple(VARIANTS)


TASKS = {
    "prefix_sums": Task(
        config="configs/prefix_sums.yaml",
        batches=300,
        budgets={10: 12, 80: 160},
        cells={
            "one": ["--model.cell.num_hidden=24", "--estimator.solver.max_steps=12"],
            # One update of this cell consists of three of the other's.
            "two": ["--model.cell=TwoLevelCell", "--model.cell.num_hidden=16", "--estimator.solver.max_steps=6"],
        },
        arguments=[
            *["--data.length=10", "--data.test_lengths=[10,80]", "--data.val_lengths=[10]", "--data.num_val=1"],
            *["--data.num_train=896", "--data.num_test=64", "--data.batch_size=64", "--model.learning_rate=4.0e-3"],
        ],
    ),
    "sudoku": Task(
        config="configs/sudoku.yaml",
        batches=250,
        budgets={6: 64, 8: 64, 10: 64},
        cells={
            "one": ["--model.cell.num_hidden=32"],
            "two": ["--model.cell=TwoLevelCell", "--model.cell.num_hidden=16", "--model.cell.dims=2"],
        },
        arguments=["--data.num_val=1", "--data.num_test=64"],
    ),
    "mazes": Task(
        config="configs/mazes.yaml",
        batches=300,
        budgets={3: 24, 6: 80},
        cells={
            "one": ["--model.cell.num_hidden=20"],
            "two": [
                *["--model.cell=TwoLevelCell", "--model.cell.num_hidden=10", "--model.cell.dims=2"],
                *["--model.random_steps=[5,12]", "--estimator.solver.max_steps=12"],
            ],
        },
        arguments=[
            *["--data.cells=3", "--data.test_cells=[3,6]", "--data.num_val=1", "--model.random_steps=[8,24]"],
            # Variants add a random start and a penalty; without them, a training is plain.
            *["--model.random_start=false", "--model.residual_penalty=0", "--data.num_train=3200"],
            *["--estimator.solver=Picard", "--estimator.solver.max_steps=24", "--estimator.solver.tol=0"],
        ],
    ),
    "digits": Task(
        config="configs/digits.yaml",
        batches=300,
        budgets={8: 50},  # the side of the images
        cells={
            "one": ["--model.cell=ConvolutionalImageCell", "--model.cell.num_hidden=8", "--model.cell.halvings=0"],
            "two": ["--model.cell.num_hidden=8"],
        },
        arguments=["--data.num_test=256"],
        entries=("images", "labels"),
        variants=("plain",),
    ),
}
"""The tasks by name. To add another one of these models, add an entry."""

QUIET = [
    "--trainer.callbacks=null",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.limit_val_batches=0",
    "--trainer.max_epochs=-1",
    # The errors of the gradients are what is measured.
    "--policy={not_converged: ignore, diverged: ignore, adjoint: ignore, spectral_radius: ignore, truncation_tol: 1.0}",
]
"""Options for a fixed number of batches without validation: the last parameters are tested."""


def arguments_of(estimator: str) -> list[str]:
    """Arguments of the command line for ``NAME`` or ``NAME:STEPS``; ``GMRES`` stands for ``Implicit`` with GMRES.

    Example:
        >>> arguments_of("NeumannRBP:4")
        ['--estimator=NeumannRBP', '--estimator.steps=4']
    """
    name, _, steps = estimator.partition(":")
    if name != "GMRES":
        return estimator_arguments(estimator)
    solver = "--estimator.linear_solver"
    return [
        "--estimator=Implicit",
        f"{solver}=rbp_lightning.linear.GMRES",
        f"{solver}.steps={steps}",
        f"{solver}.tol=0",
    ]
