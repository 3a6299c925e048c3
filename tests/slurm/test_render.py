"""Batch scripts from recipes: their content, and recipes that are refused."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from aent.checks.recipe import check
from aent.recipe.load import load
from aent.slurm.render import render, render_several
from slurm.conftest import ROOT
from wording import assert_names, naming

TINY = "recipes/cpu/tiny.yaml"


def aent_slurm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aent", "slurm", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


def directives(text: str) -> list[str]:
    """The lines that sbatch reads: #SBATCH lines above the first command."""
    lines = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            return lines
        lines += [line.removeprefix("#SBATCH ")] if line.startswith("#SBATCH ") else []
    return lines


def test_a_dry_run_outside_any_checkout_shows_the_header_above_the_unchanged_script(tmp_path):
    overrides = ["cluster.nodes=2", "cluster.gpus_per_node=4", "cluster.partition=night"]
    overrides += ["cluster.time=1-12:00:00", "cluster.flags=['--qos=low', '--exclusive=user']"]
    shown = aent_slurm("submit", "--dry-run", TINY, "run_dir=my run", *overrides, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    header, mark, rest = shown.stdout.partition("# ---- slurm/train.sbatch")
    assert mark
    assert (ROOT / "slurm" / "train.sbatch").read_text() in rest
    assert rest.rstrip().endswith(f"# sbatch --parsable '{tmp_path}/my run.sbatch'")
    asked = directives(shown.stdout)
    assert {"--nodes=2", "--gpus-per-node=4", "--partition=night", "--job-name=tiny"} <= set(asked)
    assert {"--time=1-12:00:00", "--qos=low", "--exclusive=user", "--mem=0"} <= set(asked)
    assert "--exclusive" not in asked  # the recipe's is there instead
    assert f'--output="{tmp_path}/my run.log"' in asked
    assert f"export RUN_DIR='{tmp_path}/my run'" in header
    assert f"set -- {TINY} 'run_dir=my run' cluster.nodes=2" in header  # no such file here: aent's
    assert list(tmp_path.iterdir()) == []


def test_two_groups_get_their_own_lines_and_a_container_its_image():
    recipe = load(TINY, [
        "run_dir=/runs/x", "cluster.nodes=2", "cluster.engine_nodes=1", "rollout.engines=2",
        "cluster.engine_gpus_per_node=4", "cluster.engine_partition=small", "cluster.partition=big",
        "cluster.flags=[--qos=a]", "cluster.engine_flags=[--qos=b, --comment=mine]",
        "cluster.container=pyxis", "cluster.image=/i/t.sqsh", "cluster.engine_image=/i/r.sqsh",
        "cluster.mounts=['/data:/data', '/runs:/runs']", "cluster.max_requeues=7",
    ])  # fmt: skip
    script = render(recipe, TINY, [])
    text = script.text
    assert str(script.path) == "/runs/x.sbatch"
    asked = directives(text)
    split = asked.index("hetjob")
    trainers = {"--nodes=2", "--gpus-per-node=8", "--partition=big", "--qos=a"}
    engines = {"--nodes=1", "--gpus-per-node=4", "--partition=small", "--qos=b", "--comment=mine"}
    assert trainers <= set(asked[:split])
    assert engines <= set(asked[split:])
    assert not engines & set(asked[:split])
    for line in ("CONTAINER=pyxis", "IMAGE=/i/t.sqsh", "ENGINE_IMAGE=/i/r.sqsh",
                 "MOUNTS=/data:/data,/runs:/runs", "MAX_REQUEUES=7"):  # fmt: skip
        assert f"\nexport {line}\n" in text
    assert "export PYTHON=" not in text  # the image's own


@pytest.mark.parametrize(
    ("gres", "alone"),
    [("gpu:h100:8", True), ("lscratch:100,gpu:8", True), ("lscratch:100", False)],
)
def test_a_site_that_knows_gres_alone_gets_it_alone(gres, alone):
    recipe = load(TINY, [f"cluster.flags=['--gres={gres}']", "run_dir=/runs/x"])
    asked = directives(render(recipe, TINY, []).text)
    assert f"--gres={gres}" in asked
    assert alone == (not [flag for flag in asked if flag.startswith("--gpus-per-node")])


def test_more_gpus_than_a_node_has_are_refused_at_render(tmp_path):
    refused = aent_slurm("render", TINY, "cluster.gpus_per_node=4", cwd=tmp_path)
    assert refused.returncode == 2
    assert_names(refused.stderr, "5 GPUs", 4)
    assert refused.stdout == ""


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["cluster.container=apptainer"], "cluster.container apptainer cluster.image"),
        (["cluster.image=x.sif"], "cluster.image cluster.container none"),
        (["cluster.mounts=[/data]"], "cluster.mounts /data HOST:CONTAINER"),
        (["cluster.flags=[qos]"], "cluster.flags 'qos'"),
        (["cluster.flags=['--qos=a --nodes=7']"], "cluster.flags '--qos=a --nodes=7'"),
        (["cluster.flags=['--nodes=7']"], "--nodes cluster.nodes cluster.engine_nodes"),
        (["cluster.flags=['--gpus-per=7']"], "--gpus-per-node cluster.gpus_per_node"),
        (["cluster.flags=['--job-name=y']"], "cluster.flags --job-name=y"),
        (["cluster.flags=['--signal=USR1@600']"], "cluster.flags --signal=USR1@600 B:USR1"),
        (["cluster.flags=['--signal=B:TERM@60']"], "cluster.flags --signal=B:TERM@60"),
        (["cluster.engine_flags=['--qos=y']"], "cluster.engine_flags cluster.engine_nodes"),
        (['cluster.partition="a\\n#SBATCH --nodes=7"'], "cluster.partition"),
        (["cluster.account=''"], "cluster.account ''"),
        (["cluster.time=8hours"], "cluster.time '8hours'"),
    ],
)
def test_a_cluster_section_that_makes_no_sense_is_a_sentence(overrides, names):
    faults = check(load(TINY, overrides), machine=False)
    assert any(re.match(naming(*names.split()), fault) for fault in faults)


@pytest.mark.parametrize("name", ["o'neil", "c#1", "a b", "50%", "plain", "ä"])
def test_sbatch_reads_the_path_of_the_log_as_it_is(tmp_path, name):
    """It reads words as a shell does, but a # ends the line, and %% is a percent sign."""
    folder = tmp_path / name
    recipe = load(TINY, ["cluster.gpus_per_node=0"])
    recipe = recipe.model_copy(update={"run_dir": str(folder / "x")})
    script = render(recipe, TINY, [])
    (array,) = render_several([(TINY, [], recipe)], folder, "aent compare")
    shown = str(folder).replace("%", "%%")
    for text, log in ((script.text, f"{shown}/x.log"), (array.text, f"{shown}/task-%A_%a.log")):
        words = [shlex.split(line, comments=True) for line in directives(text)]
        assert [f"--output={log}"] in words
        assert all(len(word) == 1 for word in words)


def test_what_the_job_would_not_find_is_refused(tmp_path):
    def refused(*overrides: str) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the sentence is looked at
            render(load(TINY, ["cluster.gpus_per_node=0", *overrides]), TINY, [])
        return str(caught.value)

    assert_names(refused("cluster.env_file=none.env"), "env_file", "none.env")
    assert "a\\nb" in refused('run_dir="a\\nb"')
    assert "backslash" in refused("run_dir='a\\b'")
    container = ("cluster.container=apptainer", "cluster.image=x.sif", "cluster.engine_image=x.sif")
    here = Path.cwd()
    outside = refused(*container, "run_dir=/x/y")
    assert_names(outside, "run_dir", "/x/y", "mounts", f"{here}:{here}")
    other = "cluster.mounts=['/data:/x', '/xy:/xy:ro']"  # of that name only in the container
    assert_names(refused(*container, "run_dir=/x/y", other), "mounts", "/data:/x,/xy:/xy:ro")
    (tmp_path / "link").symlink_to(tmp_path)
    same = [f"cluster.mounts=['{tmp_path}:{tmp_path}/link']", f"run_dir={tmp_path}/link/a"]
    beside = ["run_dir=a", "cluster.mounts=['/data:/data']"]  # the folder it is sent from as well
    for seen in (same, beside, ["run_dir=a", "cluster.env_file=slurm/cluster.env"]):
        text = render(load(TINY, ["cluster.gpus_per_node=0", *container, *seen]), TINY, []).text
    assert f"\nexport CLUSTER_ENV={ROOT}/slurm/cluster.env\n" in text


def test_an_array_gives_each_task_its_run_above_the_unchanged_script(tmp_path):
    runs = [
        (TINY, ["seed=0"], load(TINY, ["run_dir=/runs/a b", "cluster.gpus_per_node=0"])),
        (TINY, ["seed=1", "name=x y"], load(TINY, ["run_dir=/runs/c", "cluster.gpus_per_node=0"])),
    ]
    (script,) = render_several(runs, tmp_path / "all runs", "aent compare")
    assert script.path == tmp_path / "all runs" / "array.sbatch"
    asked = directives(script.text)
    assert {
        "--array=0-1",
        f'--output="{tmp_path}/all runs/task-%A_%a.log"',
        "--job-name=all_runs",
    } <= set(asked)
    header, _, body = script.text.partition("# ---- slurm/train.sbatch")
    assert body.partition("\n")[2] == (ROOT / "slurm" / "train.sbatch").read_text()
    for task, said in (("0", "/runs/a b|seed=0"), ("1", "/runs/c|seed=1|name=x y")):
        show = header + '\nprintf "%s|" "$RUN_DIR" "${@:2}"; echo "$SWEEP_DIR"'
        done = subprocess.run(
            ["bash", "-euc", show],
            env={"SLURM_ARRAY_TASK_ID": task},
            capture_output=True,
            text=True,
        )
        assert done.stdout == f"{said}|{tmp_path}/all runs\n", done.stderr


@pytest.mark.parametrize(
    ("groups", "hetjobs"),  # of two runs
    [(([], ["cluster.nodes=2"]), 0), ((["cluster.engine_nodes=1"],) * 2, 1)],
)
def test_runs_that_no_array_can_have_are_a_job_each(tmp_path, groups, hetjobs):
    runs = []
    for number, own in enumerate(groups):
        overrides = ["cluster.gpus_per_node=0", *own]
        runs.append((TINY, own, load(TINY, [f"run_dir={tmp_path}/line-{number}", *overrides])))
    scripts = render_several(runs, tmp_path, "aent slurm sweep")
    assert len(scripts) == 2
    for number, script in enumerate(scripts):
        assert script.path == tmp_path / f"line-{number}.sbatch"
        asked = directives(script.text)
        assert asked.count("hetjob") == hetjobs
        assert f"--output={tmp_path}/line-{number}.log" in asked
        assert not [flag for flag in asked if flag.startswith("--array")]
        assert f"\nexport SWEEP_DIR={tmp_path}\n" in script.text
        assert f"\nexport RUN_DIR={tmp_path}/line-{number}\n" in script.text


def test_a_run_of_several_that_does_not_fit_is_named(tmp_path):
    sizes = (8, 4)
    runs = [load(TINY, [f"run_dir=line-{n}", f"cluster.gpus_per_node={n}"]) for n in sizes]
    with pytest.raises(ValueError, match=naming("line-4", "5 GPUs")):
        render_several([(TINY, [], run) for run in runs], tmp_path, "")


def test_without_slurm_submit_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    said = aent_slurm("submit", TINY, "cluster.gpus_per_node=0", cwd=tmp_path)
    assert said.returncode == 1
    (line,) = said.stderr.splitlines()
    assert_names(line, "squeue")


@pytest.mark.parametrize("run_dir", ["/proc/x", "/etc/passwd/x"])
def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, run_dir):
    refused = aent_slurm(
        "submit", TINY, "cluster.gpus_per_node=0", f"run_dir={run_dir}", cwd=tmp_path
    )
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert_names(line, Path(run_dir).parent)


def test_scripts_have_no_syntax_errors_and_the_two_of_a_run_differ_at_their_top_only():
    scripts = sorted((ROOT / "slurm").glob("*.s[bh]*"))
    assert len(scripts) >= 2
    mark = "# -- What this script assumes of a cluster"
    one, other = ((ROOT / "slurm" / f"train{x}.sbatch").read_text() for x in ("", "_het"))
    assert one.partition(mark)[2] == other.partition(mark)[2] != ""
    texts = [(ROOT / "slurm" / name).read_text() for name in ("train.sbatch", "sweep.sbatch")]
    run, task = ([d for d in directives(t) if d[:5] not in ("--job", "--out")] for t in texts)
    assert run == task  # a sweep's tasks are asked to end, and requeued, as a run is
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)
