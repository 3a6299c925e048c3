"""The engine's end of a request for one sample, answered as arrays (``inference.arrays``).

vLLM's own route makes several objects for each token and writes them as JSON, in the one Python
process that serves all requests. This one answers requests for generation that accept arrays; vLLM
answers all others. vLLM 0.32.0 imports this module by ``ArrayRoute``'s name (``--middleware``).
"""

from __future__ import annotations

import asyncio
import json
import math
import uuid
from typing import Any

from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from aent.inference.arrays import MEDIA_TYPE, Response, Span, pack
from aent.inference.completion import version_of
from aent.inference.token_gate import read_body, refuse

PATH = "/inference/v1/generate"


class ArrayRoute:
    """ASGI middleware, inside of ``TokenGate``."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer a request for generation that accepts arrays; pass on all others."""
        if scope["type"] != "http" or scope["path"] != PATH or not _accepts_arrays(scope):
            await self.app(scope, receive, send)
            return
        try:
            asked = json.loads(await read_body(receive))
            sampling = dict(asked["sampling_params"])
            params = SamplingParams(
                **sampling, output_kind=RequestOutputKind.FINAL_ONLY, flat_logprobs=True
            )
            if params.logprobs is None or params.n != 1:
                raise ValueError("log-probs of one sample are what this answers with")
            prompt = tokens_input(asked["token_ids"], cache_salt=asked.get("cache_salt"))
        except (VLLMClientError, ValueError, TypeError, KeyError) as error:
            await refuse(scope, send, 400, f"{type(error).__name__}: {error}".encode())
            return
        model, models = asked.get("model"), scope["app"].state.openai_serving_models
        if model is not None and not models.is_base_model(model):
            await refuse(scope, send, 404, f"the model {model!r} does not exist".encode())
            return
        writing = asyncio.ensure_future(_written(scope["app"].state, prompt, params))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                return
            body = pack(_response(writing.result(), params.logprobs))
        except (VLLMClientError, ValueError) as error:  # a request that cannot be served
            await refuse(scope, send, 400, f"{type(error).__name__}: {error}".encode())
            return
        except Exception as error:
            await refuse(scope, send, 500, f"{type(error).__name__}: {error}".encode())
            return
        finally:
            gone.cancel()
            writing.cancel()  # if the client has left, the engine is told to stop
            await asyncio.gather(gone, writing, return_exceptions=True)
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _accepts_arrays(scope: dict[str, Any]) -> bool:
    accepted = dict(scope["headers"]).get(b"accept", b"")
    return scope["method"] == "POST" and MEDIA_TYPE.encode() in accepted


async def _gone(receive: Any) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _written(state: Any, prompt: Any, params: SamplingParams) -> CompletionOutput:
    """Have the engine generate the sample."""
    written: CompletionOutput | None = None
    name = f"aent-{uuid.uuid4().hex}"
    async for answer in state.engine_client.generate(prompt, params, name):
        written = answer.outputs[0]
    if written is None or written.finish_reason == "error":
        raise RuntimeError("the engine failed while it wrote the response")
    return written


def _response(written: CompletionOutput, alternatives: int) -> Response:
    """Raises RuntimeError if vLLM's output lacks what it was asked for."""
    tokens, flat = list(written.token_ids), written.logprobs
    if not isinstance(flat, FlatLogprobs) or len(flat) != len(tokens):
        raise RuntimeError("vLLM has no log-probs for the tokens that it wrote")
    # each token's own log-prob is first, followed by those of the likeliest tokens
    own = [
        flat.logprobs[start] if start < end and flat.token_ids[start] == token else math.nan
        for token, start, end in zip(tokens, flat.start_indices, flat.end_indices)
    ]
    likely = []
    if alternatives:
        for start, end in zip(flat.start_indices, flat.end_indices):
            # as in vLLM's JSON: with the token itself, once
            each = dict(zip(flat.token_ids[start:end], flat.logprobs[start:end]))
            likely.append(list(each.values())[:alternatives])
    spans = [Span(s.start, s.end, version_of(s.version)) for s in written.weight_versions or []]
    return Response(tokens, own, spans, written.finish_reason or "", likely)
