"""A real browser, for the pages that aent writes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def browse(tmp_path_factory):
    """A headless Chromium that can only reach this machine: it gets a file or an address, and
    flags; returns its output."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("Debian's chromium is not installed: no browser has looked at the page")
    profile = tmp_path_factory.mktemp("chromium")

    def run(page: Path | str, *flags: str) -> str:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   f"--user-data-dir={profile}", 
                   "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                   *flags, page if isinstance(page, str) else page.as_uri()]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
