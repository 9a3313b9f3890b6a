"""Gives processes that are started by a fork server their own parameters."""

import copy

import torch
from lightning.pytorch import LightningModule, Trainer


def unshare(trainer: Trainer, pl_module: LightningModule) -> None:
    """Copies the module's parameters and buffers on the CPU in each process that was started by a fork server.

    PyTorch passes tensors to new processes in shared memory. Lightning (2.6) copies them for spawned processes, but not
    for those of a fork server, whose optimisers would all update the same parameters.

    Args:
        trainer: The Trainer.
        pl_module: Its module, before it is wrapped.
    """
    if getattr(trainer.strategy.launcher, "_start_method", None) != "forkserver" or trainer.world_size == 1:
        return
    with torch.no_grad():
        shared = [tensor for tensor in (*pl_module.parameters(), *pl_module.buffers()) if tensor.device.type == "cpu"]
        # In one deepcopy, so that views of one storage stay views.
        for tensor, own in zip(shared, copy.deepcopy([tensor.data for tensor in shared]), strict=True):
            tensor.data = own
