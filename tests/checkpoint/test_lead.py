"""How long before its end Slurm must signal a job, and how often to save."""

import pytest

from aent.checkpoint.lead import LEAD_S, MARGIN_S, VARIABLE, Took, own_lead, signal_lead
from aent.recipe.load import load
from aent.tracking import journal
from slurm.conftest import SLURM
from wording import assert_names


def test_what_steps_and_checkpoints_took_is_read_from_the_journal(tmp_path):
    assert Took.in_folder(tmp_path) is None  # nothing is measured yet
    took = {"total": [900.0, *[100.0] * 9, 310.0], "checkpoint": [0.0] * 10 + [40.0]}
    took["publish"] = [0.0] * 10 + [20.0]
    points = [
        journal.Point(step, 1, f"time/{key}", value)
        for key, values in took.items()
        for step, value in enumerate(values)
    ]
    journal.append(tmp_path / journal.JOURNAL_FILE, points)
    # the first step, which warms up, is out of sight by now; the last one's checkpoint is its own
    assert Took.in_folder(tmp_path) == Took(step=250.0, save=60.0)


def test_a_step_and_a_checkpoint_have_to_fit_before_the_limit():
    took = Took(step=250.0, save=60.0)
    assert (took.fits(370), took.fits(369)) == (True, False)  # 60 s of it are SAVE_MARGIN's
    late = took.describe(LEAD_S, every=5)
    assert_names(late, "250 s", "60 s", f"{LEAD_S} s", "--signal=B:USR1@432", "checkpoint.every=5")
    assert_names(late, "1250 s", 13)  # sqrt(2 x 60 x 86400) = 3220 s
    early = took.describe(432, every=0)
    assert_names(early, "432 s", "60 s")
    assert "--signal" not in early
    assert "checkpoint.every" not in early


def test_what_is_said_is_what_the_script_asks_for(monkeypatch: pytest.MonkeyPatch):
    assert f"#SBATCH --signal=B:USR1@{LEAD_S}\n" in (SLURM / "train.sbatch").read_text()
    assert f': "${{SAVE_MARGIN:={MARGIN_S}}}"' in (SLURM / "train.sbatch").read_text()
    assert signal_lead(load("recipes/scale/32b.yaml")) == 1800
    assert own_lead() is None
    monkeypatch.setenv(VARIABLE, "372")
    assert own_lead() == 372
    monkeypatch.setenv("SAVE_MARGIN", "100")
    assert Took(step=250.0, save=60.0).fits(410)
    assert not Took(step=250.0, save=60.0).fits(409)
