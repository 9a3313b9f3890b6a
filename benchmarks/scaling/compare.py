"""The model of a training step against measurements of it, and what it says of many devices."""

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
"""Steps and products that the machine's figures are fitted to."""

CHECKED = ((20, 10), (80, 5), (20, 40))
"""Steps and products that are predicted."""

SHARED: tuple[Sharing, ...] = ("ddp", "fsdp", "fsdp kept")


def measured_by(ranks: int, jobs: Sequence[Job], repeats: int) -> list[dict[str, Any]]:
    """Measures training steps in processes of their own.

    Args:
        ranks: How many processes.
        jobs: The training steps.
        repeats: How often each is timed.

    Returns:
        What each process found.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([rank_of.__module__])
    with TemporaryDirectory() as folder, ProcessPoolExecutor(ranks, context) as processes:
        store = Path(folder) / "store"
        found = [processes.submit(rank_of, rank, ranks, store, jobs, repeats) for rank in range(ranks)]
        return [one.result() for one in found]


def fitted(jobs: Sequence[Job], found: Sequence[dict[str, Any]]) -> Machine:
    """Fits a machine's figures to measurements of one process, by least squares of the relative error.

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
    """Adds what messages between two processes take, and what FSDP does with them.

    Args:
        machine: What one process takes.
        messages: Seconds of an all-reduce, which is two messages of half its elements, by its elements.
        jobs: A training step by DDP, which the others are compared with turn by turn, and the same by FSDP.
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
    """Lays predictions beside measurements, as Markdown."""
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
    """What the model says of more devices, each with as large a state.

    Args:
        devices: Numbers of devices.
        job: The training step of one.
        machine: What each device takes.
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
    """Lays what the model says of more devices out as Markdown."""
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
    """What a training step takes as steps, products, states and processes grow: a model against measurements.

    Fits the figures of this machine to a few training steps, predicts others, of one process and of two, and measures
    them: processor time, peak of the allocator and number of collectives. Then says what the model gives for many
    devices of an assumed kind. Prints both tables and leaves a CSV file of each.

    Args:
        width: Units of a sample; the parameters are its square.
        samples: Samples of a process.
        repeats: How often each is timed, at least 2.
        devices: Numbers of devices to say something of.
        rate: Floating-point operations a second of such a device, assumed.
        bandwidth: Bytes a second from one to the next, assumed.
        latency: Seconds of a message, assumed.
        out: Folder to write to.

    Raises:
        UserError: If an argument is not possible here.
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
    # A step and a product are a multiplication by the weights each, the parameters' gradient another one.
    large, each = Job(30, 15, 10**7, 10**8), 2 * 10**4 / rate
    assumed = Machine(each, each, each, 0.0, latency, bandwidth, states=machine.states)
    of_devices = extrapolated(devices, large, assumed)
    print(table_of_devices(of_devices))
    write_csv(
        out / "scaling.csv", [one | {"seconds": " ".join(f"{taken:.6g}" for taken in one["seconds"])} for one in rows]
    )
    write_csv(out / "scaling_devices.csv", of_devices)
