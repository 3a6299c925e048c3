"""``make gpu-check`` without a GPU: a rehearsal of all its sections, and sections that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from aent.entropy import kernels
from gpu_check import __main__ as gpu_check
from gpu_check import numbers, report, wheels
from gpu_check.report import Row
from gpu_check.section import Section
from processes import assert_gone
from wording import assert_names

ROOT = Path(__file__).resolve().parents[1]
NO_GPU = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "benchmarks")}


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    """Every section as on a GPU, in the interpreter and on the CPU; no check is left out."""
    command = [sys.executable, "-m", "gpu_check", "--rehearse", "--seconds=1100"]
    command += [f"--out={tmp_path}", f"--wheels={tmp_path / 'none'}"]
    passive = NO_GPU | {"OMP_WAIT_POLICY": "PASSIVE"}  # as the trainer's ranks have it
    done = subprocess.run(command, env=passive, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "gpu-check.json").read_text())
    rows = [Row(**row) for row in content["rows"]]
    assert "rehearsal" in content["facts"]["device"]
    left_out = {row.what for row in rows if row.note.startswith("left out")}
    assert left_out <= {"Liger's cross-entropy"}
    checks = {}
    for row in rows:
        checks.setdefault(row.section, []).append(row.passed)
    assert list(checks) == [section.name for section in gpu_check.plan(rehearse=True)]
    assert {name: passed.count(True) for name, passed in checks.items()} == {
        "kernels bf16 2 x 2200": 4,
        "trainer": 14,
        "attention": 10,
    }
    timed = {row.what: row.measured for row in rows if row.section == "kernels bf16 2 x 2200"}
    for contender in ("cross-entropy", "ours, triton", "ours, triton, in place"):
        assert timed[contender]["GB/s"] > 0
    assert timed["cross-entropy"]["times cross-entropy"] == 1
    table = (tmp_path / "gpu-check.md").read_text()
    assert all(row.what in table for row in rows)
    assert table in done.stdout


def test_no_gpu_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    for command in (["tools/gpu_check.sh"], [sys.executable, "-m", "gpu_check"]):
        command = [*command, f"--out={tmp_path / 'out'}"]
        done = subprocess.run(command, cwd=ROOT, env=NO_GPU, capture_output=True, text=True)
        assert done.returncode == 2, done
        assert len(done.stderr.splitlines()) == 1
        assert "no usable GPU" in done.stderr
    assert not list((tmp_path / "out").glob("*"))


SECTIONS = {
    "good": "section.add(Row(section.name, 'fine', passed=True))",
    "crashing": "section.add(Row(section.name, 'before', passed=True)); import os; os.abort()",
    "raising": "raise RuntimeError('illegal memory access')",
    "hanging": """
import subprocess, sys, time
section.add(Row(section.name, 'before', {'x': float('nan')}))
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
print(child.pid, flush=True)
time.sleep(600)
""",
    "last": "section.unless_late('slow', section.seconds + 1, lambda: 1 / 0)",
}


def test_what_crashes_or_hangs_takes_nothing_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "from gpu_check.section import of_command_line\nfrom gpu_check.report import Row\n"
    for name, body in SECTIONS.items():
        (tmp_path / f"{name}_section.py").write_text(
            f"{head}section, words = of_command_line()\n{body}\n"
        )
    planned = [gpu_check.Planned(name, f"{name}_section", ("a",), 100.0) for name in SECTIONS]
    planned[3] = replace(planned[3], seconds=20.0)  # the one that hangs
    path = f"{ROOT / 'benchmarks'}{os.pathsep}{tmp_path}"
    monkeypatch.setattr(gpu_check, "plan", lambda rehearse: planned)
    monkeypatch.setattr(gpu_check, "probe", lambda *_: {"device": "none"})
    monkeypatch.setattr(gpu_check, "environment_of", lambda *_: os.environ | {"PYTHONPATH": path})
    out, none = tmp_path / "out", tmp_path / "none"
    assert gpu_check.main([f"--out={out}", f"--wheels={none}"]) == 1

    content = json.loads((out / "gpu-check.json").read_text())
    rows = {(row["section"], row["what"]): row for row in content["rows"]}
    assert rows["good", "fine"]["passed"]
    assert rows["crashing", "before"]["passed"]
    assert rows["crashing", "its process"]["passed"] is False
    assert_names(rows["raising", "its process"]["note"], "illegal memory access")
    assert rows["hanging", "before"]["measured"] == {"x": "nan"}
    assert_names(rows["hanging", "its process"]["note"], "killed", 20)
    assert "left out" in rows["last", "slow"]["note"]
    child = int((out / "gpu-check.log").read_text().partition("== hanging\n")[2].split()[0])
    if psutil.pid_exists(child):
        assert_gone([psutil.Process(child)], within_s=300.0)

    planned[:] = [replace(planned[0], seconds=1000.0)]
    assert gpu_check.main([f"--out={out}", f"--wheels={none}", "--seconds=1"]) == 1
    assert "time is used up" in (out / "gpu-check.md").read_text()
    planned[:] = [replace(planned[0], optional=True)]
    assert gpu_check.main([f"--out={out}", f"--wheels={none}", "--seconds=1"]) == 0


@pytest.fixture
def section(tmp_path: Path) -> Section:
    return Section("kernels", tmp_path / "rows", 600.0, rehearse=True)


def shifted_log_prob(stats: Any, _logits: torch.Tensor) -> Any:
    return replace(stats, log_prob=stats.log_prob + 1e-3)


def doubled_gradient(stats: Any, _logits: torch.Tensor) -> Any:
    return replace(stats, entropy=stats.entropy.detach() + 0 * stats.entropy)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [(None, None), (shifted_log_prob, "log_prob"), (doubled_gradient, "gradient")],
)
def test_numbers_are_held_to_float64(
    section: Section, monkeypatch: pytest.MonkeyPatch, wrong: Any, named: str | None
) -> None:
    """By torch operations in the kernels' place; with one result spoilt that one is named."""
    compute = numbers.token_statistics
    if wrong is not None:
        monkeypatch.setattr(
            numbers, "token_statistics", lambda x, *a, **k: wrong(compute(x, *a, **k), x)
        )
    logits, targets = torch.randn(5, 300), torch.arange(5)
    with kernels.using("torch"):
        row = numbers.compare(section, "x", logits, targets, 290, seconds=60.0)
    beyond = [name for name, limit in row.allowed.items() if not row.measured[name] <= limit]
    assert beyond == [named] * (named is not None)
    assert row.passed == (named is None)
    assert "5 of 5 rows" in row.what


def test_a_kept_set_that_differs_is_counted(
    section: Section, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = numbers.kept_set

    def one_more(logits: torch.Tensor, threshold: torch.Tensor, cut: torch.Tensor) -> torch.Tensor:
        found = kept(logits, threshold, cut)
        found[0, :] = True
        return found

    monkeypatch.setattr(numbers, "kept_set", one_more)
    monkeypatch.setattr(numbers, "SLICE", 2)
    with kernels.using("torch"):
        row = numbers.compare(section, "x", torch.randn(5, 300), torch.arange(5), 300, 60.0)
    assert row.measured[numbers.KEPT] == 3  # one in each slice of 2, 2 and 1 rows
    assert not row.passed


def test_nan_has_not_passed_and_is_named() -> None:
    rows = [report.bounded("a", "b", {"x": float("nan")}, {"x": 1.0}), Row("a", "c", {"y": 2.0})]
    assert rows[0].passed is False
    assert report.verdict(rows) == "1 of 1 checks failed: a: b."
    assert report.verdict([report.bounded("a", "b", {"x": 1.0}, {"x": 1.0})]) == (
        "All 1 checks passed."
    )


def test_the_lock_pins_what_is_carried() -> None:
    lines = wheels.pinned(wheels.lock_file().read_text(), wheels.PACKAGES)
    assert all("==" in line and "+" not in line for line in lines)
    with pytest.raises(ValueError, match="nemo-nope"):
        wheels.pinned("Typing_Extensions==1\n", ["typing-extensions", "nemo-nope"])


def test_wheels_are_unpacked_without_a_network(tmp_path: Path) -> None:
    folder, site = tmp_path / "wheels", tmp_path / "site"
    folder.mkdir()
    info = "probe_thing-1.0.dist-info"
    with zipfile.ZipFile(folder / "probe_thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("probe_thing.py", "answer = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: probe-thing\nVersion: 1.0")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    assert wheels.unpack(folder, site) == ""
    assert (site / "probe_thing.py").exists()
    (folder / "other-1.0-cp27-none-any.whl").write_bytes(b"")
    assert_names(wheels.unpack(folder, tmp_path / "other"), "other-1.0-cp27-none-any.whl")
