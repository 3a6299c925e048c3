"""The families as a table in Markdown: ``python -m aent.models.families.table`` prints that of
docs/models.md."""

from __future__ import annotations

import json
from collections.abc import Iterator

from aent.models.families import FAMILIES, Family

WINDOWS = {
    "none": "",
    "all_layers": "in every layer",
    "upper_layers": "in the upper layers (`use_sliding_window`)",
}


def lines() -> Iterator[str]:
    yield "| `model_type` | what it is | options that are computed | `rope_type` | sliding window |"
    yield "|---|---|---|---|---|"
    for family in FAMILIES.values():
        options = "; ".join(
            f"`{name}`: {' or '.join(json.dumps(value) for value in values)}"
            for name, values in family.computed.items()
        )
        ropes, window = ", ".join(family.ropes), WINDOWS[family.window]
        yield f"| `{family.model_type}` | {_what(family)} | {options} | {ropes} | {window} |"


def _what(family: Family) -> str:
    biases = ", biases of query, key and value" if family.qkv_bias else ""
    norms = ", norms of queries and keys" if family.qk_norm else ""
    fused = ", fused projections" if family.fused else ""
    return f"`{family.architecture}`{biases}{norms}{fused}"


if __name__ == "__main__":
    print("\n".join(lines()))
