"""How early Slurm has to ask a job to end."""

from aent.recipe.load import load
from aent.slurm.lead import LEAD_S, signal_lead, too_short
from aent.tracking import journal
from slurm.conftest import SLURM
from wording import assert_names

TINY = "recipes/cpu/tiny.yaml"


def test_a_step_and_a_checkpoint_have_to_fit_before_the_limit(tmp_path):
    recipe = load(TINY, ["checkpoint.every=5"])
    assert too_short(recipe, tmp_path) is None  # nothing is measured yet
    took = {"time/total": [900.0, *[100.0] * 9, 250.0], "time/checkpoint": [60.0]}
    points = [
        journal.Point(step, 1, key, value)
        for key, values in took.items()
        for step, value in enumerate(values)
    ]
    journal.append(tmp_path / journal.JOURNAL_FILE, points)
    told = too_short(recipe, tmp_path)  # the first step, which warms up, is out of sight by now
    assert told is not None
    assert_names(told, "250 s", "60 s", f"{LEAD_S} s", "--signal=B:USR1@372", "checkpoint.every=5")
    assert too_short(load(TINY, ["cluster.flags=['--signal=B:USR1@372']"]), tmp_path) is None


def test_what_is_said_is_what_the_script_asks_for():
    assert f"#SBATCH --signal=B:USR1@{LEAD_S}\n" in (SLURM / "train.sbatch").read_text()
    assert signal_lead(load("recipes/scale/32b.yaml")) == 1800
