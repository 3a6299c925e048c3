"""Images built by buildah in a store of their own, with this machine's package sources.

The base is a minimal Debian made by debootstrap. Nothing of where packages come from may stay in an
image: the sources are build secrets, folders of packages are mounted below ``mark``, a path that is
new each time and stands in every secret, so that a search for it finds whatever was left behind.

Needs root and the Debian packages in ``PACKAGES``.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
# with a registry, for "debian" alone may be another name's short form
BASE, CPU_IMAGE = "localhost/aent-debian", "localhost/aent-cpu"
COMMIT = "c0ffee"  # that the images are told to be built from
SUITE = "bookworm"  # whose Python is the one of the lock
PACKAGES = ("buildah", "debootstrap", "iproute2")
BUILD_S = 1500.0
REMOVE_S = 900.0  # gigabytes of small files on a disk that others use
# devices belong to the machine; the rest is what debootstrap downloaded, and from where
NOT_IN_BASE = ("dev/*", "var/cache/apt/archives/*.deb", "var/lib/apt/lists/*")
NOT_IN_BASE += ("var/log/bootstrap.log", "etc/apt/sources.list")
# no network but a loopback interface
OFFLINE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def why_not() -> str:
    """Why no image can be built here; empty if one can."""
    if os.geteuid() != 0:
        return "not root (a build changes roots and mounts folders)"
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [name for name in ("buildah", "debootstrap", "ip") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found (apt install {' '.join(PACKAGES)})"
    probe = subprocess.run(
        ["unshare", "--net", "--mount", "--fork", "true"], capture_output=True, text=True
    )
    if probe.returncode:
        return f"no namespaces: {probe.stderr.strip()}"
    return "" if mirror() else f"none of apt's sources that answer has Debian {SUITE}"


def mirror() -> str:
    """The first of apt's sources that answers and has the suite; empty if there is none."""
    asked = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
    )
    for uri in dict.fromkeys(asked.stdout.split()):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/dists/{SUITE}/Release", timeout=20):
                return uri
        except (OSError, ValueError):  # not there, no answer, or a kind of source apt alone reads
            continue
    return ""


def package_sources(folder: Path, mark: str) -> list[str]:
    """Write the secrets into ``folder``; buildah's flags for them and for the folders they name."""
    ask = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    parse = runpy.run_path(str(ROOT / "tools" / "package_sources.py"))["parse_pip_settings"]
    pip, flags = parse(listing), []
    if certificates := pip.pop("cert", ""):
        bundle = Path(certificates).read_text()
        (folder / "ca.pem").write_text(f"# {mark}\n{bundle}")
        flags.append(f"--secret=id=ca.pem,src={folder}/ca.pem")
    lines = [f"# {mark}", "[global]"] + (["cert = /run/secrets/ca.pem"] if certificates else [])
    for name in ("index-url", "extra-index-url", "find-links", "trusted-host", "no-index"):
        places = []
        for place in pip.get(name, "").split():
            url = urlsplit(place)
            path = Path(unquote(url.path))
            if url.scheme in ("", "file") and path.is_absolute():
                inside = f"{mark}/{len(flags)}"
                if "index-url" in name:  # its pages link to files beside it
                    path, place = path.parent, f"file://{inside}/{path.name}"
                else:
                    place = inside
                flags.append(f"--volume={path}:{inside}:ro")
            places.append(place)
        if places:
            lines.append(f"{name} = {' '.join(places)}")
    (folder / "pip.conf").write_text("\n".join(lines) + "\n")
    (folder / "apt.list").write_text(f"# {mark}\ndeb {mirror()} {SUITE} main\n")
    for name in ("pip.conf", "apt.list"):
        flags.append(f"--secret=id={name},src={folder}/{name}")
    return flags


@dataclass
class Store:
    """Images and containers below one folder. Made by ``store``."""

    folder: Path

    def buildah(self, *argv: str, timeout_s: float = 300, offline: bool = False) -> str:
        """Run buildah on this store and return its standard output. A failure shows both
        streams."""
        command = ["buildah", f"--root={self.folder}/images", f"--runroot={self.folder}/run", *argv]
        done = subprocess.run(
            OFFLINE * offline + command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{argv}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    def make_base(self, name: str) -> None:
        """An image of a minimal Debian, imported from a tar without devices."""
        root, tar = self.folder / "debian", self.folder / "debian.tar"
        without = [f"--exclude=./{path}" for path in NOT_IN_BASE]
        for command in (
            ["debootstrap", "--variant=minbase", SUITE, str(root), mirror()],
            ["tar", "-C", str(root), *without, "-cf", str(tar), "."],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{command[0]}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        container = self.buildah("from", "scratch").strip()
        self.buildah("add", "--quiet", container, str(tar), "/")
        self.buildah("commit", "--quiet", "--rm", container, name)
        shutil.rmtree(root)
        tar.unlink()

    def build(self, file: str, name: str, base: str, flags: list[str]) -> str:
        """Build a Dockerfile of containers/ from this checkout; what the steps printed."""
        return self.buildah(
            *("build", "--isolation=chroot", "--format=docker", "--pull-never", *flags),
            *(f"--build-arg=BASE_IMAGE={base}", f"--build-arg=GIT_COMMIT={COMMIT}"),
            f"--file={ROOT}/containers/{file}",
            *(f"--tag={name}", str(ROOT)),
            timeout_s=BUILD_S,
        )

    def container(self, image: str) -> str:
        """The name of a new container of an image."""
        return self.buildah("from", "--pull-never", image).strip()

    def run(
        self, container: str, *argv: str, flags: Sequence[str] = (), timeout_s: float = 60
    ) -> str:
        """Run a command in a container as the image's user, without a network; its output."""
        inside = ("run", "--isolation=chroot", *flags, container, "--", *argv)
        return self.buildah(*inside, timeout_s=timeout_s, offline=True)

    def inspect(self, image: str) -> dict[str, Any]:
        """The image's configuration as Docker writes it, and ``history``."""
        said = json.loads(self.buildah("inspect", "--type=image", image))["Docker"]
        return said["config"] | {"history": [step["created_by"] for step in said["history"]]}

    def files_with(self, text: str) -> list[str]:
        """Files of the store, every layer's and the images' own, that have ``text`` in them."""
        search = ["grep", "--recursive", "--files-with-matches", "--fixed-strings", "-D", "skip"]
        found = subprocess.run(
            [*search, "-e", text, str(self.folder / "images")], capture_output=True, text=True
        )
        assert found.returncode in (0, 1), found.stderr
        return found.stdout.splitlines()


@dataclass
class Built:
    """The CPU image, and with what it was built."""

    store: Store
    mark: str  # stands in every build secret and in the paths of mounted folders
    secrets: Path
    flags: list[str]  # buildah's, of the package sources
    said: str  # what the build printed


@contextmanager
def store(folder: Path) -> Iterator[Store]:
    """An empty store below ``folder``, taken away again with all that was mounted in it."""
    made = Store(folder)
    try:
        yield made
    finally:
        made.buildah("rm", "--all", timeout_s=REMOVE_S)
        made.buildah("rmi", "--all", "--force", timeout_s=REMOVE_S)
        shutil.rmtree(folder)
