"""Runs that are killed while writing checkpoints, full disks, and signals."""

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rbp_lightning.checkpoint_file import load_checkpoint
from tests.cli.faulty import OPTIONS
from tests.cli.runs import Run, Zygote

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another file system."""
    if not SHARED_MEMORY.is_dir():
        pytest.skip(f"no {SHARED_MEMORY}")
    folder = Path(tempfile.mkdtemp(dir=SHARED_MEMORY))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("layout", ["logs elsewhere", "temporary folder elsewhere"])
def test_a_kill_loses_no_checkpoint(
    zygote: Zygote, tmp_path: Path, elsewhere: Path, layout: str, cases, figures
) -> None:
    logs, temporary = (elsewhere, tmp_path) if layout == "logs elsewhere" else (tmp_path, elsewhere)
    temporary = temporary / "temporary"
    temporary.mkdir()
    generator = random.Random(layout)
    kills, unfinished = cases(1, 100), 0
    run_folder = logs / "n" / "version_0"
    for kill in range(kills):
        options = [
            *OPTIONS,
            f"--trainer.logger.save_dir={logs}",
            "--trainer.max_epochs=100000",
            "--model.ballast=1000000",
        ]
        run = Run(zygote, tmp_path, ["fit", *options], {"TMPDIR": str(temporary)})
        kept = {name: run_folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")}
        run.until(lambda kept=kept: all(path.exists() for path in kept.values()))
        after = time.monotonic() + generator.uniform(0.0, 0.5)
        while time.monotonic() < after:
            missing = [path for path in kept.values() if not path.exists()]
            assert not missing, f"kill {kill} of seed {layout!r}: {missing} disappeared"
        run.kill()
        for path in kept.values():
            load_checkpoint(path)
        assert list(temporary.rglob("*")) == [], f"kill {kill} of seed {layout!r}"
        left = list(run_folder.rglob("*.unfinished"))
        unfinished += bool(left)
        shutil.rmtree(run_folder)
    figures |= {"kills": kills, "lost": 0, "in the middle of a write": unfinished}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes file systems of some KiB."""
    disks: list[Path] = []

    def make(size: int) -> Path:
        disk = tmp_path / f"{len(disks)}"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        disks.append(disk)
        return disk

    yield make
    for disk in disks:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_reported_in_one_line_and_leaves_valid_checkpoints(
    zygote: Zygote, tmp_path: Path, small_disk: Callable[[int], Path], cases, figures
) -> None:
    generator, failed = random.Random(0), 0
    runs = cases(2, 50)
    for number in range(runs):
        size = generator.randrange(4, 41, 4)
        disk = small_disk(size)
        logger = ["CSVLogger", "TensorBoardLogger"][number % 2]
        checkpoints = ["true", "false"][number // 2 % 2]
        options = [f"--trainer.logger={logger}", f"--trainer.logger.save_dir={disk}", "--trainer.max_epochs=30"]
        run = Run(zygote, tmp_path, ["fit", *OPTIONS, *options, f"--trainer.enable_checkpointing={checkpoints}"], {})
        status = run.end(120)
        case = f"seed 0, run {number}: {size} KiB, {logger}, checkpoints {checkpoints}: {run.error()[-2000:]}"
        assert "Traceback" not in run.error(), case
        assert (status, len(run.lines())) in ((0, 0), (1, 1)), case
        for path in disk.rglob("*.ckpt"):
            load_checkpoint(path)
        assert list(disk.rglob("*.unfinished")) == [], case
        failed += status == 1
    figures |= {"disks": runs, "full": failed}


def test_a_signal_ends_all_processes_of_ddp(zygote: Zygote, tmp_path: Path, cases, figures) -> None:
    generator, runs = random.Random(0), cases(0, 9)
    if not runs:
        pytest.skip("only in the long run: the processes of ddp import everything again")
    for number in range(runs):
        logs = tmp_path / f"{number}"
        options = [*OPTIONS, f"--trainer.logger.save_dir={logs}", "--trainer.max_epochs=100000", "--model.seconds=0.02"]
        run = Run(zygote, tmp_path, ["fit", *options, "--trainer.devices=2", "--trainer.strategy=ddp"], {})
        run.until((logs / "n/version_0/checkpoints/last.ckpt").exists)
        time.sleep(generator.uniform(0.0, 0.5))
        found = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True)
        (child,) = map(int, found.stdout.split())
        who = ["first", "second", "all"][number % 3]
        {"first": os.kill, "second": os.kill, "all": os.killpg}[who](
            child if who == "second" else run.pid, signal.SIGTERM
        )
        status = run.end(60)
        case = f"seed 0, run {number}, a signal to {who}: {run.error()[-2000:]}"
        assert status == 143, case
        assert len(run.lines()) == 1, case
        assert "Traceback" not in run.error(), case
        load_checkpoint(logs / "n/version_0/checkpoints/last.ckpt")
    figures |= {"runs": runs, "not ended": 0}
