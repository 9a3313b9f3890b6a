"""Parameters of a process's own."""

import copy

import torch
from lightning.pytorch import LightningModule, Trainer


def unshare(trainer: Trainer, pl_module: LightningModule) -> None:
    """Gives each process of a fork server its own copy of the module's parameters and buffers on the CPU.

    PyTorch hands tensors to new processes in shared memory. Lightning (2.6) takes them out of it for processes that are
    spawned, and not for those of a fork server, whose optimisers would all step the same parameters.

    Args:
        trainer: The Trainer.
        pl_module: Its module, before it is wrapped.
    """
    if getattr(trainer.strategy.launcher, "_start_method", None) != "forkserver" or trainer.world_size == 1:
        return
    with torch.no_grad():
        shared = [tensor for tensor in (*pl_module.parameters(), *pl_module.buffers()) if tensor.device.type == "cpu"]
        # Together, so that views of one storage stay so.
        for tensor, own in zip(shared, copy.deepcopy([tensor.data for tensor in shared]), strict=True):
            tensor.data = own
