"""The task of a Slurm job that keeps an engine."""

from __future__ import annotations

import os
import subprocess
import sys

from aent.inference import registry
from aent.recipe.load import dump, load

# SIGTERM while the server is being started: Python drops what a handler raises in a hook at a fork
TOLD_AT_A_FORK = """
import os, signal, sys
from pathlib import Path
from aent.slurm import serve
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))
sys.exit(serve.main(Path(sys.argv[1]), Path(sys.argv[2]), 0))
"""


def test_it_ends_with_its_server_when_it_is_told_to_in_the_middle_of_a_start(tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump(load("recipes/cpu/tiny.yaml")))
    registry.make_token(tmp_path)
    place = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, "-c", TOLD_AT_A_FORK, tmp_path, tmp_path],
        env={**os.environ, **place},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "logs" / "engine0.log").exists()  # a server had been started
    assert not registry.published(tmp_path, 1)
