"""Tables of responses in the format of MLflow's tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows in the format of MLflow's tables (columns, data); NaN becomes null."""
    columns = list(rows[0]) if rows else []
    data = [[_json_value(row[c]) for c in columns] for row in rows]
    return json.dumps({"columns": columns, "data": data})


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
