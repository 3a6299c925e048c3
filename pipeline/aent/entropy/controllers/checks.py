"""Checks of a controller's settings, with one sentence for each fault."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from aent.entropy.controllers import aims
from aent.entropy.controllers.kinds import KINDS, Kind

MAX_LAG = 1000  # steps
MEASURES = ("full", "clamped")


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with the kind's defaults in place of None."""
    defaults = KINDS[values["kind"]].defaults
    return {key: defaults.get(key) if value is None else value for key, value in values.items()}


def faults(values: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each fault in these values of ControllerSettings' fields."""
    name = values["kind"]
    if name not in KINDS:
        yield f"controller.kind is {name!r}, but must be one of {', '.join(KINDS)}"
        return
    kind, values = KINDS[name], with_defaults(values)
    yield from _missing(name, kind, values)
    for key, value in values.items():
        if key in ("kind", "measure", "drives") or value is None:
            continue
        if key not in kind.fields and (key, value) != ("warmup_steps", 0):
            yield f"controller.{key} has no meaning with controller.kind={name}"
        elif not math.isfinite(value):
            yield f"controller.{key}={value} must be finite"
        elif value < 0:
            yield f"controller.{key}={value:g} must be 0 or more"
    yield from _order(kind, values)
    yield from _ranges(name, kind, values)


def _missing(name: str, kind: Kind, values: Mapping[str, Any]) -> Iterator[str]:
    missing = [f"controller.{key}" for key in kind.needs if values[key] is None]
    if missing:
        yield f"controller.kind={name} needs {', '.join(missing)}"
    if kind.either:
        given = [key for group in kind.either for key in group if values[key] is not None]
        if tuple(given) not in kind.either:
            groups = (" and ".join(f"controller.{key}" for key in group) for group in kind.either)
            yield f"controller.kind={name} needs either {', or '.join(groups)}"
    for one, other in (("anneal_to", "anneal_steps"), ("anneal_steps", "anneal_to")):
        if values[one] is not None and values[other] is None:
            yield f"controller.{one} also needs controller.{other}"


def _order(kind: Kind, values: Mapping[str, Any]) -> Iterator[str]:
    for low, high in (("low", "high"), ("low_fraction", "high_fraction"), ("min", "max")):
        if None not in (values[low], values[high]) and values[low] > values[high]:
            yield f"controller.{low}={values[low]:g} is above controller.{high}={values[high]:g}"
            return
    initial, least, most = values["initial"], values["min"], values["max"]
    if "min" in kind.fields and least is not None and initial < least:
        yield f"controller.initial={initial:g} is below controller.min={least:g}"
    if "max" in kind.fields and most is not None and initial > most:
        yield f"controller.initial={initial:g} is above controller.max={most:g}"


def _ranges(name: str, kind: Kind, values: Mapping[str, Any]) -> Iterator[str]:
    if kind.logarithmic and values["min"] == 0:
        yield (
            f"controller.min=0 must be above 0 with controller.kind={name}, which takes its "
            f"logarithm"
        )
    if kind.aim is aims.approach:
        for key in ("target", "low"):
            if values[key] == 0:
                yield f"controller.{key}=0 must be above 0: its logarithm is the aim"
    if values["smoothing"] is not None and values["smoothing"] >= 1:
        yield f"controller.smoothing={values['smoothing']:g} must be below 1"
    for key in ("reference_steps", "anneal_steps"):
        if values[key] == 0:
            yield f"controller.{key}=0 must be 1 or more"
    for key in ("anneal_to", "response"):
        if values[key] == 0:
            yield f"controller.{key}=0 must be above 0"
    if values["lag_steps"] is not None and values["lag_steps"] > MAX_LAG:
        yield f"controller.lag_steps={values['lag_steps']:g} must be at most {MAX_LAG}"
    measure = values["measure"]
    if measure not in (None, *MEASURES):
        yield f"controller.measure is {measure!r}, but must be one of {', '.join(MEASURES)}"
