"""TRL's GRPO trainer on this machine: steps of 32 samples of 32 new tokens.

Run by benchmarks/side_by_side.py in its own environment (aent does not depend on TRL):
    python trl_step.py MODEL_FOLDER STEPS FILE
When a step ends, FILE gets a line: its number of tokens, prompts included.
"""

import sys
import tempfile

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class StepEnds(TrainerCallback):
    """Records each step when it ends."""

    def __init__(self, path: str, tokens: list[int]) -> None:
        self.path, self.tokens = path, tokens

    def on_step_end(self, args, state, control, **kwargs) -> None:
        with open(self.path, "a") as file:
            file.write(f"{self.tokens[-1]}\n")


def main(model: str, steps: int, path: str) -> None:
    """Train ``steps`` steps of 4 prompts x 8 samples, every response 32 tokens long."""
    prompts = [
        f"<|im_start|>user\nHow many prime numbers are there between {a} and {a + 97 * b} "
        f"(inclusive) ?<|im_end|>\n<|im_start|>assistant\n"
        for a in range(11, 19)
        for b in range(1, 9)
    ]
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=steps,
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=32,
        learning_rate=2e-5,
        lr_scheduler_type="constant",
        beta=0.0,
        temperature=1.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        generation_kwargs={"min_new_tokens": 32},  # every response as long as the limit
        model_init_kwargs={"dtype": "float32"},
    )
    tokens: list[int] = []
    tokenizer = AutoTokenizer.from_pretrained(model)

    def reward(prompts, completions, completion_ids, **kwargs):
        tokens.append(
            sum(map(len, completion_ids)) + sum(len(tokenizer(p).input_ids) for p in prompts)
        )
        return [float(len(c) % 2) for c in completions]

    trainer = GRPOTrainer(
        model=model,
        args=config,
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": p} for p in prompts]),
        processing_class=tokenizer,
        callbacks=[StepEnds(path, tokens)],
    )
    trainer.train()


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
