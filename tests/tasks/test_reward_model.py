"""Reward models served by vLLM: its pooling route returns transformers' score."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers
from safetensors.torch import save_file

from aent.data.question import Question
from aent.data.response import Response
from aent.models import model_source
from aent.recipe.schema import ModelSection, TaskSection
from aent.runtime.children import Child
from aent.tasks.judge import JudgePool
from processes import free_port

QUESTIONS = [Question(i, f"{i} + 1?", str(i + 1)) for i in range(2)]
RESPONSES = [Response("It is 1."), Response("2, as anyone can see")]
START_S = 900.0


def saved(folder: Path, of_tokens: bool) -> list[float]:
    """Write a random reward model of the tiny architecture; its scores of the conversations, by
    transformers."""
    source = model_source.resolve(ModelSection(bundled="tiny-qwen2"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    config = transformers.AutoConfig.from_pretrained(source)
    config.num_labels = 1
    config.pad_token_id = 0
    torch.manual_seed(3)
    body = transformers.AutoModel.from_config(config)
    hidden = config.hidden_size
    first = torch.nn.Linear(hidden, hidden)
    last = torch.nn.Linear(hidden, 1, bias=of_tokens)
    torch.nn.init.normal_(last.weight)
    tensors = {f"model.{name}": tensor for name, tensor in body.state_dict().items()}
    # the head of Qwen2ForRewardModel is the published one of Qwen2.5-Math-RM-72B
    head: Any = last
    if of_tokens:
        head = torch.nn.Sequential(first, torch.nn.ReLU(), last)
    tensors |= {f"score.{name}": tensor for name, tensor in head.state_dict().items()}
    kind = "Qwen2ForRewardModel" if of_tokens else "Qwen2ForSequenceClassification"
    config.architectures = [kind]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    found = []
    for question, response in zip(QUESTIONS, RESPONSES):
        messages = [
            {"role": "user", "content": question.prompt},
            {"role": "assistant", "content": response.text},
        ]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            found.append(head(body(**ids).last_hidden_state[:, -1]).item())
    return found


@contextmanager
def served(folder: Path, log: Path) -> Iterator[str]:
    port = free_port()
    options = {
        "model": folder, "served-model-name": "rm", "host": "127.0.0.1", "port": port,
        "max-model-len": 256, "dtype": "float32", "block-size": 32,
        "kv-cache-memory-bytes": 50 << 20, "distributed-executor-backend": "uni",
    }  # fmt: skip
    argv = [sys.executable, "-m", "aent.inference.server", "--enforce-eager"]
    argv += ["--no-enable-chunked-prefill", *(f"--{k}={v}" for k, v in options.items())]
    env = {
        **os.environ, "VLLM_PLUGINS": "none", "VLLM_WORKER_MULTIPROC_METHOD": "fork",
        "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    server = Child.start("reward model", argv, env=env, log_path=log)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while not _healthy(url):
            assert server.poll() is None, server.tail(30)
            assert time.monotonic() < deadline, server.tail(30)
            time.sleep(0.2)
        yield url
    finally:
        server.stop(20)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("of_tokens", [False, True])
def test_the_score_is_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_tokens: bool
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    model = tmp_path / "model"
    model.mkdir()
    expected = saved(model, of_tokens)
    with served(model, tmp_path / "server.log") as url:
        grader = {"kind": "reward_model", "url": url, "model": "rm"}
        with JudgePool(TaskSection.model_validate({"graders": [grader]})) as judge:
            verdicts = judge.judge(QUESTIONS, RESPONSES)
    assert [v.error for v in verdicts] == ["", ""]
    assert [v.reward for v in verdicts] == pytest.approx(expected, abs=1e-4)
    assert abs(expected[0] - expected[1]) > 0.01
