"""The families as a Markdown table: ``python -m aent.models.families.table`` prints the table of
docs/models.md."""

from __future__ import annotations

import json
from collections.abc import Iterator

from aent.models.families import FAMILIES, Family

WINDOWS = {
    "none": "",
    "all_layers": "in every layer",
    "upper_layers": "in the upper layers (`use_sliding_window`)",
    "unrotated_layers": "in the layers without rotary embedding (`use_sliding_window`)",
    "alternating": "in every other layer, or by `layer_types`",
    "pattern": "in five of six layers (`sliding_window_pattern`), or by `layer_types`",
}
NORMS = {
    "before": "",
    "after": "norms after attention and feed-forward",
    "around": "norms before and after attention and feed-forward",
}
QK_NORM = {
    "none": "",
    "heads": "norms of queries and keys",
    "whole": "norms of queries and keys over all heads",
}


def lines() -> Iterator[str]:
    yield "| `model_type` | what it is | options that are computed | `rope_type` | sliding window |"
    yield "|---|---|---|---|---|"
    for family in FAMILIES.values():
        options = "; ".join(
            [f"`{name}`" for name in family.numbers]
            + [
                f"`{name}`: {' or '.join(json.dumps(value) for value in values)}"
                for name, values in family.computed.items()
            ]
        )
        ropes = ", ".join(family.ropes)
        window = WINDOWS[family.window]
        yield f"| `{family.model_type}` | {_what(family)} | {options} | {ropes} | {window} |"


def _what(family: Family) -> str:
    parts = (
        f"`{family.architecture}`",
        "biases of query, key and value" if family.qkv_bias else "",
        NORMS[family.norms],
        "norms by 1 + weight" if family.unit_offset else "",
        QK_NORM[family.qk_norm],
        "fused projections" if family.fused else "",
        "GeLU (tanh)" if family.activation == "gelu_pytorch_tanh" else "",
        "embeddings times sqrt(hidden size)" if family.scaled_embedding else "",
        "a rotation of their own in layers with a window" if family.window_theta else "",
        "layers without rotation" if family.unrotated_layers else "",
    )
    return ", ".join(part for part in parts if part)


if __name__ == "__main__":
    print("\n".join(lines()))
