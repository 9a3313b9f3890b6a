"""Training in processes of a fork server, which get everything pickled and tensors in shared memory."""

import pickle
import textwrap
from pathlib import Path

import pytest
import torch

from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    EquilibriumMonitor,
    ExactAdjoint,
    FailurePolicy,
    GradientEstimator,
    Implicit,
    NeumannRBP,
    WarmStart,
)
from rbp_lightning.linear import NormalCG
from tests.cli.runs import Run, Zygote
from tests.training import PROCESSES

ESTIMATORS = [BPTT(), TBPTT(), RBP(60), NeumannRBP(), CGRBP(), AdaptiveNeumann(), ExactAdjoint()]
ESTIMATORS += [Implicit(NormalCG())]

SCRIPT = """
    import multiprocessing
    import torch
    from lightning.pytorch import seed_everything
    from lightning.pytorch.strategies import DDPStrategy
    from rbp_lightning import EquilibriumMonitor, FailurePolicy, RBP
    from tests.training import PROCESSES, Tanh, fit, vectors

    if __name__ == "__main__":
        multiprocessing.set_forkserver_preload(["tests.training"])  # imported once
        forked = DDPStrategy(start_method="forkserver", process_group_backend="gloo")
        for devices, batch_size, options in ((1, 4 * PROCESSES, {}), (PROCESSES, 4, {"strategy": forked})):
            seed_everything(0, verbose=False)
            module, data = Tanh().double(), vectors(4 * PROCESSES, batch_size=batch_size, dtype=torch.float64)
            callbacks = [RBP(60), FailurePolicy(diverged="skip"), EquilibriumMonitor(1, 0)]
            fit(module, data, *callbacks, devices=devices, max_epochs=3, **options)
            torch.save(module.linear.weight.detach(), f"{devices}.pt")
"""


@pytest.mark.slow
def test_processes_of_a_fork_server_train_to_the_weights_of_one_process(zygote: Zygote, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    run = Run(zygote, tmp_path, [], {}, script)
    assert run.end(300) == 0, run.error()[-3000:]
    one, several = (torch.load(tmp_path / f"{devices}.pt") for devices in (1, PROCESSES))
    torch.testing.assert_close(several, one, rtol=1e-3, atol=1e-4)  # RBP solves each batch to a tolerance of 1e-4


@pytest.mark.parametrize(
    "estimator", [*ESTIMATORS, FailurePolicy(), EquilibriumMonitor(), WarmStart()], ids=lambda one: type(one).__name__
)
def test_callbacks_and_warm_starts_can_be_pickled(estimator: GradientEstimator) -> None:
    assert type(pickle.loads(pickle.dumps(estimator))) is type(estimator)
