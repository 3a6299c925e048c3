"""The hardware and libraries found on a machine, and the unrelated package named apex."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from aent.runtime import environment
from wording import assert_names


def plant(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    """Install a made-up distribution into ``folder``, as pip would lay it out."""
    metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def choose(implementation: str, planted: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "from aent.runtime.environment import optimizer_implementation as choose\n"
        f"print(choose({implementation!r}))"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(planted)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_unrelated_apex_is_named_and_never_imported(tmp_path):
    code = {"apex/__init__.py": "raise SystemExit('somebody else ran')"}
    plant(tmp_path, "apex", "0.9.10.dev0", code)
    named = choose("apex", tmp_path)
    assert named.returncode == 1
    assert_names(named.stderr, "apex 0.9.10.dev0", "trainer.optimizer.implementation")
    assert choose("auto", tmp_path).stdout.strip() == "torch"


def test_nvidia_apex_without_its_extensions_is_said_to_be_so(tmp_path):
    files = {"apex/__init__.py": "", "apex/optimizers/fused_adam.py": ""}
    plant(tmp_path, "apex", "0.1", files)
    named = choose("apex", tmp_path)
    assert named.returncode == 1
    assert_names(named.stderr, "trainer.optimizer.implementation", "amp_C")


def test_complete_apex_needs_a_gpu(tmp_path):
    files = {"apex/__init__.py": "", "apex/optimizers/fused_adam.py": "", "amp_C.py": ""}
    plant(tmp_path, "apex", "0.1", files)
    outcome = choose("apex", tmp_path)
    if torch.cuda.is_available():
        assert outcome.stdout.strip() == "apex"
    else:
        assert outcome.returncode == 1
        assert "GPU" in outcome.stderr


def test_broken_transformer_engine_is_named_with_its_error(tmp_path):
    code = {"transformer_engine/__init__.py": "raise ImportError('undefined symbol: nvte')"}
    plant(tmp_path, "transformer_engine", "2.0", code)
    outcome = choose("transformer_engine", tmp_path)
    assert outcome.returncode == 1
    assert_names(outcome.stderr, "undefined symbol: nvte")
    assert choose("auto", tmp_path).stdout.strip() == "torch"


def test_transformer_engine_is_for_gpus_and_for_plain_layers(tmp_path):
    files = {f"transformer_engine/{name}.py": "" for name in ("pytorch/optimizers", "__init__")}
    plant(tmp_path, "transformer_engine", "2.0", files)
    code = "from aent.runtime import environment as e\n"
    asked = "print(e.attention_implementation(), e.attention_implementation(suits=False))"
    for kind in ("cpu", "cuda"):
        said = subprocess.run(
            [sys.executable, "-c", f"{code}e.device_kind = lambda: {kind!r}\n{asked}"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
            capture_output=True,
            text=True,
        )
        engine = "transformer_engine" if kind == "cuda" else "sdpa"
        assert said.stdout.split() == [engine, "sdpa"], said.stderr


def test_torch_can_always_be_named():
    assert environment.optimizer_implementation("torch") == "torch"
    assert environment.why_not("torch") == ""


def test_device_is_what_torch_sees():
    assert environment.device_kind() == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("cuda", "hip", "imported"),
    [(None, None, False), ("'13.0'", None, True), (None, "'7.1'", True)],
)
def test_torch_is_imported_only_where_it_is_built_for_gpus(tmp_path, cuda, hip, imported):
    torch = tmp_path / "torch"
    torch.mkdir()
    (torch / "version.py").write_text(f"cuda = {cuda}\nhip = {hip}\n")
    (torch / "__init__.py").write_text(
        "class cuda:\n    is_available = staticmethod(lambda: True)\n"
    )
    code = "import sys; from aent.runtime.environment import device_kind as kind\n"
    code += "print(kind(), 'torch' in sys.modules)"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environ = {**os.environ, "PYTHONPATH": path}
    out = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert out.stdout.split() == ["cuda" if imported else "cpu", str(imported)], out.stderr


def test_memory_and_cores_are_within_the_machine():
    assert 0 < environment.available_memory_bytes() <= psutil.virtual_memory().total
    assert 1 <= environment.usable_cores() <= (os.cpu_count() or 1)


def test_shipped_files_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = environment.data_path("recipes/cpu/tiny.yaml")
    assert found.is_absolute()
    assert found.read_text()


def test_the_callers_own_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = Path("recipes/cpu/tiny.yaml")
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    assert environment.data_path(str(own)) == own


def test_what_nobody_has_comes_back_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert environment.data_path("recipes/none.yaml") == Path("recipes/none.yaml")


@pytest.mark.gpu
def test_auto_takes_transformer_engine_on_a_gpu_that_has_it():
    if environment.installed_version("transformer_engine") is None:
        pytest.skip("Transformer Engine is not installed")
    assert environment.optimizer_implementation("auto") == "transformer_engine"
    assert environment.attention_implementation() == "transformer_engine"
