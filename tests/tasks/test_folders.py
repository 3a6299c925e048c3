"""Folders of data sets, as ``datasets`` writes them and as the Hub has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from aent.recipe.sources import ColumnsSection
from aent.tasks import files, folders
from wording import naming

ROWS = [{"question": f"{i}?", "answer": str(i)} for i in range(7)]


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def asked(path: Path, split: str = "train", subset: str | None = None) -> list[str]:
    return [q.prompt for q in files.questions(path, split=split, subset=subset)]


@pytest.mark.slow
def test_what_datasets_has_saved(tmp_path: Path) -> None:
    """Written by ``datasets`` itself: one split, several, several files, rows in another order."""
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    whole.select([3, 1, 5]).save_to_disk(tmp_path / "one", num_shards=2)
    both = {"train": whole.select(range(4)), "test": whole.select([6, 5])}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "both")
    assert asked(tmp_path / "one") == ["3?", "1?", "5?"]
    assert asked(tmp_path / "both") == ["0?", "1?", "2?", "3?"]
    assert asked(tmp_path / "both", "test") == ["6?", "5?"]
    with pytest.raises(ValueError, match=naming("both", "'dev'", "train, test")):
        asked(tmp_path / "both", "dev")
    with pytest.raises(ValueError, match=naming("one", "'main'")):
        asked(tmp_path / "one", subset="main")
    talk = [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": "7"},
            {"role": "user", "content": "Twice?"}]  # fmt: skip
    row = {"prompt": talk, "reward_model": {"ground_truth": "14"}}
    datasets.Dataset.from_list([row]).save_to_disk(tmp_path / "talks")
    columns = ColumnsSection(question="prompt", answer="reward_model.ground_truth")
    (one,) = files.questions(tmp_path / "talks", "Think.", columns)
    assert (one.prompt, one.answer) == ("Twice?\nThink.", "14")
    assert one.earlier == (("user", "3 + 4?"), ("assistant", "7"))
    (tmp_path / "one" / "data-00000-of-00002.arrow").write_bytes(b"torn")
    with pytest.raises(ValueError, match=naming("data-00000-of-00002.arrow", "Arrow")):
        asked(tmp_path / "one")


CARD = """---
license: mit
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path:
    - main/test-*
- config_name: hard
  data_files: hard/*.jsonl
---
# A data set
"""


def test_a_card_says_which_file_is_of_which_split(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    parquet(tmp_path / "main" / "train-00001-of-00002.parquet", ROWS[2:4])
    parquet(tmp_path / "main" / "train-00000-of-00002.parquet", ROWS[:2])
    parquet(tmp_path / "main" / "test-00000-of-00001.parquet", ROWS[4:5])
    (tmp_path / "hard").mkdir()
    (tmp_path / "hard" / "x.jsonl").write_text('{"question": "x?", "answer": 1}\n')
    assert asked(tmp_path) == ["0?", "1?", "2?", "3?"]
    assert asked(tmp_path, "test") == ["4?"]
    assert asked(tmp_path, subset="hard") == ["x?"]
    with pytest.raises(ValueError, match=naming("subset", "'easy'", "main, hard")):
        asked(tmp_path, subset="easy")
    with pytest.raises(ValueError, match=naming("split", "'test'", "train")):
        asked(tmp_path, "test", "hard")
    (tmp_path / "README.md").write_text(CARD.replace("  default: true\n", ""))
    with pytest.raises(ValueError, match=naming(tmp_path, "main, hard", "subset")):
        asked(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("data/none-*", ("data/none-*",)),
        ("../x.parquet", ("README.md", "../x.parquet")),
        ("/etc/x.parquet", ("README.md", "/etc/x.parquet")),
    ],
)
def test_a_card_that_names_what_is_not_there(
    tmp_path: Path, pattern: str, names: tuple[str, ...]
) -> None:
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- data_files: {pattern}\n---\n")
    with pytest.raises(ValueError, match=naming(*names)):
        asked(tmp_path)


def test_without_a_card_the_names_say_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# no header\n")
    parquet(tmp_path / "data" / "train-0.parquet", ROWS[:2])
    parquet(tmp_path / "data" / "valid-0.parquet", ROWS[2:3])
    assert asked(tmp_path) == ["0?", "1?"]
    assert asked(tmp_path, "validation") == ["2?"]
    with pytest.raises(ValueError, match=naming("'test'", "train", "validation")):
        asked(tmp_path, "test")
    plain = tmp_path / "plain"  # the folder's name does not describe its files
    parquet(plain / "b.parquet", ROWS[1:2])
    parquet(plain / "a.parquet", ROWS[:1])
    assert asked(plain) == ["0?", "1?"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=naming("empty", "datasets.save_to_disk")):
        asked(tmp_path / "empty")
    (tmp_path / "empty" / "state.json").write_text("[]")
    with pytest.raises(ValueError, match=naming("state.json", "_data_files")):
        folders.files_of(tmp_path / "empty")
