"""Seconds per step of TRL's GRPO trainer on this machine: 32 samples of 32 new tokens.

Run by benchmarks/side_by_side.sh in an environment of its own (TRL is no dependency of aent):
    python trl_step.py MODEL_FOLDER STEPS
Prints one JSON line: {"seconds_per_step": [...], "tokens_per_step": [...]}, first step left out.
"""

import json
import sys
import time

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class StepTimes(TrainerCallback):
    """Wall time between the ends of steps, and tokens seen."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.ends.append(time.monotonic())


def main(model: str, steps: int) -> None:
    """Train ``steps`` steps of 4 prompts x 8 samples, every response 32 tokens long."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    questions = [f"State the final answer to the following arithmetic problem: {a} + {b} ="
                 for a in range(1, 9) for b in range(1, 9)]  # fmt: skip
    rows = [{"prompt": [{"role": "user", "content": q}]} for q in questions]
    times = StepTimes()
    config = GRPOConfig(
        output_dir="/tmp/trl-step", max_steps=steps, per_device_train_batch_size=32,
        num_generations=8, max_completion_length=32, learning_rate=2e-5, beta=0.0,
        temperature=1.0, bf16=False, use_cpu=True, report_to=[], save_strategy="no",
        logging_steps=1, gradient_checkpointing=False, lr_scheduler_type="constant",
        # every response as long as the limit, so that both sides do the same work
        generation_kwargs={"min_new_tokens": 32},
        model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    lengths: list[int] = []

    def reward(completions, completion_ids, **kwargs):
        lengths.append(sum(len(ids) for ids in completion_ids))
        return [float(len(c[0]["content"]) % 2) for c in completions]

    trainer = GRPOTrainer(
        model=model, args=config, reward_funcs=reward, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[times],
    )  # fmt: skip
    trainer.train()
    seconds = [b - a for a, b in zip(times.ends, times.ends[1:])]
    print(json.dumps({"seconds_per_step": seconds, "response_tokens": lengths[1:]}))


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(sys.argv[1], int(sys.argv[2]))
