"""containers/cpu.Dockerfile is built and inspected, and the tiny recipe runs in it."""

from __future__ import annotations

import pytest

from containers.building import COMMIT, CPU_IMAGE, ROOT, Built

pytestmark = [pytest.mark.containers, pytest.mark.timeout(2400)]
DOCTOR = "aent doctor recipes/cpu/tiny.yaml"


@pytest.fixture(scope="module")
def container(built: Built) -> str:
    return built.store.container(CPU_IMAGE)


def test_doctor_was_the_last_step_and_content_with_the_recipe(built):
    runs = [step for step in built.store.inspect(CPU_IMAGE)["history"] if "#(nop)" not in step]
    assert runs[-1].endswith(DOCTOR), runs
    assert "recipe tiny" in built.said.split(DOCTOR)[-1]


def test_labels_user_and_command(built):
    image = built.store.inspect(CPU_IMAGE)
    assert image["Labels"]["org.opencontainers.image.title"] == "aent on a CPU"
    assert image["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert image["Labels"]["org.opencontainers.image.revision"] == COMMIT
    assert f"AENT_GIT_COMMIT={COMMIT}" in image["Env"]
    assert image["User"] == "10001"
    assert image["Cmd"][:2] == ["aent", "train"]
    assert (ROOT / image["Cmd"][2]).is_file()


def test_nothing_of_the_package_sources_stayed(built, container):
    assert all(built.mark in path.read_text() for path in built.secrets.iterdir())
    assert built.store.files_with(built.mark) == []
    for path in ("/run/secrets", "/etc/apt/sources.list.d"):
        left = built.store.run(container, "find", path, "-type", "f")
        assert left == "", left


def test_the_tiny_recipe_runs_without_network_as_an_ordinary_user(built, container):
    assert built.store.run(container, "id", "-u").strip() == "10001"
    assert len(built.store.run(container, "cat", "/proc/net/route").splitlines()) == 1  # its title
    said = built.store.run(container, "aent", "train", "recipes/cpu/tiny.yaml", timeout_s=900)
    assert "step 4/4" in said
    assert "held-out accuracy" in said
