"""A checkpoint hashed by several nodes, and prepare's use of the hashes."""

import hashlib

import pytest

from aent.checkpoint import folders
from aent.checkpoint.folders import CheckpointError
from aent.slurm import hashes

FILES = {f"trainer/__{rank}_0.distcp": bytes([rank]) * (100 + 10 * (rank % 3)) for rank in range(7)}


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for step in (5, 10):
        folder = folders.path_of(tmp_path, step)
        (folder / "trainer").mkdir(parents=True)
        for name, content in FILES.items():
            (folder / name).write_bytes(content)
        sums = [f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in FILES.items()]
        (folder / folders.SUMS).write_text("\n".join(sums) + "\n")
    return folder


def hash_on(nodes, run_dir, monkeypatch, places):
    monkeypatch.setenv("SLURM_NTASKS", str(nodes))
    for place in places:
        monkeypatch.setenv("SLURM_PROCID", str(place))
        assert hashes.main(run_dir) == 0


def test_every_file_is_hashed_by_one_node_and_prepare_reads_none_again(
    checkpoint, tmp_path, monkeypatch
):
    shares = [hashes.share(checkpoint, 3, place) for place in range(3)]
    assert sorted(path for part in shares for path in part) == sorted(checkpoint / n for n in FILES)
    sizes = [sum(path.stat().st_size for path in part) for part in shares]
    assert max(sizes) - min(sizes) <= 120
    hash_on(3, tmp_path, monkeypatch, range(3))
    digests = hashes.take(tmp_path)
    assert not (tmp_path / hashes.FOLDER).exists()
    assert digests.keys() == {str(checkpoint / name) for name in FILES}
    monkeypatch.setattr(folders, "checksum", lambda path: pytest.fail(f"{path} is hashed again"))
    assert folders.pick(tmp_path, digests) == checkpoint


def test_what_a_node_has_not_hashed_prepare_does(checkpoint, tmp_path, monkeypatch):
    hash_on(3, tmp_path, monkeypatch, [0, 2])
    assert folders.pick(tmp_path, hashes.take(tmp_path)) == checkpoint
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # another start of the job has hashed nothing
    assert hashes.take(tmp_path) == {}


def test_damage_that_a_node_has_found_sets_the_checkpoint_aside(
    checkpoint, tmp_path, monkeypatch, capsys
):
    (checkpoint / "trainer" / "__3_0.distcp").write_bytes(b"other")
    hash_on(2, tmp_path, monkeypatch, range(2))
    picked = folders.pick(tmp_path, hashes.take(tmp_path))
    assert picked == folders.path_of(tmp_path, 5)
    assert "__3_0.distcp is not what was written" in capsys.readouterr().err


def test_a_file_that_is_gone_is_told_and_left_to_prepare(checkpoint, tmp_path, monkeypatch, capsys):
    (checkpoint / "trainer" / "__3_0.distcp").unlink()
    hash_on(1, tmp_path, monkeypatch, [0])
    assert "node 0" in capsys.readouterr().err
    assert hashes.take(tmp_path) == {}
    assert folders.pick(tmp_path) == folders.path_of(tmp_path, 5)


def test_a_run_without_a_checkpoint_has_nothing_to_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    hash_on(1, tmp_path, monkeypatch, [0])
    assert hashes.take(tmp_path) == {}
    with pytest.raises(CheckpointError):
        folders.pick(tmp_path)
