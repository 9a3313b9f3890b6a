"""Errors of hypergradients by number of products, for symmetric Jacobians and for minibatches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from benchmarks.report import markdown, write_csv
from experiments.hypergradient_error import PROBLEMS, Problem, relative_error
from rbp_lightning import (
    ConjugateGradient,
    Implicit,
    LinearSolver,
    NeumannSeries,
    Nystrom,
    Picard,
    StochasticNeumannSeries,
    ignoring,
)


def by_products(problem: Problem, products: list[int], inner_steps: int) -> list[dict[str, Any]]:
    """Relative errors of the L2 coefficients' hypergradient at the optimum, with all examples.

    Args:
        problem: The problem.
        products: Numbers of products.
        inner_steps: Steps of the training.
    """
    exact, optimum, last = problem.exact(), problem.optimum(inner_steps), Picard(1, tol=0)
    rows = []
    for count in products:
        solvers: dict[str, LinearSolver] = {
            "NeumannSeries": NeumannSeries(count),
            "ConjugateGradient": ConjugateGradient(count, tol=0),
            **{f"Nystrom, damping {damping:g}": Nystrom(count, damping) for damping in (1e-1, 1e-2, 1e-3)},
        }
        for name, solver in solvers.items():
            found, _ = problem.hypergradient(Implicit(solver, last), start=optimum)
            rows.append({"products": count, "solver": name, "error": relative_error(found, exact)})
    return rows


def by_minibatches(problem: Problem, steps: int, inner_steps: int, batch_size: int, seeds: int) -> list[dict[str, Any]]:
    """Error of the mean hypergradient, and mean error, for trainings on minibatches.

    Args:
        problem: The problem.
        steps: Number of products.
        inner_steps: Steps of the trainings.
        batch_size: Examples per minibatch.
        seeds: Number of trainings.
    """
    exact, solver, size = problem.exact(), Picard(inner_steps, tol=0), len(problem.training["labels"])
    rows = []
    for name, linear_solver, minibatch_steps, examples in (
        ("one minibatch", NeumannSeries(steps), None, steps * batch_size),
        ("fresh minibatches", StochasticNeumannSeries(steps), None, steps * batch_size),
        ("all examples", NeumannSeries(steps), inner_steps - 1, steps * size),
    ):
        estimator = Implicit(linear_solver, solver)
        found: list[Tensor] = []
        for seed in range(seeds):
            found.append(problem.hypergradient(estimator, batch_size, seed, minibatch_steps)[0])
        errors = {
            "error_of_mean": relative_error(torch.stack(found).mean(dim=0), exact),
            "mean_error": sum(relative_error(one, exact) for one in found) / seeds,
        }
        rows.append({"products_on": name, "examples": examples, **errors})
    return rows


def table_of_products(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats errors as Markdown: a row for each problem and number of products, a column for each solver.

    Args:
        rows: Rows of the CSV file.
    """
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    found: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        found.setdefault((row["problem"], row["products"]), []).append(f"{float(row['error']):.1e}")
    return markdown(["problem", "products", *solvers], [[*key, *cells] for key, cells in found.items()])


def table_of_minibatches(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats errors on minibatches as Markdown.

    Args:
        rows: Rows of the CSV file.
    """
    lines = [
        [
            *(row[name] for name in ("problem", "products_on", "examples")),
            *(f"{float(row[name]):.2f}" for name in ("error_of_mean", "mean_error")),
        ]
        for row in rows
    ]
    return markdown(["problem", "products with", "examples in them", "error of the mean", "mean error"], lines)


def hypergradient_products(
    products: list[PositiveInt] = [5, 10, 20, 50, 100, 170],
    inner_steps: PositiveInt = 4000,
    steps: PositiveInt = 200,
    minibatch_steps: PositiveInt = 400,
    batch_size: PositiveInt = 20,
    seeds: PositiveInt = 20,
    out: Path = Path("logs/hypergradient_products"),
) -> None:
    """Errors of hypergradients by number of products, without momentum.

    Trains ridge and logistic regression as ``hypergradient_error`` does, by gradient descent without momentum, whose
    Jacobian is symmetric. The first table has the relative error of the L2 coefficients' hypergradient at the optimum,
    for several linear solvers and numbers of products. The second one is for trainings on minibatches, where each
    product of a Neumann series is taken with the same minibatch, with the next one, or with all examples. Writes a CSV
    file of each table.

    Args:
        products: Numbers of products; there are 170 parameters.
        inner_steps: Steps of the training on all examples.
        steps: Number of products for the trainings on minibatches.
        minibatch_steps: Steps of the trainings on minibatches.
        batch_size: Examples per minibatch, out of 200.
        seeds: Number of trainings on minibatches.
        out: Folder to write to.
    """
    of_products: list[dict[str, Any]] = []
    of_minibatches: list[dict[str, Any]] = []
    with ignoring():
        for name, loss in PROBLEMS.items():
            problem = Problem(loss, momentum=0.0)
            of_products += [{"problem": name, **row} for row in by_products(problem, products, inner_steps)]
            found = by_minibatches(problem, steps, minibatch_steps, batch_size, seeds)
            of_minibatches += [{"problem": name, **row} for row in found]
    write_csv(out / "hypergradient_products.csv", of_products)
    write_csv(out / "hypergradient_minibatches.csv", of_minibatches)
    print(f"{table_of_products(of_products)}\n\n{table_of_minibatches(of_minibatches)}")
