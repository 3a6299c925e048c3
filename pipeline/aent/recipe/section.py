"""The base of every section of a recipe.

``RESUME`` of a section (or ``mark`` of a field that differs) says if it may change when a run is
resumed: ``same`` (a change would corrupt the run), ``warn``, ``free``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Resume = Literal["same", "warn", "free"]


def mark(default: Any, resume: Resume, **constraints: Any) -> Any:
    """A field whose resume rule differs from its section's."""
    return Field(default, json_schema_extra={"resume": resume}, **constraints)


class Section(BaseModel):
    """Base of every section: unknown keys are errors, and values do not change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )
    RESUME: ClassVar[Resume] = "same"
