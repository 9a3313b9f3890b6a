"""Training of every task with every estimator in processes started by fork, forkserver and spawn."""

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
from tests.training import PROCESSES


def sent_to_a_process(value: Any) -> Any:
    """What a spawned process gets: a pickled copy."""
    return pickle.loads(ForkingPickler.dumps(value))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_can_be_sent_to_a_process(task: str) -> None:
    torch.manual_seed(0)
    module, data = TASKS[task]()
    other, _ = sent_to_a_process((module, data))
    assert type(other) is type(module)
    assert other.state_dict().keys() == module.state_dict().keys()
    for one, another in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, another)
        assert another.requires_grad == one.requires_grad


CONFIGURED = [*ESTIMATORS.values(), Picard(), Direct(), NeumannSeries(), Richardson(), NormalCG(), GMRES(), Dense()]
CONFIGURED += [AdaptiveNeumannSeries(), FailurePolicy(), EquilibriumMonitor(), ImagePatterns(), MNISTSplits()]
CONFIGURED += [CitationGraph()]


@pytest.mark.parametrize("configured", CONFIGURED, ids=lambda one: type(one).__name__)
def test_configured_objects_can_be_sent_to_a_process(configured: Any) -> None:
    other = sent_to_a_process(configured)
    assert type(other) is type(configured)
    plain = [
        {name: value for name, value in vars(one).items() if isinstance(value, int | float | str | None)}
        for one in (configured, other)
    ]
    assert plain[0] == plain[1]


def test_a_policy_and_a_warm_start_in_use_can_be_sent_to_a_process() -> None:
    policy, warm_start = FailurePolicy(diverged="skip", adjoint="ignore"), WarmStart()
    estimator, weight = ESTIMATORS["RBP"], torch.tensor(0.5, requires_grad=True)
    with policy:
        estimator(lambda h: weight * h + 1, torch.zeros(3), warm_start=warm_start).state.sum().backward()
        other = sent_to_a_process((policy, warm_start))
    with other[0]:
        pass
    for one, another in zip(*(tree_leaves(one.state_dict()) for one in (warm_start, other[1])), strict=True):
        assert torch.equal(one, another)


def test_a_sparse_matrix_can_be_sent_to_a_process() -> None:
    matrix = SparseMatrix.from_dense(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    inputs = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    (sent_to_a_process(matrix) @ inputs).sum().backward()  # without a warning
    assert torch.equal(inputs.grad[:, 0], torch.tensor([3.0, 2.0]).double())


def test_processes_started_by_every_method_train_to_the_same_parameters(
    zygote: Zygote, cases: Any, figures: Any, tmp_path: Path
) -> None:
    # The short run trains each task once, by fork; tests/lightning trains each estimator, by a forkserver.
    names = list(ESTIMATORS)
    pairs = cases(list(zip(TASKS, names, strict=False)), [(task, name) for task in TASKS for name in names])
    methods = cases(METHODS[:1], METHODS)
    for method in methods:
        arguments = [",".join((*pair, method)) for pair in pairs]
        run = Run(zygote, tmp_path, ["done", *arguments], {}, Path(__file__).with_name("process_tasks.py"))
        run.end(cases(300, 7200))
        assert (tmp_path / "done").exists(), f"{method}: {run.error()[-3000:]}"
        (tmp_path / "done").unlink()
    for task, name in pairs:
        results = [
            torch.load(tmp_path / f"{task} {name} {method} {rank}.pt")
            for method in methods
            for rank in range(PROCESSES)
        ]
        before, after = results[0]
        moved = [key for key in before if not torch.equal(before[key], after[key])]
        assert moved, f"{task} {name}"
        for _, other in results[1:]:
            assert all(torch.equal(one, other[key]) for key, one in after.items()), f"{task} {name}"
    figures.update(trained=len(pairs) * len(methods), methods=len(methods))


class DoubledIndices(torch.utils.data.Dataset):
    """A dataset that solves for a fixed point in a worker of its loader."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            return ESTIMATORS["NeumannRBP"](lambda h: 0.5 * h + index, torch.zeros(1)).state


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", METHODS)
def test_solves_work_in_the_workers_of_a_data_loader(method: str, cases: Any) -> None:
    if method not in cases(METHODS[:1], METHODS):
        pytest.skip("only in the long run: the processes import everything again")
    loader = DataLoader(DoubledIndices(), num_workers=1, multiprocessing_context=method, batch_size=4)
    torch.testing.assert_close(torch.cat(list(loader)).flatten(), torch.tensor([0.0, 2.0, 4.0, 6.0]), rtol=0.01, atol=0)
