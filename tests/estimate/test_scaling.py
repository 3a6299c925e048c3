"""docs/scaling.md and the scale recipes' comments against the estimate."""

import importlib.util
import re
from pathlib import Path

import pytest

from aent.estimate import card
from aent.estimate.disk import disk_bytes
from aent.estimate.memory import GIB, estimate
from aent.layout.parallel import ParallelLayout
from aent.recipe.load import load

ROOT = Path(__file__).parents[2]
LONG = ("7b-16k", "32b-32k", "72b-32k")


def test_the_pages_tables_are_what_the_code_says():
    spec = importlib.util.spec_from_file_location("what_fits", ROOT / "tools" / "what_fits.py")
    what_fits = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(what_fits)
    page = what_fits.PAGE.read_text()
    assert page.count("|") > 200
    assert what_fits.filled_page(page) == page, "tools/what_fits.py --write"


@pytest.mark.parametrize("name", LONG)
def test_a_recipe_says_what_it_needs(name):
    path = ROOT / "recipes" / "scale" / f"{name}.yaml"
    comment = " ".join(path.read_text().replace("#", " ").partition("name:")[0].split())
    recipe = load(path)
    memory = estimate(recipe)
    need = card.card(memory.per_rank[memory.fullest], ParallelLayout.of(recipe.trainer)).total
    node = card.node_host_bytes(recipe, memory)
    said = re.search(r"fullest GPU (\d+) of 79 GiB, .* node's host memory (\d+) GiB", comment)
    assert said, comment
    assert [int(n) for n in said.groups()] == [round(n / GIB) for n in (need, node)]
    assert f"{disk_bytes(recipe) / 2**40:.1f} TiB" in comment
