"""``aent lab clamp``: its sums against the trainer's statistics and autograd, and the command."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from aent.cli.main import app
from aent.entropy import nucleus_entropy, token_statistics
from aent.lab import policies
from aent.lab.clamp import Differences, Rule, differences
from aent.lab.clamp_report import binned, where
from aent.models.model_source import resolve
from aent.recipe.schema import ModelSection
from wording import assert_names, naming

RULES = (
    Rule("drop_fraction", 0.33), Rule("drop_fraction", 0.9), Rule("top_k", 7), Rule("top_p", 0.8),
    Rule("top_k", 10_000),
)  # fmt: skip


def plain(logits: Tensor, temperature: float, rule: Rule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Full and clamped entropy, their gradients by the tempered logits; token by token."""
    found = []
    for row in logits:
        z = (row / temperature).requires_grad_()
        target = torch.zeros(1, dtype=torch.int64)
        sets = {"drop_fraction": None}
        if rule.kind == "drop_fraction":
            sets = {"drop_fraction": rule.value}
        elif rule.kind == "top_k":
            sets = {"drop_fraction": None, "top_k": min(int(rule.value), len(row))}
        statistics = token_statistics(z[None], target, **sets)
        full, clamped = statistics.entropy, statistics.clamped_entropy
        if rule.kind == "top_p":
            clamped = nucleus_entropy(z[None], rule.value, top_k=len(row))
        gradients = [
            torch.autograd.grad(each.sum(), z, retain_graph=True)[0] for each in (full, clamped)
        ]
        found.append([full.squeeze().detach(), clamped.squeeze().detach(), *gradients])
    return tuple(map(torch.stack, zip(*found)))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_running_sums_are_the_statistics_and_their_gradients(rule: Rule) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 300, dtype=torch.float64, generator=random)
    logits *= torch.tensor([0.1, 1, 2, 4, 8, 16])[:, None]
    temperatures = (0.7, 3.0)
    found = differences(logits, temperatures, [rule])
    for i, temperature in enumerate(temperatures):
        full, clamped, gradient, clamped_gradient = plain(logits, temperature, rule)
        rows = slice(6 * i, 6 * (i + 1))
        for ours, theirs in (
            (found.entropy, full),
            (found.clamped[:, 0], clamped),
            (found.gradient, gradient.norm(dim=-1)),
            (found.gradient_difference[:, 0], (gradient - clamped_gradient).norm(dim=-1)),
        ):
            # where nothing is left out the difference is the rounding of sums of squares
            torch.testing.assert_close(ours[rows], theirs, rtol=1e-6, atol=1e-7)


def test_bins_weigh_tokens_as_a_mean_over_tokens_does() -> None:
    many = 20
    entropy = torch.tensor([1.0, 1.4] * (many // 2) + [3.0], dtype=torch.float64)
    clamped = torch.tensor([1.0, 1.0] * (many // 2) + [0.0], dtype=torch.float64)[:, None]
    ones = torch.ones(many + 1, dtype=torch.float64)
    found = Differences(entropy, ones[:, None], clamped, 2 * ones, ones[:, None])
    bins = binned(found, [0.0, 1.0, 2.0, 4.0])
    assert bins.tokens.tolist() == [0, many, 1]
    assert bins.entropy[1].item() == pytest.approx(0.4 / 2.4)
    assert bins.gradient[1].item() == pytest.approx(0.5)
    assert bins.entropy[[0, 2]].isnan().all()  # too few to say anything


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        ([0, 0, 0.009, 0], "nowhere"),
        ([math.nan, 0.02, 0.01, 1], "everywhere"),
        ([0, 0, math.nan, 0.02], "from 3"),
        ([0.02, 0.02, 0, 0], "below 2"),
        ([0.02, 0, 0.03, 0], "below 1, 2 to 3"),
        ([0.02, 0, 0.03, math.nan], "below 1, from 2"),
    ],
)
def test_where_a_difference_is_large_in_words(difference: list[float], words: str) -> None:
    assert where([0, 1, 2, 3, 4], torch.tensor(difference)) == words


def test_a_run_is_its_policy_and_its_heldout_questions(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(
        "name: run\nmodel: {bundled: tiny-qwen2}\ncontroller: {initial: 0}\n"
        "task: {kind: file, path: questions.jsonl, heldout: 2, graders: [{kind: last_number}]}\n"
    )
    questions = [f'{{"question": "What is {i} + {i}?", "answer": "{2 * i}"}}' for i in range(9)]
    (tmp_path / "questions.jsonl").write_text("\n".join(questions))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match=naming(run, "policy/")):
            policies.find(str(run), 8)
        (run / "policy").symlink_to(resolve(ModelSection(bundled="tiny-qwen2")))
        folder, prompts = policies.find(str(run), 8)
    assert folder == run / "policy"
    assert len(set(prompts)) == 2
    assert all(prompt.startswith("What is ") for prompt in prompts)


@pytest.mark.slow  # imports transformers
def test_the_command_on_a_small_model(tmp_path: Path) -> None:
    plot = tmp_path / "clamp.png"
    result = CliRunner().invoke(app, ["lab", "clamp", "tiny-qwen2", "--plot", str(plot)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert any(line.startswith("| top_k 1000 | ") and "nowhere" in line for line in lines)
    assert "-0.00" not in result.stdout  # more than the vocabulary: no difference
    assert plot.read_bytes().startswith(b"\x89PNG")


def refusal(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["lab", "clamp", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def test_refusals(tmp_path: Path) -> None:
    names = ("MODEL", "nothing", "smollm2-135m-instruct", "tiny-qwen2")
    assert_names(refusal("nothing"), *names)
    assert_names(refusal("tiny-qwen2", "--plot", tmp_path), tmp_path, "Is a directory")


@pytest.mark.slow  # imports transformers
def test_folders_that_are_no_models_are_refused(tmp_path: Path) -> None:
    model = shutil.copytree(resolve(ModelSection(bundled="tiny-qwen2")), tmp_path / "model")
    for path in model.glob("tokenizer*"):
        path.unlink()
    assert_names(refusal(model), model, "tokenizer")
    (model / "model.safetensors").write_text("garbage")
    broken = refusal(model)
    assert_names(broken, model)
    assert "tokenizer" not in broken
