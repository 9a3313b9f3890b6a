"""Four threads share estimators, a policy and a class of observers."""

import gc
import os
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    ConvergenceError,
    ExactAdjoint,
    FailurePolicy,
    FixedPoint,
    GradientEstimator,
    Implicit,
    LinearSolution,
    NeumannRBP,
    Picard,
    SolveObserver,
    Status,
    WarmStart,
    ignoring,
    observing,
    rng_states,
)
from rbp_lightning.estimators.random_draws import DrawWatch
from rbp_lightning.linear import Richardson
from rbp_lightning.nn.same_draws import SameDraws
from tests.cli.runs import Run, Zygote

THREADS = 4

EXACT = Picard(400, tol=1e-13)

ESTIMATORS = [BPTT(EXACT), TBPTT(30, EXACT), RBP(200, 1e-12, solver=EXACT), NeumannRBP(30, EXACT)]
ESTIMATORS += [CGRBP(20, 1e-12, solver=EXACT), AdaptiveNeumann(1e-10, solver=EXACT), ExactAdjoint(solver=EXACT)]
ESTIMATORS += [Implicit(Richardson(200, 1e-12), EXACT)]

SHARED = FailurePolicy(diverged="raise")


class Seen(SolveObserver):
    """Records what it observes."""

    def __init__(self) -> None:
        self.fixed_points: list[FixedPoint] = []
        self.adjoints: list[LinearSolution] = []

    def on_solve_end(self, fixed_point: FixedPoint, operator: Any) -> None:
        self.fixed_points.append(fixed_point)

    def on_adjoint(self, solution: LinearSolution) -> None:
        self.adjoints.append(solution)


def random_problem(random: Random, largest: float = 0.4) -> tuple[Tensor, Tensor, Tensor]:
    """A rate, an input of two samples, and the fixed point of h <- rate h + added."""
    rate = torch.tensor(random.uniform(-largest, largest), dtype=torch.float64, requires_grad=True)
    added = torch.tensor([[random.gauss(0, 1)] * 2, [random.gauss(0, 1)] * 2], dtype=torch.float64, requires_grad=True)
    return rate, added, (added / (1 - rate)).detach()


def check(state: Tensor, rate: Tensor, added: Tensor, solution: Tensor) -> None:
    """Compares a fixed point and its gradients with their closed form."""
    torch.testing.assert_close(state.detach(), solution, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rate.grad, (solution.sum() / (1 - rate)).detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(added.grad, (1 / (1 - rate)).detach().expand(2, 2), rtol=1e-6, atol=1e-6)


def plain(estimator: GradientEstimator, random: Random, pool: ThreadPoolExecutor) -> None:
    rate, added, solution = random_problem(random)
    state = estimator(lambda h: rate * h + added, torch.zeros(2, 2).double(), batch_dims=random.choice([0, 1])).state
    state.sum().backward()
    check(state, rate, added, solution)


def in_another_thread(estimator: GradientEstimator, random: Random, pool: ThreadPoolExecutor) -> None:
    """The backward pass runs in another thread than the forward pass."""
    rate, added, solution = random_problem(random)
    state = estimator(lambda h: rate * h + added, torch.zeros(2, 2).double(), batch_dims=1).state
    pool.submit(state.sum().backward).result()
    check(state, rate, added, solution)


def nested(estimator: GradientEstimator, random: Random, pool: ThreadPoolExecutor) -> None:
    """The update solves an inner fixed point with the same estimator."""
    rate, added, solution = random_problem(random, largest=0.15)

    def update(h: Tensor) -> Tensor:
        half = estimator(lambda k: 0.1 * k + 0.45 * h, torch.zeros(2, 2).double(), batch_dims=1).state
        return rate * (half + 0.5 * h) + added

    state = NeumannRBP(12, EXACT)(update, torch.zeros(2, 2).double(), batch_dims=1).state
    state.sum().backward()
    check(state, rate, added, solution)


def warm(estimator: GradientEstimator, random: Random, pool: ThreadPoolExecutor) -> None:
    """Two solves of one problem with a warm start."""
    if isinstance(estimator, BPTT):
        return plain(estimator, random, pool)
    rate, added, solution = random_problem(random)
    warm_start = WarmStart()
    for _ in range(2):
        rate.grad = added.grad = None
        state = estimator(
            lambda h: rate * h + added, torch.zeros(2, 2).double(), batch_dims=1, warm_start=warm_start
        ).state
        state.sum().backward()
        check(state, rate, added, solution)


def failing(estimator: GradientEstimator, random: Random, pool: ThreadPoolExecutor) -> None:
    """The shared policy raises in this thread, while other threads ignore failures."""
    with SHARED, pytest.raises(ConvergenceError):
        estimator(lambda h: 2 * h + 1, torch.ones(2, 2).double())
    with ignoring():
        assert estimator(lambda h: 2 * h + 1, torch.ones(2, 2).double()).status is Status.DIVERGED


def observed(estimator: GradientEstimator, random: Random, pool: ThreadPoolExecutor) -> None:
    """An observer sees only the solves of its thread."""
    rate, added, solution = random_problem(random)
    seen = Seen()
    with observing(lambda: seen):
        fixed_point = estimator(lambda h: rate * h + added, torch.zeros(2, 2).double(), batch_dims=1)
        fixed_point.state.sum().backward()
    check(fixed_point.state, rate, added, solution)
    assert [one.status for one in seen.fixed_points] == [Status.CONVERGED]
    assert torch.equal(seen.fixed_points[0].state.detach(), fixed_point.state.detach())
    assert len(seen.adjoints) == 1
    assert seen.adjoints[0].steps == fixed_point.adjoint.steps


JOBS: list[Callable[[GradientEstimator, Random, ThreadPoolExecutor], None]] = [
    plain, plain, in_another_thread, nested, warm, failing, observed
]  # fmt: skip


def test_estimators_can_be_used_by_four_threads_at_once(cases: Any, figures: Any) -> None:
    solves = cases(120, 1200)
    wrong: list[str] = []
    done = Counter[str]()
    barrier = threading.Barrier(THREADS)

    def work(thread: int) -> None:
        with ThreadPoolExecutor(1) as pool, FailurePolicy(adjoint="ignore"):
            barrier.wait()
            for number in range(thread, solves, THREADS):
                random = Random(number)
                # All threads use the same estimator at the same time.
                estimator = ESTIMATORS[number // THREADS % len(ESTIMATORS)]
                job = random.choice(JOBS)
                try:
                    job(estimator, random, pool)
                    done[job.__name__] += 1
                except Exception as error:
                    wrong.append(f"number {number}, {job.__name__}, {estimator}: {type(error).__name__}: {error}")

    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    with warnings.catch_warnings():  # warning filters are process-wide
        warnings.simplefilter("error")
        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sys.setswitchinterval(switching)
    figures.update(solves=solves, wrong=len(wrong), **done)
    assert not wrong, "\n".join(wrong)
    assert done.total() == solves


def collect_garbage_in_threads() -> None:
    """Threads read and set generators, in which nearly every allocation starts a collection that passes the GIL on."""

    def work() -> None:
        for _ in range(30):
            watch, draws = DrawWatch(torch.sin), SameDraws()
            for _ in range(3):
                watch(torch.zeros(2))
                draws(torch.nn.functional.dropout, torch.ones(2))

    gc.callbacks.append(lambda phase, info: time.sleep(1e-3))
    gc.set_threshold(7)
    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def fork_beside_a_thread() -> None:
    """Forks a child that reads a generator, while a thread of the parent reads one, which takes long."""
    reading = threading.Event()

    def work() -> None:
        with rng_states._LOCK:
            reading.set()
            time.sleep(1)

    threading.Thread(target=work).start()
    reading.wait()
    if not (child := os.fork()):
        rng_states.get_rng_states([])
        os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.parametrize("program", [collect_garbage_in_threads, fork_beside_a_thread])
def test_nothing_waits_for_ever_for_a_generator(program: Callable[[], None], zygote: Zygote, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"from tests.fuzz.test_threads import {program.__name__} as run\nrun()\n")
    run = Run(zygote, tmp_path, [], {}, script)
    assert run.end(100) == 0, run.error()
