"""Dataclasses of flat tensors, with one value per token or one per sequence.

The type of each field says which of the two it is. Code that cuts such data (mini-batches,
micro-batches, samples of tokens) or sends it iterates over the fields by type, so no list has to
be kept for new fields: ``mapped`` handles a field or raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from types import NoneType
from typing import Annotated, Any, Self, TypeAlias, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

PerToken: TypeAlias = Annotated[Tensor, "token"]  # [T]
PerSequence: TypeAlias = Annotated[Tensor, "sequence"]  # [S]
PerBatch: TypeAlias = Annotated[float, "batch"]  # one number for the whole batch


class Flat:
    """Base of a dataclass whose fields are ``PerToken``, ``PerSequence``, ``PerBatch`` or another
    such dataclass, any of them ``| None``."""

    def mapped(self, **changes: Callable[[Any], Any]) -> Self:
        """The same data, each field changed by the function given for its kind ("token",
        "sequence", "batch"). None stays None.

        Raises KeyError for a field whose kind has no function.
        """
        changed = {}
        for name, kind in kinds(type(self)).items():  # type: ignore[arg-type]
            value = getattr(self, name)
            if value is not None and isinstance(kind, str):
                changed[name] = changes[kind](value)
            elif value is not None:
                changed[name] = value.mapped(**changes)
        return replace(self, **changed)  # type: ignore[type-var]

    def at(self, tokens: Tensor) -> Self:
        """The values of these tokens [n] int64, in this order; only for data per token."""
        return self.mapped(token=lambda value: value[tokens])

    def to(self, device: torch.device) -> Self:
        """Data per token, on another device."""
        return self.mapped(token=lambda value: to_device(value, device))


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to ``device``; to a GPU from pinned memory, so that the host goes on."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


@cache
def kinds(cls: type[Flat]) -> dict[str, str | type[Flat]]:
    """{field: "token", "sequence", "batch", or the nested ``Flat``}, in the fields' order.

    Raises TypeError for a field whose type says neither.
    """
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: _kind(cls, f.name, hints[f.name]) for f in fields(cls)}  # type: ignore[arg-type]


def _kind(cls: type, name: str, hint: Any) -> str | type[Flat]:
    if get_origin(hint) is Annotated:
        return hint.__metadata__[0]
    if isinstance(hint, type) and issubclass(hint, Flat):
        return hint
    options = [option for option in get_args(hint) if option is not NoneType]
    if len(options) == 1 < len(get_args(hint)):
        return _kind(cls, name, options[0])
    raise TypeError(f"{cls.__name__}.{name} is {hint}: neither per token nor per sequence")
