"""A model of the time, memory and traffic of a training step."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Sharing: TypeAlias = Literal["one", "ddp", "fsdp", "fsdp kept"]
"""How processes share the parameters. There is one process (``"one"``), or each has a copy (``"ddp"``), or each has a
shard; all shards are then gathered for each use (``"fsdp"``), or kept from a forward pass to the next backward pass
(``"fsdp kept"``)."""


@dataclass(frozen=True)
class Job:
    """A training step with an implicit estimator, in each process.

    Attributes:
        steps: T, applications of the update, including the taped one.
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
        """How often sharded parameters are used: in each application, each product and the parameters' gradient."""
        return self.steps + self.products + 1 if self.sharing.startswith("fsdp") else 0

    @property
    def gathers(self) -> int:
        """How often the parameters are gathered: for each use.

        Kept parameters are freed after a backward pass, and a product is one.
        """
        return 1 + self.products if self.sharing == "fsdp kept" else self.uses

    @property
    def sends(self) -> int:
        """How often all parameters, or gradients, go around once: an all-reduce is a reduction and a gather."""
        return {"one": 0, "ddp": 2}.get(self.sharing, self.gathers + 1)


@dataclass(frozen=True)
class Machine:
    """The constants of a machine.

    Attributes:
        step: Seconds of an application of the update, per element of a state.
        product: Seconds of a product, per element of a state.
        once: Seconds of the work done once (loss, gradient of the parameters), per element of a state.
        fixed: Seconds of a training step that do not depend on its size.
        latency: Seconds of a message to the next process.
        bandwidth: Bytes per second to the next process.
        gather: Seconds of a gather beyond its message, since parameters are copied in and out.
        use: Further seconds for each use of sharded parameters, in FSDP's hooks.
        states: Number of states that a solve and its gradient hold at once.
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
    """Bytes that a process sends to the next one in a training step, in a ring and in float32.

    Args:
        job: The training step.
    """
    return 4 * job.parameters * job.sends * (job.ranks - 1) / job.ranks


def sending_seconds(job: Job, machine: Machine) -> float:
    """Seconds of the messages of a training step, one after another, including gathers and uses.

    Args:
        job: The training step.
        machine: The machine.
    """
    waited = job.sends * (job.ranks - 1) * machine.latency + sent_bytes(job) / machine.bandwidth
    return waited + job.gathers * machine.gather + job.uses * machine.use


def seconds(job: Job, machine: Machine) -> float:
    """Seconds of a training step, without overlap of messages and computation.

    Args:
        job: The training step.
        machine: The machine.
    """
    for_each = job.steps * machine.step + job.products * machine.product + machine.once
    return job.state * for_each + machine.fixed + sending_seconds(job, machine)


def working_bytes(job: Job, machine: Machine) -> float:
    """Peak bytes of a training step in float32, beyond those that stay allocated. They depend on neither T nor K.

    The gradient of the parameters is formed when most states are freed, so the larger of the two counts.

    Args:
        job: The training step.
        machine: The machine.
    """
    gathered = job.parameters if job.gathers else 0
    return 4 * (max(machine.states * job.state, job.parameters) + gathered)


def kept_bytes(job: Job) -> float:
    """Bytes that stay allocated between training steps, in float32: parameters and the two averages of Adam for each.

    Args:
        job: The training step.
    """
    shards = job.ranks if job.sharing.startswith("fsdp") else 1
    return 4 * 3 * job.parameters / shards
