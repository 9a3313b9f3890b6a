"""The model of a training step compared with measurements, and its estimates for many devices."""

import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jsonargparse.typing import PositiveFloat, PositiveInt

from benchmarks.report import markdown, median_and_quartiles, write_csv
from benchmarks.scaling.model import (
    Job,
    Machine,
    Sharing,
    kept_bytes,
    seconds,
    sending_seconds,
    sent_bytes,
    working_bytes,
)
from benchmarks.scaling.worker import rank_of
from benchmarks.timing import check_repeats

FITTED = ((10, 5), (40, 5), (10, 20))
"""Steps and products of the training steps to which the constants of the machine are fitted."""

CHECKED = ((20, 10), (80, 5), (20, 40))
"""Steps and products of the training steps that are predicted."""

SHARED: tuple[Sharing, ...] = ("ddp", "fsdp", "fsdp kept")


def measured_by(ranks: int, jobs: Sequence[Job], repeats: int) -> list[dict[str, Any]]:
    """Measures training steps in processes of their own.

    Args:
        ranks: Number of processes.
        jobs: The training steps.
        repeats: Number of repeats.

    Returns:
        The measurements of each process.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([rank_of.__module__])
    with TemporaryDirectory() as folder, ProcessPoolExecutor(ranks, context) as processes:
        store = Path(folder) / "store"
        found = [processes.submit(rank_of, rank, ranks, store, jobs, repeats) for rank in range(ranks)]
        return [one.result() for one in found]


def fitted(jobs: Sequence[Job], found: Sequence[dict[str, Any]]) -> Machine:
    """Fits a machine's constants to measurements of one process, by least squares of the relative error.

    Args:
        jobs: Training steps.
        found: Their measurements.
    """
    times = np.array([statistics.median(one["seconds"]) for one in found])
    parts = np.array([[job.state * job.steps, job.state * job.products, job.state, 1] for job in jobs])
    step, product, once, fixed = np.linalg.lstsq(parts / times[:, None], np.ones(len(jobs)), rcond=None)[0].tolist()
    held = statistics.median(one["bytes"] / (4 * job.state) for job, one in zip(jobs, found, strict=True))
    return Machine(step, product, once, fixed, states=held)


def with_messages(
    machine: Machine, messages: dict[int, float], jobs: Sequence[Job], found: Sequence[dict[str, Any]]
) -> Machine:
    """Adds the constants of messages between two processes and of FSDP.

    Args:
        machine: The constants of one process.
        messages: Seconds of an all-reduce, by its number of elements; it consists of two messages of half that size.
        jobs: A training step with DDP, and the same with FSDP, which are compared in each turn.
        found: Their measurements.
    """
    slope, start = np.polyfit([4 * elements for elements in messages], list(messages.values()), 1).tolist()
    known = replace(machine, latency=max(start, 0.0) / 2, bandwidth=1 / slope)
    copied, *sharded = jobs
    turns = np.array([one["seconds"] for one in found])
    beyond = np.median(turns[1:] - turns[0], axis=1)
    beyond -= [sending_seconds(job, known) - sending_seconds(copied, known) for job in sharded]
    counts = np.array([[job.gathers, job.uses] for job in sharded])
    gather, use = np.linalg.lstsq(counts, beyond, rcond=None)[0].tolist()
    return replace(known, gather=gather, use=use)


def row(job: Job, machine: Machine, found: dict[str, Any]) -> dict[str, Any]:
    """A prediction and its measurement."""
    return {
        "ranks": job.ranks,
        "sharing": job.sharing,
        "state": job.state,
        "steps": job.steps,
        "products": job.products,
        "predicted_seconds": seconds(job, machine),
        "seconds": found["seconds"],
        "predicted_bytes": working_bytes(job, machine),
        "bytes": found["bytes"],
        "predicted_collectives": job.gathers + 1 if job.ranks > 1 else 0,
        "collectives": found["collectives"],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats predictions and measurements as Markdown."""
    lines = []
    for one in rows:
        ratios = [taken / one["predicted_seconds"] for taken in one["seconds"]]
        lines.append(
            [
                *(one[name] for name in ("ranks", "sharing")),
                *(f"{one[name]:,}" for name in ("state", "steps", "products")),
                f"{1e3 * one['predicted_seconds']:.1f}",
                f"{1e3 * statistics.median(one['seconds']):.1f}",
                median_and_quartiles(ratios),
                *(f"{one[name] / 2**20:.2f}" for name in ("predicted_bytes", "bytes")),
                *(one[name] for name in ("predicted_collectives", "collectives")),
            ]
        )
    header = ["processes", "parameters", "state", "T", "K", "ms predicted", "measured", "measured / predicted"]
    return markdown([*header, "MiB predicted", "measured", "collectives predicted", "measured"], lines)


def extrapolated(devices: Sequence[int], job: Job, machine: Machine) -> list[dict[str, Any]]:
    """The model's estimates for more devices, each with a state of the same size.

    Args:
        devices: Numbers of devices.
        job: The training step of one device.
        machine: The constants of each device.
    """
    rows = []
    for count in devices:
        for sharing in SHARED:
            one = Job(job.steps, job.products, job.state, job.parameters, count, sharing)
            rows.append(
                {
                    "devices": count,
                    "sharing": sharing,
                    "seconds": seconds(one, machine),
                    "sending_seconds": sending_seconds(one, machine),
                    "sent_bytes": sent_bytes(one),
                    "held_bytes": working_bytes(one, machine) + kept_bytes(one),
                }
            )
    return rows


def table_of_devices(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the model's estimates for more devices as Markdown."""
    lines = [
        [
            row["devices"],
            row["sharing"],
            f"{row['seconds']:.3f}",
            f"{100 * row['sending_seconds'] / row['seconds']:.1f} %",
            f"{row['sent_bytes'] / 1e9:.2f}",
            f"{row['held_bytes'] / 2**30:.2f}",
        ]
        for row in rows
    ]
    return markdown(["devices", "parameters", "seconds", "share of sending", "GB sent", "GiB held"], lines)


def scaling(
    width: PositiveInt = 256,
    samples: list[PositiveInt] = [64, 256],
    repeats: PositiveInt = 5,
    devices: list[PositiveInt] = [8, 64, 1000],
    rate: PositiveFloat = 1e14,
    bandwidth: PositiveFloat = 2.5e10,
    latency: PositiveFloat = 1e-5,
    out: Path = Path("logs/scaling"),
) -> None:
    """The cost of a training step as steps, products, states and processes grow: a model, and measurements.

    Fits the constants of this machine to a few training steps, predicts others, with one process and with two, and
    measures these: CPU time, peak memory and number of collectives. Then evaluates the model for many devices of an
    assumed kind. Prints both tables, and writes a CSV file of each.

    Args:
        width: Units of a sample; the parameters are its square.
        samples: Numbers of samples of a process.
        repeats: Number of repeats, at least 2.
        devices: Numbers of devices for the estimates.
        rate: Assumed floating-point operations per second of such a device.
        bandwidth: Assumed bytes per second from one device to the next.
        latency: Assumed seconds of a message.
        out: Folder to write to.

    Raises:
        UserError: If an argument is invalid.
    """
    check_repeats(repeats)
    states = [width * count for count in samples]
    to_fit = [Job(steps, products, state, width**2) for state in states for steps, products in FITTED]
    alone = [Job(steps, products, state, width**2) for state in states for steps, products in CHECKED]
    to_fit_shared, shared = (
        [Job(*counts, states[-1], width**2, 2, sharing) for sharing in SHARED] for counts in (FITTED[0], CHECKED[0])
    )
    (one,) = measured_by(1, [*to_fit, *alone], repeats)
    two, _ = measured_by(2, [*to_fit_shared, *shared], repeats)
    machine = fitted(to_fit, one["jobs"][: len(to_fit)])
    machine = with_messages(machine, two["messages"], to_fit_shared, two["jobs"][: len(SHARED)])
    found = [*one["jobs"][len(to_fit) :], *two["jobs"][len(SHARED) :]]
    rows = [row(job, machine, measured) for job, measured in zip([*alone, *shared], found, strict=True)]
    print(table(rows))
    print(f"\nA solve and its gradient hold {machine.states:.1f} states.\n")
    # A step, a product and the gradient of the parameters are one multiplication by the weights each.
    large, each = Job(30, 15, 10**7, 10**8), 2 * 10**4 / rate
    assumed = Machine(each, each, each, 0.0, latency, bandwidth, states=machine.states)
    of_devices = extrapolated(devices, large, assumed)
    print(table_of_devices(of_devices))
    write_csv(
        out / "scaling.csv", [one | {"seconds": " ".join(f"{taken:.6g}" for taken in one["seconds"])} for one in rows]
    )
    write_csv(out / "scaling_devices.csv", of_devices)
