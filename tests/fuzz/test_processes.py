"""Training in processes that are started by fork, forkserver and spawn, of every task with every estimator."""

import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from datamodules import CitationGraph, ImagePatterns, MNISTSplits
from rbp_lightning import EquilibriumMonitor, FailurePolicy, Picard, SparseMatrix, WarmStart
from rbp_lightning.linear import GMRES, AdaptiveNeumannSeries, Dense, Direct, NeumannSeries, NormalCG, Richardson
from tests.cli.runs import Run, Zygote
from tests.fuzz.process_tasks import ESTIMATORS, METHODS, TASKS


def handed_over(value: Any) -> Any:
    """What a process that is spawned gets."""
    return pickle.loads(ForkingPickler.dumps(value))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_can_be_handed_over(task: str) -> None:
    torch.manual_seed(0)
    module, data = TASKS[task]()
    other, _ = handed_over((module, data))
    assert type(other) is type(module)
    assert other.state_dict().keys() == module.state_dict().keys()
    for one, another in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, another)
        assert another.requires_grad == one.requires_grad


CONFIGURED = [*ESTIMATORS.values(), Picard(), Direct(), NeumannSeries(), Richardson(), NormalCG(), GMRES(), Dense()]
CONFIGURED += [AdaptiveNeumannSeries(), FailurePolicy(), EquilibriumMonitor(), ImagePatterns(), MNISTSplits()]
CONFIGURED += [CitationGraph()]


@pytest.mark.parametrize("configured", CONFIGURED, ids=lambda one: type(one).__name__)
def test_what_is_configured_can_be_handed_over(configured: Any) -> None:
    other = handed_over(configured)
    assert type(other) is type(configured)
    plain = [
        {name: value for name, value in vars(one).items() if isinstance(value, int | float | str | None)}
        for one in (configured, other)
    ]
    assert plain[0] == plain[1]


def test_a_policy_and_a_warm_start_can_be_handed_over_while_in_use() -> None:
    policy, warm_start = FailurePolicy(diverged="skip", adjoint="ignore"), WarmStart()
    estimator, weight = ESTIMATORS["RBP"], torch.tensor(0.5, requires_grad=True)
    with policy:
        estimator(lambda h: weight * h + 1, torch.zeros(3), warm_start=warm_start).state.sum().backward()
        other = handed_over((policy, warm_start))
    with other[0]:
        pass
    for one, another in zip(*(tree_leaves(one.state_dict()) for one in (warm_start, other[1])), strict=True):
        assert torch.equal(one, another)


def test_a_sparse_matrix_can_be_handed_over() -> None:
    matrix = SparseMatrix.from_dense(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    inputs = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    (handed_over(matrix) @ inputs).sum().backward()  # without a warning
    assert torch.equal(inputs.grad[:, 0], torch.tensor([3.0, 2.0]).double())


def test_training_in_processes_started_in_every_way(zygote: Zygote, cases: Any, figures: Any, tmp_path: Path) -> None:
    # In the short run each task and each estimator once by fork; tests/lightning has a spawned run.
    names = list(ESTIMATORS)
    rotating = [(task, names[number % len(names)]) for number, task in enumerate(list(TASKS) * 2)][: len(names)]
    pairs = cases(rotating, [(task, name) for task in TASKS for name in names])
    methods = cases(METHODS[:1], METHODS)
    for method in methods:
        arguments = [",".join((*pair, method)) for pair in pairs]
        run = Run(zygote, tmp_path, ["done", *arguments], {}, Path(__file__).with_name("process_tasks.py"))
        run.end(cases(300, 7200))
        assert (tmp_path / "done").exists(), f"{method}: {run.error()[-3000:]}"
        (tmp_path / "done").unlink()
    for task, name in pairs:
        results = [torch.load(tmp_path / f"{task} {name} {method} {rank}.pt") for method in methods for rank in (0, 1)]
        before, after = results[0]
        moved = [key for key in before if not torch.equal(before[key], after[key])]
        assert moved, f"{task} {name}"
        for _, other in results[1:]:
            assert all(torch.equal(one, other[key]) for key, one in after.items()), f"{task} {name}"
    figures.update(trained=len(pairs) * len(methods), methods=len(methods))


class Doubled(torch.utils.data.Dataset):
    """Solves for a fixed point in a worker of a data loader."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            return ESTIMATORS["NeumannRBP"](lambda h: 0.5 * h + index, torch.zeros(1)).state


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", METHODS)
def test_solves_in_the_workers_of_a_data_loader(method: str, cases: Any) -> None:
    if method not in cases(METHODS[:1], METHODS):
        pytest.skip("is for the long run: its processes import everything anew")
    loader = DataLoader(Doubled(), num_workers=1, multiprocessing_context=method, batch_size=4)
    torch.testing.assert_close(torch.cat(list(loader)).flatten(), torch.tensor([0.0, 2.0, 4.0, 6.0]), rtol=0.01, atol=0)
