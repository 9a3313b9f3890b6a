"""The machine is divided among the jobs that run at once."""

from typing import Any

import pytest
import torch

from rbp_lightning.cli.workers import slots


@pytest.mark.parametrize(("visible", "names"), [("3,5", ["3", "5"]), (None, ["0", "1"])])
def test_each_job_at_a_time_sees_one_gpu(monkeypatch, visible: str | None, names: list[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    def devices(jobs: int | None, count: int = 9, gpus: bool = True) -> list[Any]:
        free = slots(jobs, count, gpus)
        return [slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in free]

    assert devices(None) == names  # one for each GPU
    assert devices(None, count=1) == names[:1]
    assert devices(5) == [*names, *names, names[0]]  # GPUs are shared
    assert devices(5, gpus=False) == [None] * 5
