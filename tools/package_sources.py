"""Print, as shell exports, where uv should look for packages on this machine.

uv does not read pip's configuration. This script translates pip's settings (files and PIP_*
variables) into uv's variables, so that a machine set up for pip works unchanged. Then it asks uv
whether these sources offer the locked build of torch; if not, it adds PyTorch's public CPU index,
or the one that AENT_TORCH_INDEX names. If the lock file has torch's default build, with CUDA, and
no CPU build is available, the default build is used. UV_* variables are left unchanged. The choice
is printed to standard error, for people; the exports, and the build of torch, to standard output,
for ``tools/install.sh``.

Usage: python package_sources.py UV_PROGRAM LOCK_FILE    (standard library only)
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial

PUBLIC_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def parse_pip_settings(listing: str) -> dict[str, str]:
    """Return name -> value from the output of ``pip config list``.

    A PIP_* variable (section ``:env:``) wins over ``[install]``, which wins over ``[global]``, as
    in pip itself.
    """
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for line in listing.splitlines():
            found = re.fullmatch(rf"{section}\.([\w-]+)=(.*)", line.strip())
            if found:
                settings[found[1]] = str(ast.literal_eval(found[2]))
    return settings


def uv_variables(pip: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that make uv look where pip looks; what ``environ`` has set stays."""
    wanted: dict[str, str] = {}
    if "index-url" in pip:
        wanted["UV_DEFAULT_INDEX"] = pip["index-url"]
    if "extra-index-url" in pip:
        wanted["UV_INDEX"] = " ".join(pip["extra-index-url"].split())
    if "find-links" in pip:
        wanted["UV_FIND_LINKS"] = ",".join(pip["find-links"].split())
    if "trusted-host" in pip:
        wanted["UV_INSECURE_HOST"] = " ".join(pip["trusted-host"].split())
    if pip.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        wanted["UV_NO_INDEX"] = "1"
    if "cert" in pip:
        wanted["SSL_CERT_FILE"] = pip["cert"]
    # every version is pinned, so looking at all sources is safe and, with several, necessary
    wanted["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    wanted["UV_HTTP_TIMEOUT"] = "180"  # seconds; torch is 190 MB
    older_names = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}
    return {
        name: value
        for name, value in wanted.items()
        if name not in environ and older_names.get(name, name) not in environ
    }


def with_source(
    variables: Mapping[str, str], environ: Mapping[str, str], url: str
) -> dict[str, str]:
    """Return ``variables`` with one more place to look: a folder of wheels, or an index."""
    name, separator = ("UV_FIND_LINKS", ",") if os.path.isdir(url) else ("UV_INDEX", " ")
    before = variables.get(name, environ.get(name, ""))
    return {**variables, name: f"{before}{separator}{url}" if before else url}


def choose(
    pin: str,
    variables: dict[str, str],
    environ: Mapping[str, str],
    problem: Callable[[dict[str, str]], str],
) -> tuple[dict[str, str], str]:
    """Return the variables to install with, and one line that says where torch comes from.

    ``problem`` returns why the sources of the given variables do not offer ``pin`` (such as
    ``torch==2.13.0+cpu``), or ''. Raises LookupError, naming what was tried, if no source offers
    it.
    """
    named = environ.get("AENT_TORCH_INDEX")
    if not named and not problem(variables):
        return variables, f"{pin} from the sources this machine is configured for"
    source = named or PUBLIC_CPU_INDEX
    extended = with_source(variables, environ, source)
    failure = problem(extended)
    if not failure:
        reason = "AENT_TORCH_INDEX" if named else "the configured sources do not offer it"
        return extended, f"{pin} from {source} ({reason})"
    raise LookupError(
        f"{pin} is offered neither by this machine's package sources nor by {source}; set "
        f"AENT_TORCH_INDEX to an index URL or a folder of wheels that has it (uv said: {failure})"
    )


def choose_build(
    locked: str,
    variables: dict[str, str],
    environ: Mapping[str, str],
    problem: Callable[[str, dict[str, str]], str],
) -> tuple[str, dict[str, str], str]:
    """Return the build of torch to install, and what ``choose`` returns for it.

    ``locked`` is the lock's, ``torch==2.13.0+cpu``, or ``torch==2.13.0``, which has CUDA: then the
    CPU build of that version is preferred, and required if ``AENT_TORCH_INDEX`` is set. ``problem``
    also gets the build. Raises LookupError, as ``choose``.
    """
    cpu = locked if locked.endswith("+cpu") else f"{locked}+cpu"
    try:
        return (cpu, *choose(cpu, variables, environ, partial(problem, cpu)))
    except LookupError as error:
        failure = problem(locked, variables) if locked != cpu else "it is not locked"
        if failure or environ.get("AENT_TORCH_INDEX"):
            raise
        said = f"{locked} with CUDA, which takes 5.5 GB more than the CPU build: {error}"
        return locked, variables, said


def main() -> int:
    uv, lock = sys.argv[1:3]
    with open(lock) as file:
        locked = next(line.strip() for line in file if line.startswith("torch=="))

    def problem(pin: str, variables: dict[str, str]) -> str:
        question = [uv, "pip", "compile", "--quiet", "--no-deps", "--no-header"]
        question += ["--python", sys.executable, "-"]
        environment = {**os.environ, **variables}
        answer = subprocess.run(
            question, input=pin, env=environment, text=True, capture_output=True, timeout=300
        )
        if answer.returncode == 0:
            return ""
        return " ".join(answer.stderr.split()) or f"exit code {answer.returncode}"

    pip = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(pip, text=True, capture_output=True, check=True, timeout=60).stdout
    try:
        ours = uv_variables(parse_pip_settings(listing), os.environ)
        build, variables, said = choose_build(locked, ours, os.environ, problem)
    except LookupError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    print(f"install: {said}", file=sys.stderr)
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    print(f"torch={shlex.quote(build)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
