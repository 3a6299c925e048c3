"""The logits of a real policy on its own answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from aent.models import model_source
from aent.recipe.schema import ModelSection

PROMPTS = (
    "What is 17 + 25? Think step by step.",
    "Write a short story about a lighthouse keeper.",
    "Explain in simple words why the sky is blue.",
    "Write a Python function that reverses a list.",
    "A train travels 60 miles in 1.5 hours. What is its average speed?",
    "List five things to do on a rainy day.",
    "Translate into French: The library opens at nine.",
    "If all cats are animals and some animals are black, are some cats black?",
)
BUNDLED = ("smollm2-135m-instruct", "tiny-qwen2")


def find(name: str, number: int) -> tuple[Path, list[str]]:
    """The Hugging Face folder of a policy, and ``number`` prompts for it.

    name: a run's folder (its trained policy and its held-out questions), a Hugging Face folder, or
    the name of a bundled model (both with ``PROMPTS``).

    Raises FileNotFoundError or ValueError in one sentence.
    """
    folder = Path(name).expanduser()
    if (folder / "recipe.yaml").is_file():
        from aent import tasks
        from aent.recipe.load import load_recorded

        recipe = load_recorded(folder / "recipe.yaml")
        policy = folder / "policy"
        if not policy.is_dir():
            raise FileNotFoundError(f"{folder} has no policy/: the run is not finished")
        questions = tasks.load(recipe.task, recipe.seed).heldout[:number]
        if not questions:
            raise ValueError(f"{folder}: its recipe has no held-out questions (task.heldout=0)")
        return policy, [question.prompt for question in questions]
    if name in BUNDLED:
        section = ModelSection.model_validate({"bundled": name})
    elif folder.is_dir():
        section = ModelSection(path=name)
    else:
        raise FileNotFoundError(
            f"MODEL: there is no folder {name} (bundled models: {', '.join(BUNDLED)})"
        )
    return model_source.resolve(section), list(PROMPTS[:number])


def own_logits(
    folder: Path, prompts: list[str], samples: int, tokens: int, seed: int
) -> Iterator[Tensor]:
    """For each prompt, the logits [n, V] at every token of the policy's own answers.

    It draws ``samples`` answers of at most ``tokens`` tokens at temperature 1. The prompt is a
    user's turn of the chat template, if the tokenizer has one.

    Raises ValueError if the folder is not a model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        ).eval()
    except Exception as error:  # anything that transformers, tokenizers and safetensors raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{folder} cannot be read as a model: {reason}") from error
    stops = model.generation_config.eos_token_id
    stops = torch.tensor([stops] if isinstance(stops, int) else stops or [])
    torch.manual_seed(seed)
    for prompt in prompts:
        text = prompt
        if tokenizer.chat_template:
            turn = [{"role": "user", "content": prompt}]
            text = str(
                tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
            )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        if not ids.numel():
            raise ValueError(f"{folder}: its tokenizer makes no tokens of {prompt!r}")
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0,
            top_p=1.0, num_return_sequences=samples, max_new_tokens=tokens,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        answers = output.sequences[:, ids.shape[1] :]
        ended = torch.isin(answers, stops).cumsum(dim=1)
        # including the token that ends it
        written = (ended - torch.isin(answers, stops).long()) == 0
        yield torch.stack(output.logits, dim=1)[written]
