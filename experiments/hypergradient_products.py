"""Error of hypergradients against the products that they take, by solvers for symmetric Jacobians and minibatches."""

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from benchmarks.report import markdown
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


def by_products(problem: Problem, products: list[int], inner_steps: int) -> str:
    """A table in Markdown: relative error of the L2 coefficients' hypergradient at the optimum, on all examples."""
    exact, optimum, last = problem.exact(), problem.optimum(inner_steps), Picard(1, tol=0)
    header = ["products", "NeumannSeries", "ConjugateGradient", "Nystrom, damping 1e-1", "1e-2", "1e-3"]
    lines = []
    for count in products:
        solvers: list[LinearSolver] = [NeumannSeries(count), ConjugateGradient(count, tol=0)]
        solvers += [Nystrom(count, damping) for damping in (1e-1, 1e-2, 1e-3)]
        found = [problem.hypergradient(Implicit(one, last), start=optimum)[0] for one in solvers]
        lines.append([count, *(f"{relative_error(one, exact):.1e}" for one in found)])
    return markdown(header, lines)


def by_minibatches(problem: Problem, steps: int, inner_steps: int, batch_size: int, seeds: int) -> str:
    """A table in Markdown: error of the mean hypergradient, and mean error, of trainings on minibatches."""
    exact, solver, size = problem.exact(), Picard(inner_steps, tol=0), len(problem.training["labels"])
    lines = []
    for name, linear_solver, minibatch_steps, examples in (
        ("one minibatch", NeumannSeries(steps), None, steps * batch_size),
        ("fresh minibatches", StochasticNeumannSeries(steps), None, steps * batch_size),
        ("all examples", NeumannSeries(steps), inner_steps - 1, steps * size),
    ):
        estimator = Implicit(linear_solver, solver)
        found: list[Tensor] = []
        for seed in range(seeds):
            found.append(problem.hypergradient(estimator, batch_size, seed, minibatch_steps)[0])
        mean = relative_error(torch.stack(found).mean(dim=0), exact)
        single = sum(relative_error(one, exact) for one in found) / seeds
        lines.append([name, examples, f"{mean:.2f}", f"{single:.2f}"])
    return markdown(["products on", "examples in them", "error of the mean", "mean error"], lines)


def hypergradient_products(
    products: list[PositiveInt] = [5, 10, 20, 50, 100, 170],
    inner_steps: PositiveInt = 4000,
    steps: PositiveInt = 200,
    minibatch_steps: PositiveInt = 400,
    batch_size: PositiveInt = 20,
    seeds: PositiveInt = 20,
) -> None:
    """Error of hypergradients against the products that they take, without momentum.

    Trains ridge and logistic regression as ``hypergradient_error`` does, by gradient descent without momentum, whose
    Jacobian is symmetric. The first table has the relative error of the L2 coefficients' hypergradient at the optimum
    by solvers of the adjoint equation, for several numbers of products. The second one is of trainings on minibatches:
    the products of a Neumann series are taken with one minibatch, with the next one each time, or with all examples.

    Args:
        products: Numbers of products, of 170 parameters.
        inner_steps: Steps of the training on all examples.
        steps: Products of the trainings on minibatches.
        minibatch_steps: Steps of the trainings on minibatches.
        batch_size: Examples in a minibatch, of 200.
        seeds: Trainings on minibatches.
    """
    with ignoring():
        for name, loss in PROBLEMS.items():
            problem = Problem(loss, momentum=0.0)
            print(f"\n{name}, all examples:\n\n{by_products(problem, products, inner_steps)}")
            table = by_minibatches(problem, steps, minibatch_steps, batch_size, seeds)
            print(f"\n{name}, minibatches:\n\n{table}")
