"""Time, memory and traffic of a training step as functions of what they depend on."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Sharing: TypeAlias = Literal["one", "ddp", "fsdp", "fsdp kept"]
"""How processes share the parameters: there is one process (``"one"``), each has a copy (``"ddp"``), or each has a
shard, and all are gathered for each use (``"fsdp"``), or are kept from a forward pass to the next backward pass
(``"fsdp kept"``)."""


@dataclass(frozen=True)
class Job:
    """A training step by an implicit estimator, as each process does it.

    Attributes:
        steps: T, applications of the update, the taped one counted.
        products: K, products with the transposed Jacobian, through the taped application.
        state: Elements of this process's states.
        parameters: Elements of the parameters.
        ranks: Number of processes.
        sharing: How they share the parameters.
    """

    steps: int
    products: int
    state: int
    parameters: int
    ranks: int = 1
    sharing: Sharing = "one"

    @property
    def uses(self) -> int:
        """How often sharded parameters are used: for each application, each product and the parameters' gradient."""
        return self.steps + self.products + 1 if self.sharing.startswith("fsdp") else 0

    @property
    def gathers(self) -> int:
        """How often the parameters are gathered: for each use.

        Kept parameters are let go after a backward pass, and a product is one.
        """
        return 1 + self.products if self.sharing == "fsdp kept" else self.uses

    @property
    def sends(self) -> int:
        """How often all parameters, or gradients, go around once: an all-reduce is a reduction and a gather."""
        return {"one": 0, "ddp": 2}.get(self.sharing, self.gathers + 1)


@dataclass(frozen=True)
class Machine:
    """What a machine takes.

    Attributes:
        step: Seconds of an application of the update for each element of a state.
        product: Seconds of a product for each element of a state.
        once: Seconds of what comes once, for each element of a state: the loss, the gradient of the parameters.
        fixed: Seconds of a training step that depend on none of these.
        latency: Seconds of a message to the next process.
        bandwidth: Bytes a second to the next process.
        gather: Seconds that a gather takes beyond its message: parameters are copied in and out of it.
        use: Seconds that a use of sharded parameters takes beyond that, as it looks whether there is something to do.
        states: How many states a solve and its gradient hold at once.
    """

    step: float
    product: float
    once: float
    fixed: float
    latency: float = 0.0
    bandwidth: float = float("inf")
    gather: float = 0.0
    use: float = 0.0
    states: float = 0.0


def sent_bytes(job: Job) -> float:
    """Bytes in float32 that a process sends to the next one in a training step, in a ring.

    Args:
        job: The training step.
    """
    return 4 * job.parameters * job.sends * (job.ranks - 1) / job.ranks


def sending_seconds(job: Job, machine: Machine) -> float:
    """Seconds of the messages of a training step, each after the other, and of what goes with them.

    Args:
        job: The training step.
        machine: What it runs on.
    """
    waited = job.sends * (job.ranks - 1) * machine.latency + sent_bytes(job) / machine.bandwidth
    return waited + job.gathers * machine.gather + job.uses * machine.use


def seconds(job: Job, machine: Machine) -> float:
    """Seconds of a training step, no message of which is hidden behind computation.

    Args:
        job: The training step.
        machine: What it runs on.
    """
    for_each = job.steps * machine.step + job.products * machine.product + machine.once
    return job.state * for_each + machine.fixed + sending_seconds(job, machine)


def working_bytes(job: Job, machine: Machine) -> float:
    """Bytes in float32 that a training step holds at its peak beyond what stays: neither T nor K is in it.

    The gradient of the parameters is made once most states are gone, so that the larger one counts.

    Args:
        job: The training step.
        machine: What it runs on.
    """
    gathered = job.parameters if job.gathers else 0
    return 4 * (max(machine.states * job.state, job.parameters) + gathered)


def kept_bytes(job: Job, optimizer: int = 2) -> float:
    """Bytes in float32 that stay from step to step: the parameters and what the optimiser keeps.

    Args:
        job: The training step.
        optimizer: Numbers that the optimiser keeps for each parameter; Adam keeps two.
    """
    shards = job.ranks if job.sharing.startswith("fsdp") else 1
    return 4 * job.parameters * (1 + optimizer) / shards
