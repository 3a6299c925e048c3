"""A real browser, for the pages that we write."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def browse(tmp_path_factory):
    """A headless Chromium without a network: flags and a page in, what it prints out."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("Debian's chromium is not installed: no browser has looked at the page")
    profile = tmp_path_factory.mktemp("chromium")

    def run(page: Path, *flags: str) -> str:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND",
                   *flags, page.as_uri()]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
