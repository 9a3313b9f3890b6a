"""With several processes, a failure in one is handled by all."""

import textwrap
from pathlib import Path

import pytest
import torch

from tests.cli.runs import Run, Zygote
from tests.training import PROCESSES, fit_rates, neumann, run_script

pytestmark = pytest.mark.slow

SCRIPT = """
    import sys, torch
    from lightning.pytorch import Callback, Trainer
    from torch.utils.data import DataLoader, IterableDataset
    from rbp_lightning import FailurePolicy
    from tests.training import GROWING, QUIET, Rates, neumann

    class InTurn(IterableDataset):
        def __iter__(self):
            return iter(rates[:, trainer.global_rank])

    class Save(Callback):
        def on_train_end(self, trainer, module):
            torch.save(module.weight.detach(), f"{trainer.accumulate_grad_batches} of {trainer.global_rank}.pt")

    if __name__ == "__main__":
        processes = int(sys.argv[3])
        rates = torch.linspace(0.1, 0.5, 4 * processes).reshape(4, processes)
        rates[2:, -1] = GROWING  # the last two of the last process
        for accumulated in (1, 2):
            trainer = Trainer(
                **QUIET, devices=processes, strategy=sys.argv[2], max_epochs=1, accumulate_grad_batches=accumulated,
                callbacks=[neumann(), FailurePolicy(diverged=sys.argv[1]), Save()], use_distributed_sampler=False,
            )
            trainer.fit(Rates(), DataLoader(InTurn(), batch_size=1))
"""


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_skip_the_same_steps(processes: int, zygote: Zygote, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    run = Run(zygote, tmp_path, ["skip", "ddp_fork", str(processes)], {}, script)
    assert run.end() == 0, run.error()[-2000:]
    for accumulated in (1, 2):
        one, *others = (torch.load(tmp_path / f"{accumulated} of {rank}.pt") for rank in range(processes))
        assert all(torch.equal(one, other) for other in others)
        # One process on the batches of all, without the steps in which any had a failure.
        good = torch.linspace(0.1, 0.5, 4 * processes)[: 2 * processes].tolist()
        expected = fit_rates(good, neumann(), batch_size=processes, accumulate_grad_batches=accumulated).weight
        torch.testing.assert_close(one, expected.detach())


def test_an_error_in_one_process_ends_all(tmp_path: Path) -> None:
    finished = run_script(SCRIPT, tmp_path, "raise", "ddp", str(PROCESSES))
    assert finished.returncode != 0
    assert "ConvergenceError" in finished.stderr
    assert not list(tmp_path.glob("*.pt"))
