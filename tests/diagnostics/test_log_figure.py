"""Figures and pictures are written to every logger and to files."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rbp_lightning.diagnostics.log_figure import log_figure, picture_folder
from tests.cli.runs import Run, Zygote
from tests.images import pixels_of

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def quiet_trainer(*loggers: object) -> Trainer:
    return Trainer(accelerator="cpu", logger=list(loggers), enable_checkpointing=False, enable_progress_bar=False)


def pictures(folder: Path) -> dict[str, tuple[int, np.ndarray]]:
    """The step and pixels of each picture in a run's event file."""
    events = EventAccumulator(str(folder)).Reload()
    found = {}
    for tag in events.Tags()["images"]:
        (event,) = events.Images(tag)
        found[tag] = event.step, pixels_of(io.BytesIO(event.encoded_image_string))
    return found


def test_figures_and_pixels_are_written_to_every_logger_and_to_files(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path), TensorBoardLogger(tmp_path, "one"), TensorBoardLogger(tmp_path, "two")]
    trainer = quiet_trainer(*loggers)
    folder = picture_folder(trainer)
    assert folder == Path(loggers[0].log_dir)
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.add_subplot()
    log_figure(trainer, "some/plot", figure, 3, folder)
    log_figure(trainer, "some/pixels", PIXELS, 4, folder)
    assert np.array_equal(pixels_of(folder / "pixels.png"), PIXELS)
    plot = pixels_of(folder / "plot.png")
    assert plot.shape == (50, 100, 3)
    for logger in loggers[1:]:
        logger.experiment.flush()
        found = pictures(Path(logger.log_dir))
        assert {tag: step for tag, (step, _) in found.items()} == {"some/plot": 3, "some/pixels": 4}
        assert np.array_equal(found["some/pixels"][1], PIXELS)
        assert np.array_equal(found["some/plot"][1], plot)


def test_without_a_logger_and_in_other_processes_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = quiet_trainer()
    assert picture_folder(trainer) is None
    log_figure(trainer, "some/pixels", PIXELS, 0, picture_folder(trainer))
    trainer = quiet_trainer(TensorBoardLogger(tmp_path))
    folder = picture_folder(trainer)
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    log_figure(trainer, "some/pixels", PIXELS, 0, folder)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.filterwarnings("ignore")  # warnings of mlflow
def test_mlflow_gets_pictures(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a file store needs no server
    logger = MLFlowLogger(save_dir=str(tmp_path))
    log_figure(quiet_trainer(logger), "some/pixels", PIXELS, 4)
    (picture,) = tmp_path.rglob("*.png")
    assert picture.parts[-3:] == ("some", "pixels", "step_000004.png")
    assert np.array_equal(pixels_of(picture), PIXELS)


@pytest.mark.filterwarnings("ignore")  # warnings of wandb
def test_wandb_gets_pictures(tmp_path: Path, monkeypatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    log_figure(quiet_trainer(logger), "some/pixels", PIXELS, 4)
    wandb.finish()
    (picture,) = tmp_path.rglob("*.png")
    assert np.array_equal(pixels_of(picture), PIXELS)
    assert picture.parent.name == "some"
    assert picture.name.startswith("pixels_")


def test_matplotlib_is_not_imported_before_it_is_needed(zygote: Zygote, tmp_path: Path) -> None:
    log_figure_file = sys.modules[log_figure.__module__].__file__
    # Lightning may import matplotlib, so it is removed after importing Lightning.
    forbid = "import lightning.pytorch, runpy, sys; sys.modules |= {'matplotlib': None, 'matplotlib.figure': None}"
    program = tmp_path / "program.py"
    program.write_text(f"{forbid}; runpy.run_path({log_figure_file!r})")
    run = Run(zygote, tmp_path, [], {}, program)
    assert run.end() == 0, run.error()
