"""One case of the kernels in its own process: ``DTYPE TOKENS VOCABULARY``."""

from __future__ import annotations

import torch

from aent.entropy import kernels
from gpu_check import numbers, speed
from gpu_check.section import Section, of_command_line

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main(section: Section, dtype: str, tokens: str, vocab: str) -> None:
    size = int(tokens), int(vocab)
    generator = torch.Generator(section.device).manual_seed(0)
    logits = torch.empty(size, dtype=DTYPES[dtype], device=section.device)
    for rows in logits.split(512):  # so that no fp32 copy of all is held
        drawn = torch.randn(rows.shape, generator=generator, device=section.device)
        rows.copy_(2.5 * drawn)
    targets = torch.randint(0, size[1], size[:1], generator=generator, device=section.device)
    with kernels.using("triton"):  # never torch operations in its place
        numbers.check(section, logits, targets)
    speed.measure(section, logits, targets)


if __name__ == "__main__":
    section, words = of_command_line()
    main(section, *words)
