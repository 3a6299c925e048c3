"""The paper's runs, and the scale recipes: their values, arms, layouts and memory."""

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from aent import tasks
from aent.algorithm.advantages import group_advantages
from aent.checks.recipe import check
from aent.cli.main import app
from aent.estimate import card
from aent.layout.nodes import Layout, layout
from aent.models.bundled import tiny_qwen2
from aent.models.published import PUBLISHED
from aent.recipe.load import flatten, load
from wording import assert_names

RECIPES = Path(__file__).parents[2] / "recipes"
SETTINGS = ("math", "openr1", "gsm8k", "deepmath")
ARMS = ("aent", "grpo", "full", "full-controlled")
REMOTE = [RECIPES / "paper" / f"{s}-{arm}.yaml" for s in SETTINGS for arm in ARMS]
REMOTE += [RECIPES / "paper" / f"gsm8k-aent-{which}.yaml" for which in ("band", "colocated")]
SCALE = sorted((RECIPES / "scale").glob("*.yaml"))
CARD = 79 * 2**30  # bytes of a card of 80 GB
TWO_NODES = ("cluster.nodes=2", "trainer.data_parallel=8", "rollout.engines=8")
# trainer and engines on the same eight GPUs
COLOCATED = ("rollout.placement=colocated", "rollout.max_staleness=0", "trainer.data_parallel=8",
             "rollout.engines=8", "rollout.engine.gpu_memory_utilization=.8")  # fmt: skip
COLOCATED_7B = (*COLOCATED, "trainer.data_parallel=4", "rollout.engines=4")
TWO_NODES_7B = ("cluster.nodes=2", "trainer.data_parallel=4", "rollout.engines=4")

# arXiv 2509.03493, of its first two settings; of the third, the authors' own file
# (recipe/AEnt/configs/gsm8k_aent_grpo.yaml of AReaL at d19d9ebc); None: not reported
REPORTED = {
    "rollout.prompts_per_step": (512, 256, 128),
    "rollout.samples_per_prompt": (16, 8, 8),
    "rollout.max_prompt_tokens": (1024, 1024, 1024),
    "rollout.max_response_tokens": (3072, 7168, 1024),
    "rollout.temperature": (1.0, 1.0, 1.0),
    "algorithm.clip_low": (0.2, 0.2, None),
    "algorithm.clip_high": (0.2, 0.2, None),
    "algorithm.dual_clip": (3.0, 3.0, "none"),
    "algorithm.importance_cap": (None, None, 5.0),
    "algorithm.kl_coefficient": (0.0, 0.0, None),
    "algorithm.aggregation": ("token_mean", "token_mean", "token_mean"),
    "entropy.measure": ("clamped", "clamped", "clamped"),
    "entropy.drop_fraction": (0.33, 0.25, 0.4),
    "controller.kind": ("band", "band", "constant"),
    "controller.initial": (0.002, 0.0003, 2e-4),
    "controller.low": (0.15, 0.35, None),
    "controller.high": (0.24, 0.62, None),
    "controller.step_size": (0.002, 1e-4, None),
    "controller.min": (6e-4, 4e-5, None),
    "controller.max": (9e-3, 1e-3, None),
    "controller.warmup_steps": (30, 156, None),
    "trainer.mini_batches": (4, 4, 1),
    "trainer.optimizer.lr": (2e-6, 1e-6, 1.5e-5),
    "trainer.optimizer.weight_decay": (0.01, 0.01, 0.0),
    "trainer.optimizer.clip_grad": (1.0, 1.0, 1.0),
    "trainer.schedule.kind": ("constant", "constant", "constant"),
    "evaluation.samples": (4, 4, None),
    "evaluation.temperature": (0.6, 0.6, 0.6),
    "evaluation.top_p": (0.95, 0.95, None),
    "evaluation.top_k": (20, 0, None),
}


def recipe(name, *overrides):
    return load(RECIPES / "paper" / f"{name}.yaml", overrides)


@pytest.mark.parametrize("place", range(3), ids=SETTINGS[:3])
def test_values_are_those_of_the_paper(place):
    found = recipe(f"{SETTINGS[place]}-aent")
    flat = flatten(found)
    reported = {k: v[place] for k, v in REPORTED.items() if v[place] is not None}
    said = {k: "none" if flat[k] is None else flat[k] for k in reported}
    assert said == reported
    mini_batch = found.rollout.prompts_per_step // found.trainer.mini_batches
    assert mini_batch == (128, 64, 128)[place]


def test_the_bands_of_the_third_setting_are_those_that_its_file_switches_off():
    """Its first update moves at step 30, counted from 0: warmup_steps is 29 there."""
    band = recipe("gsm8k-aent-band").controller
    assert (band.kind, band.initial, band.low, band.high) == ("band", 2e-4, 0.05, 0.23)
    assert (band.step_size, band.min, band.max, band.warmup_steps) == (0.001, 1e-5, 0.003, 30)
    assert recipe("gsm8k-full-controlled").controller == band
    changed = flatten(recipe("gsm8k-aent-band")).items() ^ flatten(recipe("gsm8k-aent")).items()
    assert {key.partition(".")[0] for key, _ in changed} == {"name", "controller"}


def test_a_colocated_layout_changes_where_things_run_and_nothing_else():
    shared = recipe("gsm8k-aent-colocated")
    assert layout(shared, 1, 8) == Layout(1, 8, 1, 8, 0)
    assert shared == recipe("gsm8k-aent", "name=gsm8k-aent-colocated", *COLOCATED)


@pytest.mark.parametrize("setting", SETTINGS)
def test_arms_differ_in_their_entropy_bonus_alone(setting):
    whole = flatten(recipe(f"{setting}-aent"))
    constant = setting == "gsm8k"
    for arm, sections in (
        ("grpo", {"controller"}),
        ("full", {"entropy"} if constant else {"controller", "entropy"}),
        ("full-controlled", {"controller", "entropy"} if constant else {"entropy"}),
    ):
        flat = flatten(recipe(f"{setting}-{arm}"))
        assert flat["name"] == f"{setting}-{arm}"
        changed = {k for k in flat.keys() | whole.keys() if flat.get(k) != whole.get(k)}
        assert {k.partition(".")[0] for k in changed} - {"name"} == sections
    assert recipe(f"{setting}-grpo").controller.initial == 0
    assert recipe(f"{setting}-full").entropy.measure == "full"
    assert recipe(f"{setting}-full").controller.kind == "constant"


@pytest.mark.parametrize("path", REMOTE + SCALE, ids=lambda p: p.stem)
def test_fits_its_nodes_and_their_gpus(path):
    large = path.stem.startswith("deepmath")
    variants = [()]
    if path in REMOTE:
        variants.append(COLOCATED_7B if large else COLOCATED)
        if not path.stem.endswith("colocated"):
            variants.append(TWO_NODES_7B if large else TWO_NODES)
    for overrides in variants:
        found = load(path, overrides)
        assert check(found, machine=False) == []
        cluster = found.cluster
        layout(found, cluster.nodes, cluster.gpus_per_node, cluster.engine_nodes)
        assert list(card.faults(found, CARD)) == []
        assert card.engine_card(found, CARD).sequences >= 32  # to be worth a GPU


def test_five_sets_with_six_seeds_are_one_array_on_one_node(tmp_path, monkeypatch):
    """They differ in the tokens on which the bonus is paid; the controller measures the same."""
    sets = sorted((RECIPES / "paper").glob("gsm8k-sets-*.yaml"))
    flat = [flatten(load(path)) for path in sets]
    assert [f["name"] for f in flat] == [path.stem for path in sets]
    for other in flat[1:]:
        changed = {
            key for key in flat[0].keys() | other.keys() if flat[0].get(key) != other.get(key)
        }
        assert {key.partition(".")[0] for key in changed} == {"name", "entropy"}
    assert flat[0]["controller.measure"] == "full"
    monkeypatch.chdir(tmp_path)
    command = ["compare", *map(str, sets), "--seeds", "6", "--slurm", "--dry-run"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    asked = re.findall(r"(?m)^#SBATCH (--\w[\w-]*=\S+)", done.output)
    assert {"--array=0-29", "--nodes=1", "--gpus-per-node=8"} <= set(asked)
    assert len([flag for flag in asked if flag.startswith("--array")]) == 1
    runs = re.findall(r"gsm8k-sets-(\w+)-seed(\d)", done.output)
    assert set(runs) == {
        (p.stem.removeprefix("gsm8k-sets-"), str(n)) for p in sets for n in range(6)
    }
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_it_cannot_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["train", "recipes/paper/math-aent.yaml", "--dry-run"])
    assert done.exit_code == 0
    (ranks,) = (line for line in done.output.splitlines() if "4 ranks" in line)
    assert_names(ranks, "tensor 1", "data 4", "pipeline 1")
    assert_names(done.output, "rank 3", "models/Qwen2.5-Math-1.5B")
    for names in (
        "model.path models/Qwen2.5-Math-1.5B",
        "task.path data/math-train.jsonl EleutherAI",
    ):
        (line,) = (line for line in done.output.splitlines() if names.split()[0] in line)
        assert_names(line, *names.split())
    unknown = ["model.path=models/mine"]
    done = CliRunner().invoke(app, ["train", "recipes/paper/math-aent.yaml", "--dry-run", *unknown])
    assert done.exit_code == 0
    assert_names(done.output, "models/mine", "layout")
    done = CliRunner().invoke(
        app, ["train", "recipes/paper/math-aent.yaml", "--dry-run", "trainer.tensor_parallel=5"]
    )
    assert done.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_read_instead_of_what_was_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models" / "Qwen2.5-Math-1.5B"
    folder.mkdir(parents=True)
    config = PUBLISHED["Qwen2.5-Math-1.5B"] | {"intermediate_size": 8961}
    (folder / "config.json").write_text(json.dumps(config))
    (fault,) = check(recipe("math-aent", "trainer.tensor_parallel=2"), machine=False)
    assert_names(fault, "trainer.tensor_parallel", 2, 8961)


def test_published_sizes_give_the_published_numbers_of_parameters():
    from aent.models.facts import model_facts
    from aent.recipe.schema import ModelSection

    for name, billions in (  # of the model cards
        ("Qwen2.5-Math-1.5B", 1.54),
        ("Qwen2.5-Math-7B", 7.61),
        ("Qwen2.5-7B-Instruct", 7.61),
        ("Qwen2.5-32B-Instruct", 32.5),
        ("Qwen2.5-72B-Instruct", 72.7),
    ):
        facts = model_facts(ModelSection(path=f"/nowhere/{name}"))
        assert facts.parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_shifted_and_scaled_rewards_have_the_same_group_normalized_advantages():
    reward = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    group = torch.arange(8) // 4
    plain = group_advantages(reward, group, True)
    assert torch.allclose(group_advantages((reward - 0.5) * 10, group, True), plain, atol=1e-5)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_smoke_recipe_keeps_the_method_and_the_proportions(setting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, smoke = recipe(f"{setting}-aent"), recipe(f"{setting}-smoke")
    assert check(smoke) == []
    for section in ("algorithm", "entropy", "controller"):
        assert getattr(smoke, section) == getattr(whole, section)
    assert smoke.trainer.optimizer == whole.trainer.optimizer
    assert smoke.trainer.mini_batches == whole.trainer.mini_batches
    assert PUBLISHED[Path(whole.model.path).name]["model_type"] == tiny_qwen2.CONFIG["model_type"]
    task = tasks.load(smoke.task, smoke.seed)
    assert (len(task.train), len(task.heldout)) == (8, 4)
    longest = max(len(q.prompt) for q in task.train + task.heldout)
    assert longest + len("<bos>user: \nassistant: ") < smoke.rollout.max_prompt_tokens
