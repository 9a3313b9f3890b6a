"""What one process of two decides, both do."""

import textwrap
from pathlib import Path

import pytest
import torch

from tests.cli.runs import Run, Zygote
from tests.training import GOOD, fit_rates, neumann, run_script

pytestmark = pytest.mark.slow

SCRIPT = """
    import sys, torch
    from lightning.pytorch import Callback, Trainer
    from torch.utils.data import DataLoader, IterableDataset
    from rbp_lightning import FailurePolicy
    from tests.training import GOOD, GROWING, QUIET, Rates, neumann

    class EveryOther(IterableDataset):
        def __iter__(self):
            return iter(rates[trainer.global_rank :: 2])

    class Leaves(Callback):
        def on_train_end(self, trainer, module):
            torch.save(module.weight.detach(), f"{trainer.accumulate_grad_batches} of {trainer.global_rank}.pt")

    if __name__ == "__main__":
        # Every other sample is the second process's, whose last two are bad.
        rates = torch.tensor([GOOD, 0.3, 0.2, 0.25, 0.1, GROWING, 0.4, GROWING])
        for accumulated in (1, 2):
            trainer = Trainer(
                **QUIET, devices=2, strategy=sys.argv[2], max_epochs=1, accumulate_grad_batches=accumulated,
                callbacks=[neumann(), FailurePolicy(diverged=sys.argv[1]), Leaves()], use_distributed_sampler=False,
            )
            trainer.fit(Rates(), DataLoader(EveryOther(), batch_size=1))
"""


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
def test_two_processes_skip_the_same_steps(zygote: Zygote, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    run = Run(zygote, tmp_path, ["skip", "ddp_fork"], {}, script)
    assert run.end() == 0, run.error()[-2000:]
    for accumulated in (1, 2):
        one, other = (torch.load(tmp_path / f"{accumulated} of {rank}.pt") for rank in (0, 1))
        assert torch.equal(one, other)
        # One process on the batches of both whose steps had no failure in either.
        good = [GOOD, 0.3, 0.2, 0.25]
        expected = fit_rates(good, neumann(), batch_size=2, accumulate_grad_batches=accumulated).weight
        torch.testing.assert_close(one, expected.detach())


def test_an_error_in_one_process_ends_both(tmp_path: Path) -> None:
    finished = run_script(SCRIPT, tmp_path, "raise", "ddp")
    assert finished.returncode != 0
    assert "ConvergenceError" in finished.stderr
    assert not list(tmp_path.glob("*.pt"))
