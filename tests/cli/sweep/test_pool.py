"""The machine is divided among the runs of a sweep."""

from typing import Any

import pytest
import torch

from rbp_lightning.cli.sweep.pool import slots


@pytest.mark.parametrize(("visible", "names"), [("3,5", ["3", "5"]), (None, ["0", "1"])])
def test_each_run_at_a_time_sees_one_gpu(monkeypatch, visible: str | None, names: list[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    def devices(jobs: int | None, runs: int = 9, accelerator: str = "auto") -> list[Any]:
        free = slots(jobs, runs, {"trainer": {"accelerator": accelerator}})
        return [slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in free]

    assert devices(None) == devices(None, accelerator="gpu") == names  # one for each GPU
    assert devices(None, runs=1) == names[:1]
    assert devices(5) == [*names, *names, names[0]]  # GPUs are shared
    assert devices(5, accelerator="cpu") == [None] * 5
