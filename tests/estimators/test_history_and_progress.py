"""The optional history and progress bar of a solve."""

import threading

import pytest
import torch

from rbp_lightning import Auto, FixedPointSolver, NeumannRBP, Picard, ignoring
from tests.markdown import numbers


@pytest.mark.parametrize("solver", [Picard(200, 1e-6), Auto(200, 1e-6)], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("taped", [False, True])
def test_the_history_holds_the_residuals_of_every_step(solver: FixedPointSolver, taped: bool) -> None:
    slopes, states = torch.tensor([[0.9, 0.2], [0.5, 0.1]]), []

    def update(h: torch.Tensor) -> torch.Tensor:
        states.append(h.detach())
        return slopes * h + 1

    with torch.set_grad_enabled(taped):
        found = NeumannRBP(0, solver)(update, torch.zeros(2, 2), batch_dims=1, history=True)
    assert [one.step for one in found.history] == list(range(1, found.steps + 1))
    for one, state in zip(found.history, states, strict=True):
        image = slopes * state + 1
        torch.testing.assert_close(one.absolute, (image - state).norm(dim=1))
        torch.testing.assert_close(one.relative, (image - state).norm(dim=1) / image.norm(dim=1))
    assert len(NeumannRBP(0, solver)(update, torch.zeros(2, 2), batch_dims=1).history) < found.steps


@pytest.mark.parametrize("max_steps", [13, 300])
@pytest.mark.parametrize("taped", [False, True])
def test_a_progress_bar_ends_with_the_residual_of_its_solve(
    max_steps: int, taped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    start = torch.zeros(3, dtype=torch.float64)
    with torch.set_grad_enabled(taped), ignoring():
        found = NeumannRBP(0, Picard(max_steps, 1e-6))(lambda h: 0.9 * h + 1, start, progress=True)
    assert found.converged == (max_steps == 300)
    shown = capsys.readouterr().out
    assert "NeumannRBP" in shown
    step, residual = numbers(shown.splitlines()[-1])[:2]
    assert step == found.steps
    assert residual == pytest.approx(float(found.residual), rel=0.05)


def test_a_progress_bar_ends_with_an_error_of_its_update() -> None:
    def failing(h: torch.Tensor) -> torch.Tensor:
        raise ValueError("raised by the update")

    with torch.no_grad(), pytest.raises(ValueError, match="raised by the update"):
        NeumannRBP(0)(failing, torch.zeros(3), progress=True)
    for thread in threading.enumerate():
        if "Refresh" in type(thread).__name__:
            thread.join(5)  # the thread ends at its next refresh
            assert not thread.is_alive()
