"""The files of a split in a data set's folder, in the layouts of Hugging Face's libraries.

There are three layouts. ``datasets.save_to_disk`` writes Arrow streams and state.json (with several
splits, dataset_dict.json above them). Or a folder has parquet or JSONL files and a data set card
(README.md), whose ``configs`` map splits to files. Or it has no such card, and the files' names
contain the split.
https://huggingface.co/docs/hub/datasets-manual-configuration, .../datasets-file-names-and-splits
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aent.recipe.yaml_text import RecipeError, parse_value

SUFFIXES = (".parquet", ".jsonl")
DEFAULT = "train"
# words in a path that name a split (from datasets.data_files.SPLIT_KEYWORDS)
WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "dev", "val"},
    "test": {"test", "testing", "eval", "evaluation"},
}


def files_of(folder: Path, split: str = DEFAULT, subset: str | None = None) -> list[Path]:
    """The files of a split, in order.

    subset: one of the card's configurations, or a subfolder.

    Raises ValueError naming the folder and what it has, if there is no such split or subset.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json")["splits"]
        _refuse_subset(folder, subset)
        if split not in splits:
            raise _without(folder, "split", split, splits)
        folder = folder / split
    if (folder / "state.json").is_file():
        return _saved(folder, split, subset)
    configs = _configs(folder / "README.md")
    if configs:
        by_split = _of_card(folder, configs, subset)
    else:
        by_split = _by_name(folder if subset is None else folder / subset)
    if split not in by_split:
        raise _without(folder, "split", split, by_split)
    return by_split[split]


def _saved(folder: Path, split: str, subset: str | None) -> list[Path]:
    """What ``Dataset.save_to_disk`` wrote."""
    state = _json(folder / "state.json")
    _refuse_subset(folder, subset)
    own = state.get("_split")
    if split != DEFAULT and own is not None and split != own:
        raise _without(folder, "split", split, [own])
    return [folder / part["filename"] for part in state["_data_files"]]


def _refuse_subset(folder: Path, subset: str | None) -> None:
    if subset is not None:
        raise ValueError(f"{folder} was saved by datasets and has no subset {subset!r}")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found = found if isinstance(found, dict) else {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    needed = "splits" if path.name == "dataset_dict.json" else "_data_files"
    if needed not in found:
        raise ValueError(f"{path} was not written by datasets.save_to_disk: it has no {needed!r}")
    return found


def _configs(card: Path) -> list[dict[str, Any]]:
    """The configurations in the card's header; empty if it has no such list."""
    if not card.is_file():
        return []
    header = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL)
    if header is None:
        return []
    try:
        found = parse_value(header[1], str(card))
    except RecipeError as error:
        raise ValueError(str(error)) from None
    configs = found.get("configs") if isinstance(found, dict) else None
    return [one for one in configs or [] if isinstance(one, dict) and "data_files" in one]


def _of_card(
    folder: Path, configs: list[dict[str, Any]], subset: str | None
) -> dict[str, list[Path]]:
    names = [str(config.get("config_name", "default")) for config in configs]
    if subset is None:
        marked = [n for n, config in zip(names, configs) if config.get("default")]
        subset = next(iter([*marked, *(n for n in names if n == "default")]), None)
        if subset is None and len(names) > 1:
            raise ValueError(f"{folder} has the subsets {', '.join(names)}: name one (subset)")
        subset = subset or names[0]
    if subset not in names:
        raise _without(folder, "subset", subset, names)
    found: dict[str, list[Path]] = {}
    for split, pattern in _patterns(configs[names.index(subset)]["data_files"]):
        if pattern.startswith("/") or ".." in Path(pattern).parts:
            raise ValueError(f"{folder}/README.md: {pattern} is not in the folder")
        paths = sorted(path for path in folder.glob(pattern) if path.suffix in SUFFIXES)
        if not paths:
            raise ValueError(f"{folder} has no file {pattern} ({' or '.join(SUFFIXES)})")
        found.setdefault(split, []).extend(paths)
    return found


def _patterns(data_files: Any) -> Iterator[tuple[str, str]]:
    """(split, pattern) of each entry: a pattern, a list of patterns, or a list of mappings with
    ``split`` and ``path``."""
    for one in data_files if isinstance(data_files, list) else [data_files]:
        split, paths = (one["split"], one["path"]) if isinstance(one, dict) else (DEFAULT, one)
        for path in paths if isinstance(paths, list) else [paths]:
            yield str(split), str(path)


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """Files by the split that a word in their path names; all are ``train`` if none does."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES]
    if not paths:
        raise ValueError(
            f"{folder} is not a data set: it has neither files of datasets.save_to_disk nor "
            f"{' or '.join(SUFFIXES)} files"
        )
    found: dict[str, list[Path]] = {}
    for path in paths:
        words = set(re.split(r"[^a-z]+", str(path.relative_to(folder)).lower()))
        for split, known in WORDS.items():
            if words & known:
                found.setdefault(split, []).append(path)
    return found or {DEFAULT: paths}


def _without(folder: Path, what: str, name: str, known: Any) -> ValueError:
    return ValueError(f"{folder} has no {what} {name!r} (it has {', '.join(map(str, known))})")
