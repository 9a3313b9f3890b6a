"""The monitor's plots, read from the event file."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from rbp_lightning import BPTT, EquilibriumMonitor, NeumannRBP, Picard
from tests.diagnostics.monitored import SOLVER, Known, drives, fit_logged

pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")


def test_residuals_spectrum_and_steps_are_drawn(tmp_path: Path) -> None:
    for number, estimator in enumerate((NeumannRBP(20, SOLVER), BPTT(SOLVER))):
        trainer, events = fit_logged(Known(), drives(3), tmp_path / str(number), estimator, EquilibriumMonitor(1, 1))
        for name in ("forward_solve", "adjoint_solve", "spectrum"):
            images = events.Images(f"monitor/{name}")
            assert [image.step for image in images] == [0]
            assert images[0].width > 300
            with (
                Image.open(Path(trainer.log_dir) / f"{name}.png") as picture,
                Image.open(io.BytesIO(images[-1].encoded_image_string)) as logged,
            ):
                assert picture.tobytes() == logged.tobytes()
        assert not set(events.Tags()["images"]) & set(events.Tags()["scalars"])
        (histogram, *_) = events.Histograms("monitor/steps_to_convergence")
        values = histogram.histogram_value
        assert values.num == 3  # one per sample
        assert 10 < values.min <= values.max < 200


def test_a_large_state_has_no_plot_of_the_spectrum(tmp_path: Path) -> None:
    class Wide(Known):
        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            return self.estimator(lambda h: 0.5 * h + self.added.sum(), torch.zeros(600)).state.sum().double()

    _, events = fit_logged(Wide(), drives(3), tmp_path, NeumannRBP(20, Picard(100, 1e-5)), EquilibriumMonitor(1, 1))
    assert "monitor/spectrum" not in events.Tags()["images"]
    assert "monitor/forward_solve" in events.Tags()["images"]
