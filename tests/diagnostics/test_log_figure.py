"""Pictures in TensorBoard."""

import io
import sys
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rbp_lightning.diagnostics.log_figure import log_figure, tensorboard_writers
from tests.cli.runs import Run, Zygote


def quiet_trainer(*loggers: object) -> Trainer:
    return Trainer(accelerator="cpu", logger=list(loggers), enable_checkpointing=False, enable_progress_bar=False)


def pictures(folder: Path) -> dict[str, tuple[int, np.ndarray]]:
    """Step and pixels of each picture in a run's folder."""
    events = EventAccumulator(str(folder)).Reload()
    found = {}
    for tag in events.Tags()["images"]:
        (event,) = events.Images(tag)
        found[tag] = event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    return found


def test_figures_and_images_go_to_every_tensorboard_logger(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, "one"), CSVLogger(tmp_path), TensorBoardLogger(tmp_path, "two")]
    trainer = quiet_trainer(*loggers)
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.add_subplot()
    log_figure(trainer, "plot", figure, 3)
    log_figure(trainer, "grey", torch.tensor([[0.0, 1.0, 0.0]]), 4)
    assert len(tensorboard_writers(trainer)) == 2
    for logger in (loggers[0], loggers[2]):
        logger.experiment.flush()
        found = pictures(Path(logger.log_dir))
        assert found["plot"][0] == 3
        assert found["plot"][1].shape[:2] == (50, 100)
        assert found["grey"][0] == 4
        grey = found["grey"][1]
        assert grey.reshape(1, 3, -1)[..., 0].tolist() == [[0, 255, 0]]


def test_other_loggers_and_processes_are_left_alone(tmp_path: Path, monkeypatch) -> None:
    figure = Figure()
    log_figure(quiet_trainer(CSVLogger(tmp_path)), "plot", figure, 0)
    trainer = quiet_trainer(TensorBoardLogger(tmp_path))
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    log_figure(trainer, "plot", figure, 0)
    assert not list(tmp_path.rglob("events*"))


def test_matplotlib_is_not_imported_before_it_is_needed(zygote: Zygote, tmp_path: Path) -> None:
    log_figure_file = sys.modules[log_figure.__module__].__file__
    # Lightning may import it, so it is taken away after that.
    forbid = "import lightning.pytorch, runpy, sys; sys.modules |= {'matplotlib': None, 'matplotlib.figure': None}"
    program = tmp_path / "program.py"
    program.write_text(f"{forbid}; runpy.run_path({log_figure_file!r})")
    run = Run(zygote, tmp_path, [], {}, program)
    assert run.end() == 0, run.error()
