"""Pages of HTML without outside resources: a template with places, and data for its script."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def fill(template: Path, parts: Mapping[str, str]) -> str:
    """The template with each ``{{name}}`` replaced, in one pass, so that text of a part is never
    replaced itself."""
    text = template.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], text)


def script_data(data: Any) -> str:
    """JSON for a script element, with "<" escaped: "</" would end the element, and "<!--" would
    change the parser's state. Raises ValueError for NaN and infinities."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
