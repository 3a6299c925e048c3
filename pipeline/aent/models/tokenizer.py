"""The policy's tokenizer, through NeMo: Hugging Face, SentencePiece, tiktoken.

``load`` imports NeMo's files without the packages that contain them: those import all of NeMo and
Lightning, which takes 3 s of processor time before the first question is read.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from aent.data.question import Turn
from aent.models.chat import ChatTemplate
from aent.recipe.schema import ModelSection
from aent.runtime.importing import bare, without


@dataclass(frozen=True)
class Tokenizer:
    """Converts text to the model's token ids and back."""

    encode: Callable[[str], list[int]]  # adds no special tokens; parses those written in the text
    decode: Callable[[Sequence[int]], str]  # omits special tokens
    stop_ids: tuple[int, ...]  # any of them ends a response
    template: ChatTemplate | None
    bos_ids: tuple[int, ...]  # before a plain-text prompt, if the tokenizer has such a token
    rows: int | None = None  # of the model's embedding, if known

    def chat_prompt(
        self, prompt: str, system_prompt: str | None = None, earlier: Sequence[Turn] = ()
    ) -> list[int]:
        """Token ids of all turns up to the beginning of the answer, by the chat template.

        Without a chat template they are plain text: the system prompt and every turn, separated by
        empty lines. Raises ValueError as ``ChatTemplate.prompt``, and for a text that spells a
        special token without a row in the model's embedding, which engines would look up.
        """
        if self.template is None:
            system = [] if system_prompt is None else [system_prompt]
            parts = [*system, *(text for _, text in earlier), prompt]
            ids = [*self.bos_ids, *self.encode("\n\n".join(parts))]
        else:
            ids = self.encode(self.template.prompt(prompt, system_prompt, earlier))
        if self.rows is not None and max(ids, default=0) >= self.rows:
            raise ValueError(
                f"the prompt {prompt[:60]!r} has a token with the id {max(ids)}, and the model's "
                f"embedding has {self.rows} rows: the tokenizer is not the model's, or the text "
                "spells one of its special tokens"
            )
        return ids


def load(
    section: ModelSection,
    model_path: Path,
    variables: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> Tokenizer:
    """Load the tokenizer that the recipe names; ``tokenizer_path`` defaults to ``model_path``.

    ``variables`` (task.template) and ``now`` are for its chat template: see ``ChatTemplate``.

    huggingface: a folder. sentencepiece: a .model file, or a folder with tokenizer.model. tiktoken:
    a .json vocabulary in NeMo's format (rank, token_bytes, token_str), or a folder with a
    tokenizer.json in that format; special tokens fill the model's vocabulary from below.

    Raises FileNotFoundError naming the field if there is no such file or folder.
    """
    path = Path(section.tokenizer_path or model_path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"model.tokenizer_path: there is no {path}")
    stops = _model_stop_ids(model_path)
    rows = json.loads((model_path / "config.json").read_text()).get("vocab_size")
    if section.tokenizer_library == "huggingface":
        return replace(_huggingface(path, stops, variables or {}, now), rows=rows)
    if section.tokenizer_library == "sentencepiece":
        return replace(_sentencepiece(_file(path, "tokenizer.model"), stops), rows=rows)
    return replace(_tiktoken(_file(path, "tokenizer.json"), rows, stops), rows=rows)


def _huggingface(
    path: Path, stops: set[int], variables: Mapping[str, Any], now: datetime | None
) -> Tokenizer:
    nemo = _of_nemo("huggingface.auto_tokenizer").AutoTokenizer(str(path), trust_remote_code=False)
    inner = nemo.tokenizer
    text = inner.get_chat_template() if inner.chat_template else None
    return Tokenizer(
        encode=nemo.text_to_ids,
        decode=lambda ids: nemo.ids_to_text(list(ids)),
        stop_ids=_sorted(stops, nemo.eos_id),
        template=text and ChatTemplate(text, inner.special_tokens_map, variables, now),
        bos_ids=() if nemo.bos_id is None else (nemo.bos_id,),
    )


def _sentencepiece(file: Path, stops: set[int]) -> Tokenizer:
    nemo = _of_nemo("sentencepiece_tokenizer").SentencePieceTokenizer(str(file))
    return Tokenizer(
        encode=nemo.text_to_ids,
        decode=lambda ids: nemo.ids_to_text(list(ids)),
        stop_ids=_sorted(stops, nemo.eos_id),
        template=None,
        bos_ids=(nemo.bos_id,) if nemo.bos_id >= 0 else (),
    )


def _tiktoken(file: Path, vocab_size: int, stops: set[int]) -> Tokenizer:
    tokenizers = _of_nemo("tiktoken_tokenizer")
    entries = len(json.loads(file.read_text()))
    # a file as large as the vocabulary is cut, to leave room for NeMo's usual 1000 special tokens
    special = vocab_size - entries if entries < vocab_size else 1000
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        nemo = tokenizers.TiktokenTokenizer(
            str(file), vocab_size=vocab_size, num_special_tokens=special
        )

    def decode(ids: Sequence[int]) -> str:
        # not nemo.ids_to_text: it decodes token by token and loses characters that span two tokens
        return nemo.tokenizer.decode([i - special for i in ids if i >= special])

    return Tokenizer(
        encode=nemo.text_to_ids,
        decode=decode,
        stop_ids=_sorted(stops, nemo.eos_id),
        template=None,
        bos_ids=(nemo.bos_id,),
    )


def _of_nemo(module: str) -> Any:
    """A module of NeMo's tokenizers."""
    common = "nemo.collections.common"
    for package in (common, f"{common}.parts", f"{common}.tokenizers"):
        bare(package)
    with without("lightning"):
        return importlib.import_module(f"{common}.tokenizers.{module}")


def _file(path: Path, name: str) -> Path:
    file = path / name if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"model.tokenizer_path: there is no file {file}")
    return file


def _model_stop_ids(model_path: Path) -> set[int]:
    """Every eos_token_id of the model's folder (some chat models have several)."""
    stops: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        file = model_path / name
        eos: Any = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        stops.update([eos] if isinstance(eos, int) else eos or [])
    return stops


def _sorted(stops: set[int], eos: int | None) -> tuple[int, ...]:
    return tuple(sorted(stops | ({eos} if eos is not None and eos >= 0 else set())))
