"""A response as arrays: the answer of our own route in an engine, 8 bytes a token.

vLLM's JSON has 141 bytes for each token's log-prob, which one Python process writes and another
reads. Both sides import this; it uses only the standard library.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MEDIA_TYPE = "application/x-aent-completion"  # asked for by "Accept"
FORMAT = 1
# "aent", format, numbers of tokens, alternatives per token and spans; why it ended
HEAD = struct.Struct("<4sIIII16s")
MARK = b"aent"


@dataclass(frozen=True)
class Span:
    """Tokens from ``start`` to before ``end``, sampled with weights of one version."""

    start: int
    end: int
    version: int


@dataclass(frozen=True)
class Response:
    """An engine's response, unchecked."""

    token_ids: list[int]
    logprobs: list[float]  # of each token; NaN if there is none
    spans: list[Span]
    finish_reason: str
    likely: list[list[float]]  # log-probs of alternatives to each token; empty if not requested


def pack(response: Response) -> bytes:
    """Pack it as bytes, little-endian: head; token ids (int32); log-probs (float32); log-probs of
    alternatives (float32); start, end and version of each span (int32).

    Raises ValueError if tokens differ in their number of alternatives, OverflowError for a number
    of more than 32 bits.
    """
    widths = {len(each) for each in response.likely} or {0}
    if len(widths) > 1:
        raise ValueError(f"between {min(widths)} and {max(widths)} alternatives to a token")
    head = HEAD.pack(
        MARK,
        FORMAT,
        len(response.token_ids),
        widths.pop(),
        len(response.spans),
        response.finish_reason.encode()[:16],
    )
    spans = [number for s in response.spans for number in (s.start, s.end, s.version)]
    likely = (value for each in response.likely for value in each)
    arrays = (("i", response.token_ids), ("f", response.logprobs), ("f", likely), ("i", spans))
    return head + b"".join(_bytes(code, values) for code, values in arrays)


def unpack(body: bytes) -> Response:
    """Undo ``pack``. Raises ValueError if the bytes are something else, or another format."""
    if len(body) < HEAD.size or not body.startswith(MARK):
        raise ValueError(f"no response as arrays: {body[:40]!r}")
    _, version, tokens, alternatives, spans, reason = HEAD.unpack_from(body)
    if version != FORMAT:
        raise ValueError(
            f"the engine's responses have format {version}, not {FORMAT}: it runs another version "
            "of aent"
        )
    counts = (tokens, tokens, tokens * alternatives, 3 * spans)
    if len(body) != HEAD.size + 4 * sum(counts):
        raise ValueError(f"a response of {len(body)} bytes, not {HEAD.size + 4 * sum(counts)}")
    at, parts = HEAD.size, []
    for code, count in zip("iffi", counts):
        parts.append(_numbers(code, body[at : at + 4 * count]))
        at += 4 * count
    ids, logprobs, likely, numbers = parts
    return Response(
        ids,
        logprobs,
        [Span(*numbers[i : i + 3]) for i in range(0, len(numbers), 3)],
        reason.rstrip(b"\0").decode(errors="replace"),
        [likely[i : i + alternatives] for i in range(0, len(likely), alternatives or 1)],
    )


def _bytes(code: str, values: Iterable[float]) -> bytes:
    numbers: array[Any] = array(code, values)
    _little_endian(numbers)
    return numbers.tobytes()


def _numbers(code: str, part: bytes) -> list[Any]:
    numbers: array[Any] = array(code)
    numbers.frombytes(part)
    _little_endian(numbers)
    return numbers.tolist()


def _little_endian(numbers: array[Any]) -> None:
    if sys.byteorder == "big":
        numbers.byteswap()
