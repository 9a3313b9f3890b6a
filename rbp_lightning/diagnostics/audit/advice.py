"""The advice of an audit: which estimator to use."""

import math
from collections.abc import Callable, Iterable

from rbp_lightning.diagnostics.audit.measurement import Measurement
from rbp_lightning.diagnostics.audit.reference import MAX_STEPS, Reference

TAPED = ("BPTT", "TBPTT")
"""Prefixes of the names of estimators that differentiate the steps taken, converged or not."""


QUASI_NEWTON = "SHINE"
"""Prefix of the names of estimators that need Broyden's method, with which they are measured."""


def summaries(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Summarises each estimator over the batches: the worst of each figure, and the mean time.

    Args:
        measurements: The measurements of the estimators on all batches.
    """
    grouped: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        grouped.setdefault(measurement.gradient, []).append(measurement)
    return [
        Measurement(
            gradient=name,
            batch=None,
            cosine=_worst(min, [one.cosine for one in group]),
            relative_error=_worst(max, [one.relative_error for one in group]),
            sign_agreement=_worst(min, [one.sign_agreement for one in group]),
            products=max(one.products for one in group),
            seconds=sum(one.seconds for one in group) / len(group),
            saved_bytes=max(one.saved_bytes for one in group),
        )
        for name, group in grouped.items()
    ]


def _worst(choose: Callable[[list[float]], float], values: list[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else choose(values)


def recommend(references: list[Reference], measured: list[Measurement], error: float) -> Measurement | None:
    """Returns the cheapest estimator that reaches an error, or ``None`` if none does.

    If a forward solve does not converge, these are the estimators that differentiate the steps taken. If the reference
    is too inexact to measure the error, there are none.

    Args:
        references: The reference of each batch.
        measured: The summary of each estimator.
        error: The relative error to reach.
    """
    good = [one for one in measured if one.relative_error <= error]
    if not all(one.settled for one in references):
        good = [one for one in good if one.gradient.startswith(TAPED)]
    elif not _all_finite(references) or not _adjoint_residual(references) <= error / 10:
        good = []
    return _cheapest(good) if good else None


def _all_finite(references: list[Reference]) -> bool:
    return all(bool(one.gradient.isfinite().all()) for one in references)


def _adjoint_residual(references: list[Reference]) -> float:
    return max(one.adjoint_residual or 0.0 for one in references)


def advise(references: list[Reference], measured: list[Measurement], error: float) -> str:
    """Recommends the cheapest estimator that reaches an error, or explains what is wrong.

    Args:
        references: The reference of each batch.
        measured: The summary of each estimator.
        error: The relative error to reach.

    Returns:
        One sentence.

    Example:
        >>> exact = Reference("exact adjoint", torch.ones(1), True, 40, 1e-13, 1e-15, 0.5, 0.6, False)
        >>> cheap = Measurement("NeumannRBP(steps=10)", None, 1.0, 2e-3, 1.0, 11, 0.1, 1000)
        >>> print(advise([exact], [cheap, Measurement("BPTT", None, 1.0, 1e-6, 1.0, 40, 0.2, 9000)], error=0.01))
        Take NeumannRBP(steps=10): it reaches a relative error of 0.2% (asked for: 1%) at the least cost, 11 ...
    """
    radius = max(one.spectral_radius for one in references)
    recommended = recommend(references, measured, error)
    unsettled = [one for one in references if not one.settled]
    if unsettled:
        worst = max(one.residual for one in unsettled)
        advice = (
            f"The map does not converge: its relative residual is {worst:.2g} after {unsettled[0].steps} steps, and "
            f"the spectral radius of its Jacobian there is {radius:.3g}, so implicit gradients are not those of a "
            "fixed point: "
        )
        stable = "bound the norm of its weights (rbp_lightning.nn), add jacobian_penalty, or damp it"
        if unsettled[0].steps >= MAX_STEPS:
            advice += stable
        else:  # a fixed number of steps
            advice += "give it more steps" + (f", or {stable}" if radius >= 1 else "")
        if recommended is not None:
            advice += f"; until then {recommended.gradient} gives the gradient of the steps taken"
        return advice + "."
    if not _all_finite(references):
        return (
            f"The exact gradient is not finite, so the adjoint equation has no solution; the spectral radius of the "
            f"Jacobian is {radius:.3g}: make the map a stronger contraction (rbp_lightning.nn)."
        )
    inexact = _adjoint_residual(references)
    if not inexact <= error / 10:
        return (
            f"The exact adjoint was solved to a residual of {inexact:.1e} only, too inexact to measure errors of "
            f"{_percent(error)}: the spectral radius of the Jacobian is {radius:.3g}, so make the map a stronger "
            "contraction (rbp_lightning.nn)."
        )
    if recommended is None:
        finite = [one for one in measured if one.relative_error < float("inf")]
        best = min(finite, key=lambda one: one.relative_error, default=None)
        reached = "none is finite" if best is None else f"{best.gradient} with {_percent(best.relative_error)} is best"
        return (
            f"No gradient reaches a relative error of {_percent(error)} ({reached}): the spectral radius of the "
            f"Jacobian is {radius:.3g}, so tighten the forward tolerance (or increase max_steps), audit more steps, or "
            "make the map a stronger contraction (rbp_lightning.nn)."
        )
    solver = " with the forward solver Broyden" if recommended.gradient.startswith(QUASI_NEWTON) else ""
    advice = (
        f"Take {recommended.gradient}{solver}: it reaches a relative error of {_percent(recommended.relative_error)} "
        f"(asked for: {_percent(error)}) at the least cost, {recommended.products} products and "
        f"{recommended.saved_bytes / 1024:.0f} KiB"
    )
    implicit = [one for one in measured if not one.gradient.startswith(TAPED) and one.relative_error >= 0]
    least = min((one.relative_error for one in implicit), default=0.0)
    if least > error:
        advice += (
            f"; no implicit gradient is better than {_percent(least)}, whatever its steps, so the forward tolerance is "
            "too loose for this loss: tighten it (or increase max_steps)"
        )
    return advice + "."


def _cheapest(candidates: list[Measurement]) -> Measurement:
    """The estimator with the least memory among those within a tenth of the fewest products."""
    fewest = min(one.products for one in candidates)
    near = [one for one in candidates if one.products <= 1.1 * fewest]
    return min(near, key=lambda one: (one.saved_bytes, one.products, one.relative_error))


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"
