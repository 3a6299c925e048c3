"""The installer's decisions, and the wheel with its recipes."""

import fnmatch
import importlib.machinery
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from aent.runtime import megatron
from wording import assert_names

ROOT = Path(__file__).resolve().parents[1]
PIN = "torch==2.13.0+cpu"
DEFAULT = "torch==2.13.0"


def load_tool(name: str) -> Any:
    loader = importlib.machinery.SourceFileLoader(name, str(ROOT / "tools" / f"{name}.py"))
    module = types.ModuleType(name)
    loader.exec_module(module)
    return module


sources = load_tool("package_sources")


def test_pip_settings_are_read_with_pips_precedence():
    listing = "\n".join([
        ":env:.find-links='/wheels'",
        "global.find-links='/other'",
        "global.extra-index-url='\\nhttps://a.example/simple\\nhttps://b.example/simple'",
        "install.index-url='https://c.example/simple'",
        "global.index-url='https://d.example/simple'",
        "freeze.timeout='10'",
    ])  # fmt: skip
    settings = sources.parse_pip_settings(listing)
    assert settings["find-links"] == "/wheels"
    assert settings["index-url"] == "https://c.example/simple"
    variables = sources.uv_variables(settings, {})
    assert variables["UV_INDEX"] == "https://a.example/simple https://b.example/simple"
    assert variables["UV_DEFAULT_INDEX"] == "https://c.example/simple"
    assert variables["UV_FIND_LINKS"] == "/wheels"


def test_the_users_own_uv_variables_stay():
    environ = {"UV_INDEX_URL": "https://mine.example", "SSL_CERT_FILE": "/mine.pem"}
    pip = {"index-url": "https://other.example", "cert": "/other.pem"}
    variables = sources.uv_variables(pip, environ)
    assert "UV_DEFAULT_INDEX" not in variables
    assert "SSL_CERT_FILE" not in variables


def offers(*having: str):
    """A stand-in for asking uv: only these values of UV_INDEX or UV_FIND_LINKS have torch."""

    def problem(variables: dict[str, str]) -> str:
        seen = f"{variables.get('UV_INDEX', '')} {variables.get('UV_FIND_LINKS', '')}".split()
        return "" if set(seen) & set(having) else "no such version"

    return problem


def test_configured_sources_are_used_where_they_have_torch():
    variables, said = sources.choose(PIN, {"UV_FIND_LINKS": "/w"}, {}, offers("/w"))
    assert variables == {"UV_FIND_LINKS": "/w"}
    assert "configured" in said


def test_the_public_cpu_index_is_added_on_an_ordinary_machine():
    public = sources.PUBLIC_CPU_INDEX
    variables, said = sources.choose(PIN, {"UV_INDEX": "https://a.example"}, {}, offers(public))
    assert variables["UV_INDEX"] == f"https://a.example {public}"
    assert public in said


def test_the_named_source_wins_and_may_be_a_folder(tmp_path):
    environ = {"AENT_TORCH_INDEX": str(tmp_path)}
    variables, said = sources.choose(PIN, {}, environ, offers(str(tmp_path)))
    assert variables == {"UV_FIND_LINKS": str(tmp_path)}
    assert "AENT_TORCH_INDEX" in said


def test_no_source_at_all_is_one_sentence():
    with pytest.raises(LookupError, match="AENT_TORCH_INDEX"):
        sources.choose(PIN, {}, {}, offers())


def offers_builds(**having: str):
    """The same of a build each: cpu, and the default one."""

    def problem(pin: str, variables: dict[str, str]) -> str:
        return offers(having.get("cpu" if pin.endswith("+cpu") else "default", "-"))(variables)

    return problem


@pytest.mark.parametrize(
    ("locked", "having", "build"),
    [
        (PIN, {"cpu": "/w"}, PIN),
        (DEFAULT, {"cpu": "/w", "default": "/w"}, PIN),
        (DEFAULT, {"default": "/w"}, DEFAULT),
        (DEFAULT, {"default": "/w", "cpu": sources.PUBLIC_CPU_INDEX}, PIN),
    ],
)
def test_the_cpu_build_comes_first(locked, having, build):
    ours = {"UV_FIND_LINKS": "/w"}
    chosen, variables, said = sources.choose_build(locked, ours, {}, offers_builds(**having))
    assert chosen == build
    assert variables["UV_FIND_LINKS"] == "/w"
    assert_names(said, build)
    assert ("GB" in said) == (build == DEFAULT)


@pytest.mark.parametrize(
    ("locked", "environ"), [(PIN, {}), (DEFAULT, {"AENT_TORCH_INDEX": "https://a.example"})]
)
def test_the_default_build_is_not_taken_where_the_cpu_build_is_asked_for(locked, environ):
    with pytest.raises(LookupError, match="AENT_TORCH_INDEX"):
        sources.choose_build(locked, {"UV_FIND_LINKS": "/w"}, environ, offers_builds(default="/w"))


def locked(name: str) -> dict[str, str]:
    """Version by package."""
    lines = (ROOT / "containers" / "locks" / name).read_text().splitlines()
    assert [line for line in lines if line.count("==") != 1 or "://" in line or "@" in line] == []
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize(("name", "torch"), [("cpu", PIN), ("cpu-py312", DEFAULT)])
def test_a_lock_names_versions_and_no_places(name, torch):
    versions = locked(f"{name}.lock.txt")
    assert f"torch=={versions['torch']}" == torch
    assert "torchvision" not in versions


def test_the_locks_differ_in_torch_and_megatron_alone():
    older, newer = locked("cpu.lock.txt"), locked("cpu-py312.lock.txt")
    assert older.keys() <= newer.keys()
    cuda = {n for n in newer if n.startswith("nvidia-") or n == "cuda-toolkit"}
    assert newer.keys() - older.keys() == cuda
    changed = {name for name in older if newer[name] != older[name]}
    assert changed == {"torch", "triton", "megatron-core"}
    series = [versions["megatron-core"].rpartition(".")[0] for versions in (older, newer)]
    assert tuple(series) == megatron.SERIES


@pytest.fixture
def checkout(tmp_path):
    """The files the installer reads, in a folder of their own, and a PATH with little on it."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "tools", folder / "tools")
    shutil.copytree(ROOT / "containers" / "locks", folder / "containers" / "locks")
    shutil.copy(ROOT / "pyproject.toml", folder)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "cat", "sha256sum", "grep", "rm"):
        (programs / name).symlink_to(shutil.which(name))
    return folder, programs


def install(checkout: tuple[Path, Path], *named: str) -> subprocess.CompletedProcess[str]:
    folder, programs = checkout
    return subprocess.run(
        [str(folder / "tools" / "install.sh"), *named],
        env={"PATH": str(programs), "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_missing_python_is_one_sentence(checkout):
    outcome = install(checkout)
    assert outcome.returncode == 1
    assert_names(outcome.stderr, "Python 3.11")
    assert outcome.stderr.count("\n") == 1
    assert not (checkout[0] / ".venv").exists()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("PYTHON=python3.12", ["python3.12", "apt install"]),
        ("PYTHON=", ["PYTHON="]),
        ("PYTHON=odd", ["odd", "3.14", "3.11", "3.12"]),
    ],
)
def test_a_python_that_is_asked_for_is_there_and_has_a_lock(checkout, named, said):
    odd = checkout[1] / "odd"  # a newer Python, as far as it is asked
    odd.write_text(f"#!{shutil.which('bash')}\necho 3.14\n")
    odd.chmod(0o755)
    outcome = install(checkout, named)
    assert outcome.returncode == 1
    assert_names(outcome.stderr, *said)
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize("named", [(), (f"PYTHON={sys.executable}",)])
def test_a_missing_compiler_is_one_sentence(checkout, named):
    series = sys.version_info[:2]
    if series != (3, 11) and not named:
        pytest.skip("this is not Python 3.11")
    python = Path(sys.base_prefix) / "bin" / "python3"
    (checkout[1] / "python3").write_text(f'#!{shutil.which("bash")}\nexec "{python}" "$@"\n')
    (checkout[1] / "python3").chmod(0o755)
    outcome = install(checkout, *named)
    assert outcome.returncode == 1
    assert_names(outcome.stderr, "C++")
    assert outcome.stderr.count("\n") == 1
    assert not (checkout[0] / ".venv").exists()


@pytest.mark.slow
def test_the_wheel_carries_the_recipes(tmp_path):
    tree = tmp_path / "tree"  # setuptools writes beside the sources: not into this checkout
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    tree.mkdir()
    folders = [ROOT / name for name in ("pipeline", "recipes", "slurm")]
    for folder in filter(Path.exists, folders):  # git keeps no empty slurm/
        shutil.copytree(folder, tree / folder.name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(tree)]
    subprocess.run(wheel, check=True, timeout=1000)
    shutil.rmtree(tree)
    (built,) = tmp_path.glob("aent-*.whl")
    target = tmp_path / "installed"
    unpack = [*pip, "install", "--no-deps", "--no-compile", "--target", str(target), str(built)]
    subprocess.run(unpack, check=True, timeout=1000)

    kernels = target / "aent" / "entropy" / "kernels"
    assert (kernels / "rows.c").exists()
    assert list(kernels.glob("rows-portable-*.so"))  # there is a compiler: the tests need one

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "from aent.runtime.environment import data_path\n"
        "print(data_path('recipes/cpu/tiny.yaml'))\n"
        "assert data_path('slurm/train.sbatch').is_file()"
    )

    def installed(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(target)},
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        ).stdout

    found = Path(installed("-c", code).strip())
    assert found.is_relative_to(target)
    assert found.read_text() == (ROOT / "recipes" / "cpu" / "tiny.yaml").read_text()

    render = ("-m", "aent", "slurm", "render", "recipes/cpu/tiny.yaml", "cluster.nodes=2")
    script = installed(*render)
    assert "#SBATCH --nodes=2\n" in script
    assert script.endswith((ROOT / "slurm" / "train.sbatch").read_text())


def test_one_missing_program_among_others_is_noticed(tmp_path):
    for name in ("bash", "id"):
        (tmp_path / name).symlink_to(shutil.which(name))
    answer = subprocess.run(
        ["bash", ROOT / "tools/debian_packages.sh", "test-x", "no-such-program bash", "a-package"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    said = "test-x: no-such-program not found, and installing a-package needs root and apt-get\n"
    assert answer.stdout == said


@pytest.mark.parametrize("module", ["aent.slurm.serve", "aent.inference.server"])
def test_an_engines_image_needs_nothing_of_the_trainers(module):
    """rollout.Dockerfile installs the package without its dependencies, beside vLLM's own."""
    absent = ("megatron", "mbridge", "mlflow", "nemo", "reasoning_gym", "transformer_engine")
    program = (
        "import sys, importlib\n"
        f"sys.modules.update(dict.fromkeys({absent}))\n"  # an import of them is an ImportError
        f"importlib.import_module({module!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_image_is_built_without_what_git_ignores() -> None:
    """And without downloads and images beside it, of gigabytes."""
    ignored, left_out = (
        (ROOT / f".{name}ignore").read_text().split() for name in ("git", "docker")
    )
    names = [name.strip("/") for name in ignored if "[" not in name]
    for name in [*names, "data", "models", "trainer.sqsh", "rollout.sif"]:
        patterns = [pattern.removeprefix("**/") for pattern in left_out]
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name
