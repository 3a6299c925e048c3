"""A recipe's settings of the coefficient, checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from aent.entropy.controllers.checks import faults, with_defaults
from aent.entropy.controllers.values import SettingValues


@dataclass(frozen=True)
class ControllerSettings(SettingValues):
    """The constructor checks the fields and fills in those that have a default for their kind.

    It raises ValueError naming every faulty field.
    """

    def __post_init__(self) -> None:
        found = list(faults(asdict(self)))
        if found:
            raise ValueError("; ".join(found))
        for name, value in with_defaults(asdict(self)).items():
            object.__setattr__(self, name, value)
