"""Templates and the data of their scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aent.tracking.pages import fill, script_data


def test_a_part_that_looks_like_a_place_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>{{a}}</p>{{b}}")
    assert fill(tmp_path / "page.html", {"a": "{{b}}", "b": "x"}) == "<p>{{b}}</p>x"


def test_data_ends_no_element_and_opens_no_comment() -> None:
    data = {"text": "</script><!--<script>", "number": 0.1}
    written = script_data(data)
    assert "<" not in written
    assert json.loads(written) == data
    with pytest.raises(ValueError, match="JSON"):
        script_data([float("nan")])
