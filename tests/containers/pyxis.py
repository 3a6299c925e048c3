"""enroot and pyxis, built from their sources: Debian 12 has neither.

The sources come from GitHub, or from the folders that ``AENT_ENROOT_SOURCE`` and
``AENT_PYXIS_SOURCE`` name. enroot's own build makes musl and makeself as well; here its tools are
linked with Debian's glibc and libbsd, and bundles, which makeself is for, cannot be made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("gcc", "make", "jq", "squashfs-tools", "libbsd-dev", "libslurm-dev")
RELEASES = {"enroot": "v4.1.2", "pyxis": "v0.24.0"}
FETCH_S, BUILD_S = 300.0, 300.0
HEADERS = ("bsd/string.h", "slurm/spank.h")
BUNDLES = "makeself/bin/enroot-makeself"


@dataclass(frozen=True)
class Pyxis:
    """The built files, below ``folder``."""

    folder: Path

    @property
    def programs(self) -> Path:
        """enroot's programs, to be put in PATH."""
        return self.folder / "installed" / "bin"

    def plugins(self, runtime: Path) -> str:
        """Lines of Slurm's plugstack.conf; ``runtime``: a folder of one cluster, which is made
        with those that enroot's containers lie in."""
        lines = []
        for name in ("DATA", "CACHE", "RUNTIME", "TEMP"):
            folder = runtime / name.lower()
            folder.mkdir(parents=True)
            lines.append(f"ENROOT_{name}_PATH {folder}")
        settings = self.folder / "installed" / "etc" / "enroot" / "enroot.conf"
        settings.write_text("\n".join(lines) + "\n")
        return f"required {self.folder}/pyxis/spank_pyxis.so runtime_path={runtime}\n"


def why_not() -> str:
    """Why neither can be built here; empty where they can."""
    missing = [name for name in ("gcc", "make", "jq", "mksquashfs") if not shutil.which(name)]
    missing += [name for name in HEADERS if not (Path("/usr/include") / name).exists()]
    if missing:
        return f"{', '.join(missing)} not found (apt install {' '.join(PACKAGES)})"
    probe = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True, text=True
    )
    return f"no user namespaces: {probe.stderr.strip()}" if probe.returncode else ""


def fetch(folder: Path) -> str:
    """Put both sources into ``folder``; returns the reason if one is not available."""
    for name, release in RELEASES.items():
        variable = f"AENT_{name.upper()}_SOURCE"
        if source := os.environ.get(variable):
            shutil.copytree(source, folder / name, symlinks=True)
            continue
        url = f"https://github.com/NVIDIA/{name}"
        command = [
            "git",
            "clone",
            "--quiet",
            "--depth=1",
            f"--branch={release}",
            url,
            folder / name,
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S)
        except subprocess.TimeoutExpired:
            return f"{url} does not answer ({variable} may name a folder with its source)"
        if done.returncode:
            return f"{done.stderr.strip()} ({variable} may name a folder with its source)"
    return ""


def build(folder: Path) -> Pyxis:
    """Build what ``fetch`` has put there."""
    enroot, deps = folder / "enroot", folder / "enroot" / "deps"
    for part in ("makeself", "linux-headers"):  # taken for built: the headers are Debian's
        (deps / part).mkdir(exist_ok=True)
        (deps / part / ".stamp").touch()
    stand_in = deps / "dist" / BUNDLES
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text("#!/bin/sh\necho 'built without makeself' >&2\nexit 1\n")
    stand_in.chmod(0o755)
    (libbsd,) = Path("/usr/lib").glob("*/libbsd.so")
    own = ["FORCE_GLIBC=1", f"LDLIBS=-l:libbsd.a {libbsd}", f"prefix={folder}/installed"]
    flags = os.environ | {"CFLAGS": "-D_GNU_SOURCE -include bsd/string.h"}
    for where, command, env in (
        (enroot, ["make", *own, "all"], flags),
        (enroot, ["make", *own, "install"], flags),
        (folder / "pyxis", ["make"], os.environ),
    ):
        done = subprocess.run(
            command, cwd=where, env=env, capture_output=True, text=True, timeout=BUILD_S
        )
        assert done.returncode == 0, f"{where.name}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return Pyxis(folder)
