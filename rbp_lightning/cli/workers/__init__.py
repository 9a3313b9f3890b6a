"""Worker processes that execute jobs, several at once: the engine of sweeps and of a checkout's experiments."""

from rbp_lightning.cli.workers.live_table import LiveTable
from rbp_lightning.cli.workers.pool import Pool, Source, slots
from rbp_lightning.cli.workers.worker import Job, Slot, last_line

__all__ = ["Job", "LiveTable", "Pool", "Slot", "Source", "last_line", "slots"]
