"""The policy's tokenizer, through NeMo's: Hugging Face, SentencePiece, tiktoken.

NeMo is imported in ``load``: on two cores that takes 13 s alone, 0.1 s after
``nemo.core.optim.lr_scheduler``, which the trainer needs anyway.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aent.recipe.schema import ModelSection

Message = dict[str, str]


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back; ids are the model's."""

    encode: Callable[[str], list[int]]  # adds no special token, reads those written in the text
    decode: Callable[[Sequence[int]], str]  # leaves special tokens out
    stop_ids: tuple[int, ...]  # any of them ends a response
    render: Callable[[list[Message], bool], str] | None  # chat template: (messages, to be answered)
    bos: str  # written at the beginning of a prompt, where the tokenizer has such a token
    bos_ids: tuple[int, ...]

    def chat_prompt(self, prompt: str, system_prompt: str | None = None) -> list[int]:
        """Ids of the user's turn and the beginning of the answer's, by the chat template.

        Without ``system_prompt`` there is no system turn, also where the template would insert one
        of its own (as SmolLM2's does). A tokenizer without a chat template gets plain text: the
        system prompt, an empty line, the prompt.

        Raises ValueError if the default system turn cannot be told from the rest.
        """
        if self.render is None:
            parts = [prompt] if system_prompt is None else [system_prompt, prompt]
            return [*self.bos_ids, *self.encode("\n\n".join(parts))]
        user = {"role": "user", "content": prompt}
        if system_prompt is not None:
            return self.encode(
                self.render([{"role": "system", "content": system_prompt}, user], True)
            )
        return self.encode(_without_system_turn(self.render, user, self.bos))


def _without_system_turn(
    render: Callable[[list[Message], bool], str], user: Message, bos: str
) -> str:
    """The user's turn as the template writes it when it is not the first."""
    whole = render([user], True)
    other = {"role": "user", "content": "?"}
    for history in ([other], [other, {"role": "assistant", "content": "!"}]):
        try:
            before, after = render(history, False), render([*history, user], True)
        except Exception:  # templates refuse turns that do not alternate, by jinja's exceptions
            continue
        turn = after.removeprefix(before)
        if turn != after and whole.endswith(turn):
            # kept, unless it is what begins every turn (as SmolLM2's)
            begins = bos and whole.startswith(bos) and not turn.startswith(bos)
            return bos + turn if begins else turn
    raise ValueError(
        "the model's chat template writes the first turn in another way than later ones, so its "
        "default system turn cannot be left out: give task.system_prompt"
    )


def load(section: ModelSection, model_path: Path) -> Tokenizer:
    """Load the tokenizer that the recipe names; ``tokenizer_path`` defaults to ``model_path``.

    huggingface: a folder. sentencepiece: a .model file, or a folder with tokenizer.model. tiktoken:
    a .json vocabulary in NeMo's form (rank, token_bytes, token_str), or a folder with
    tokenizer.json of that form; special tokens fill the model's vocabulary from below.

    Raises FileNotFoundError, naming the field, where there is no such file or folder.
    """
    path = Path(section.tokenizer_path or model_path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"model.tokenizer_path: there is no {path}")
    stops = _model_stop_ids(model_path)
    if section.tokenizer_library == "huggingface":
        return _huggingface(path, stops)
    if section.tokenizer_library == "sentencepiece":
        return _sentencepiece(_file(path, "tokenizer.model"), stops)
    vocab_size = json.loads((model_path / "config.json").read_text())["vocab_size"]
    return _tiktoken(_file(path, "tokenizer.json"), vocab_size, stops)


def _huggingface(path: Path, stops: set[int]) -> Tokenizer:
    from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer

    nemo = AutoTokenizer(str(path))
    inner = nemo.tokenizer

    def render(messages: list[Message], answer: bool) -> str:
        return inner.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)

    return Tokenizer(
        encode=nemo.text_to_ids,
        decode=lambda ids: nemo.ids_to_text(list(ids)),
        stop_ids=_sorted(stops, nemo.eos_id),
        render=render if inner.chat_template else None,
        bos=inner.bos_token or "",
        bos_ids=() if nemo.bos_id is None else (nemo.bos_id,),
    )


def _sentencepiece(file: Path, stops: set[int]) -> Tokenizer:
    from nemo.collections.common.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

    nemo = SentencePieceTokenizer(str(file))
    return Tokenizer(
        encode=nemo.text_to_ids,
        decode=lambda ids: nemo.ids_to_text(list(ids)),
        stop_ids=_sorted(stops, nemo.eos_id),
        render=None,
        bos="",
        bos_ids=(nemo.bos_id,) if nemo.bos_id >= 0 else (),
    )


def _tiktoken(file: Path, vocab_size: int, stops: set[int]) -> Tokenizer:
    from nemo.collections.common.tokenizers.tiktoken_tokenizer import TiktokenTokenizer

    entries = len(json.loads(file.read_text()))
    # a file as large as the vocabulary is cut, to make room for NeMo's usual 1000 special tokens
    special = vocab_size - entries if entries < vocab_size else 1000
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        nemo = TiktokenTokenizer(str(file), vocab_size=vocab_size, num_special_tokens=special)

    def decode(ids: Sequence[int]) -> str:
        # not nemo.ids_to_text, which decodes token by token and so loses characters of two tokens
        return nemo.tokenizer.decode([i - special for i in ids if i >= special])

    return Tokenizer(
        encode=nemo.text_to_ids,
        decode=decode,
        stop_ids=_sorted(stops, nemo.eos_id),
        render=None,
        bos="",
        bos_ids=(nemo.bos_id,),
    )


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
