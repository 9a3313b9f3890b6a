"""With several processes, a failure in one is handled by all."""

import textwrap
from pathlib import Path

import pytest
import torch

from tests.cli.runs import Run, Zygote
from tests.training import PROCESSES, fit_rates, neumann

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


def run_script(zygote: Zygote, folder: Path, action: str, processes: int) -> tuple[int | None, str]:
    """Trains in several processes; returns the exit status and what was printed to standard error."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    run = Run(zygote, folder, [action, "ddp_fork", str(processes)], {}, script)
    return run.end(), run.error()


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
def test_processes_skip_the_same_steps(zygote: Zygote, tmp_path: Path) -> None:
    processes = PROCESSES + 1
    status, error = run_script(zygote, tmp_path, "skip", processes)
    assert status == 0, error[-2000:]
    for accumulated in (1, 2):
        one, *others = (torch.load(tmp_path / f"{accumulated} of {rank}.pt") for rank in range(processes))
        assert all(torch.equal(one, other) for other in others)
        # One process on the batches of all, without the steps in which any had a failure.
        good = torch.linspace(0.1, 0.5, 4 * processes)[: 2 * processes].tolist()
        expected = fit_rates(good, neumann(), batch_size=processes, accumulate_grad_batches=accumulated).weight
        torch.testing.assert_close(one, expected.detach())


def test_an_error_in_one_process_ends_all(zygote: Zygote, tmp_path: Path) -> None:
    status, error = run_script(zygote, tmp_path, "raise", PROCESSES)
    assert status not in (0, None)
    assert "ConvergenceError" in error
    assert not list(tmp_path.glob("*.pt"))
