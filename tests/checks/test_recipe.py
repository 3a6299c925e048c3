"""Checks across fields: every sentence once, and nothing is written."""

import json
import re
from pathlib import Path

import pytest

from aent.checks.recipe import check
from aent.recipe.folder import run_folder
from aent.recipe.load import load
from aent.runtime.environment import data_path
from models import folders

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
HERE = [p for p in RECIPES if load(p).model.bundled]  # the others: test_paper.py
CONFIG = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1540,
    "num_hidden_layers": 30,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}
BASE = """
name: x
model: {path: MODEL}
controller: {kind: band, initial: .1, low: 1, high: 2, step_size: .1, min: 0, max: 1}
rollout: {max_prompt_tokens: 256}
run_dir: RUN
"""


@pytest.fixture
def recipe(tmp_path):
    """Builds a recipe over a model folder (12 heads, 6 groups, 30 layers) with overrides."""
    model = tmp_path / "model"
    folders.write(model, CONFIG)
    text = BASE.replace("MODEL", str(model)).replace("RUN", str(tmp_path / "run"))
    (tmp_path / "r.yaml").write_text(text)
    return lambda *overrides: load(tmp_path / "r.yaml", overrides)


def test_a_sound_recipe_has_no_faults(recipe, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert check(recipe()) == []
    assert check(recipe("trainer.tensor_parallel=2", "trainer.sequence_parallel=true")) == []
    # a clamped entropy that is measured only has a set, too
    assert check(recipe("entropy={measure: full, top_k: 5}", "controller.measure=clamped")) == []
    assert check(recipe("controller={kind: log_pi, initial: .1, low: 1, high: 2}")) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_shared_prompts_need_torch_attention(recipe, tmp_path, monkeypatch):
    sharing = recipe("trainer.share_prompts=true")
    assert check(sharing) == []
    (tmp_path / "packages/transformer_engine").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    assert check(recipe()) == check(sharing, machine=False) == []
    (fault,) = check(sharing)
    assert fault == (
        "trainer.share_prompts works with torch's attention only, and Transformer Engine is "
        "installed here"
    )


LINES = re.findall(
    r"`((?:algorithm|rollout|entropy_controls): [{\[].*?[}\]])`",
    (DOCS / "algorithms.md").read_text(),
)


@pytest.mark.parametrize("line", LINES)
def test_every_line_of_the_documentation_is_sound(recipe, line):
    section, value = line.split(": ", 1)
    needed = ["trainer.mini_batches=2", "rollout.max_prompt_tokens=256"]
    if "advantage_kl" in line:
        needed.append("algorithm.kl_coefficient=0.05")
    if "forked_rollouts" in line:
        needed.append("rollout.samples_per_prompt=60")
    if "entropy_smoothing" in line:
        needed.append("entropy.measure=full")
    loaded = recipe(f"{section}={value}", *needed)
    assert check(loaded, machine=False) == []
    assert getattr(loaded, section) != getattr(recipe(), section) or "ppo_clip" in line


FAULTS = [
    (
        ["model={}"],
        "exactly one of model.path and model.bundled is needed: neither is given",
    ),
    (
        ["model.bundled=tiny-qwen2"],
        "exactly one of model.path and model.bundled is needed: both are given",
    ),
    (["model.path=/no/where"], "model.path: no folder /no/where"),
    (["model.tokenizer_path=/no"], "model.tokenizer_path: no file or folder /no"),
    (
        ["task.size=7", "rollout.prompts_per_step=8"],
        "rollout.prompts_per_step=8, but the task has 7 training questions",
    ),
    (
        ["task.name=chain_sun"],
        "task.name: reasoning-gym has no data set 'chain_sun', did you mean 'chain_sum'?",
    ),
    (
        ["trainer.tensor_parallel=4"],
        "trainer.tensor_parallel=4 does not divide the model's 6 key-value groups",
    ),
    (
        ["trainer.tensor_parallel=3"],
        "trainer.tensor_parallel=3 does not divide the model's 1540 feed-forward columns",
    ),
    (
        ["trainer.pipeline_parallel=31"],
        "trainer.pipeline_parallel=31 is more than the model's 30 layers",
    ),
    (
        ["trainer.sequence_parallel=true"],
        "trainer.sequence_parallel needs trainer.tensor_parallel above 1",
    ),
    (
        ["rollout.engine.tensor_parallel=5"],
        "rollout.engine.tensor_parallel=5 does not divide the model's 12 attention heads",
    ),
    (
        ["rollout.engine.options={tensor-parallel-size: 2}"],
        "rollout.engine.options.tensor-parallel-size is set by the run itself: give "
        "rollout.engine.tensor_parallel",
    ),
    (
        ["rollout.engine.options={no_enable_scale_out: true}"],
        "rollout.engine.options.no_enable_scale_out is set by the run itself",
    ),
    (
        ["rollout.engine.options={api-key: x}"],
        "rollout.engine.options.api-key would change what the run says of its engines itself",
    ),
    (
        ["rollout.token_file=/nowhere/token"],
        "rollout.token_file is for engines of rollout.urls, and there are none",
    ),
    (
        ["trainer.phase_timeout_s=900", "trainer.collective_timeout_s=900"],
        "trainer.phase_timeout_s=900 must be above trainer.collective_timeout_s = 900",
    ),
    (
        ["trainer.phase_timeout_s=650", "rollout.engine.start_timeout_s=400"],
        "trainer.phase_timeout_s=650 must be above rollout.progress_timeout_s + "
        "rollout.engine.start_timeout_s = 700",
    ),
    (
        ["entropy.top_k=1001"],
        "entropy.top_k=1001 is more than the model's vocabulary of 1000",
    ),
    (
        ["rollout.max_prompt_tokens=465"],
        "rollout.max_prompt_tokens + rollout.max_response_tokens = 513 is more than the model's "
        "512 positions",
    ),
    (
        ["trainer.mini_batches=3"],
        "trainer.mini_batches=3 does not divide rollout.prompts_per_step=8 (a prompt's samples "
        "stay in one mini-batch)",
    ),
    (
        ["trainer.mini_batches=8", "trainer.data_parallel=9"],
        "trainer.data_parallel=9 is more than the 8 samples of a mini-batch: some ranks would "
        "have no work",
    ),
    (
        ["algorithm.policy_loss=cispo"],
        "algorithm.policy_loss=cispo changes nothing with trainer.mini_batches=1: the policy that "
        "learns is the one that sampled, and every ratio is 1",
    ),
    (
        ["algorithm.clip_high=.28"],
        "algorithm.clip_high=0.28 changes nothing with trainer.mini_batches=1: every ratio is 1",
    ),
    (
        ["algorithm.policy_loss=gspo", "trainer.mini_batches=2"],
        "algorithm.policy_loss=gspo needs algorithm.aggregation=sequence_mean: token_mean would "
        "weigh a response's one ratio by its length",
    ),
    (
        ["algorithm.policy_loss=cispo", "trainer.mini_batches=2", "algorithm.dual_clip=3"],
        "algorithm.dual_clip has no meaning with algorithm.policy_loss=cispo: no token loses its "
        "gradient",
    ),
    (
        ["algorithm.overlong_buffer=49"],
        "algorithm.overlong_buffer=49 is more than rollout.max_response_tokens=48",
    ),
    (
        ["rollout.replacement_prompts=4", "algorithm.advantage=reinforce_plus_plus"],
        "rollout.replacement_prompts has no meaning with algorithm.advantage=reinforce_plus_plus: "
        "a group of equal rewards teaches too",
    ),
    (
        ["rollout.replacement_prompts=4", "task.size=8"],
        "rollout.replacement_prompts=4: task.size=8 leaves no question beside "
        "rollout.prompts_per_step=8",
    ),
    (
        ["entropy_controls=[{kind: clip_cov}, {kind: clip_cov}]"],
        "entropy_controls[1] (clip_cov) stands there twice",
    ),
    (
        ["entropy_controls=[{kind: clip_cov, low: 5}]"],
        "entropy_controls[0] (clip_cov): low=5 is not below high=5",
    ),
    (
        ["entropy_controls=[{kind: kl_cov}]"],
        "entropy_controls[0] (kl_cov) changes nothing with trainer.mini_batches=1: the policy that "
        "learns is the old one",
    ),
    (
        ["entropy_controls=[{kind: advantage_kl}]"],
        "entropy_controls[0] (advantage_kl) needs a reference: algorithm.kl_coefficient must be "
        "above 0",
    ),
    (
        [
            "entropy_controls=[{kind: response_entropy_advantage}]",
            "rollout.samples_per_prompt=1",
            "algorithm.advantage=reinforce_plus_plus",
        ],
        "entropy_controls[0] (response_entropy_advantage) compares responses: "
        "rollout.samples_per_prompt must be 2 or more",
    ),
    (
        ["entropy_controls=[{kind: advantage_clip, bound: 1.5}]", "rollout.samples_per_prompt=4"],
        "entropy_controls[0] (advantage_clip) changes nothing: bound=1.5, and no advantage among "
        "4 responses is above 1.5",
    ),
    (
        ["entropy_controls=[{kind: entropy_smoothing}]"],
        "entropy_controls[0] (entropy_smoothing) compares the bonus with entropies over the whole "
        "vocabulary: entropy.measure must be full",
    ),
    (
        [
            "entropy_controls=[{kind: entropy_smoothing, low: 2}]",
            "entropy.measure=full",
        ],
        "entropy_controls[0] (entropy_smoothing): low=2 is not below high=2",
    ),
    (
        ["entropy_controls=[{kind: difficulty_coefficient}]", "controller={initial: 0}"],
        "entropy_controls[0] (difficulty_coefficient) shapes the entropy bonus, which is off: "
        "controller.initial must be above 0 with controller.kind=constant",
    ),
    (
        ["entropy_controls=[{kind: rollout_budget, high: 6}]"],
        "entropy_controls[0] (rollout_budget): rollout.samples_per_prompt=8 is not between low=4 "
        "and high=6",
    ),
    (
        ["entropy_controls=[{kind: rollout_budget, low: 1}]"],
        "entropy_controls[0] (rollout_budget): low=1 leaves algorithm.advantage=group_normalized "
        "nothing to compare",
    ),
    (
        [
            "entropy_controls=[{kind: reroll, target: 1}]",
            "algorithm.importance=truncated_token",
        ],
        "entropy_controls[0] (reroll) learns from another temperature's responses, which "
        "algorithm.importance=truncated_token would correct away",
    ),
    (
        ["entropy_controls=[{kind: reroll, target: 1, high: .9}]"],
        "entropy_controls[0] (reroll): rollout.temperature=1 is not between low=0.8 and high=0.9",
    ),
    (
        ["entropy_controls=[{kind: reroll, target: 1}, {kind: temperature_schedule}]"],
        "entropy_controls[0] (reroll) and temperature_schedule would both set temperatures: give "
        "one of them",
    ),
    (
        [
            "entropy_controls=[{kind: majority_reward}]",
            "rollout.samples_per_prompt=1",
            "algorithm.advantage=reinforce_plus_plus",
        ],
        "entropy_controls[0] (majority_reward) compares responses: rollout.samples_per_prompt must "
        "be 2 or more",
    ),
    (
        ["entropy_controls=[{kind: forked_rollouts}]"],
        "entropy_controls[0] (forked_rollouts) makes trees of 5 responses, which do not divide "
        "rollout.samples_per_prompt=8",
    ),
    (
        [
            "entropy_controls=[{kind: forked_rollouts, forks: 1, branches: 3}, "
            "{kind: rollout_budget}]"
        ],
        "entropy_controls[0] (forked_rollouts) needs whole trees, which rollout_budget would cut: "
        "give one of them",
    ),
    (
        ["rollout.samples_per_prompt=1"],
        "rollout.samples_per_prompt=1 leaves algorithm.advantage=group_normalized nothing to "
        "compare: every advantage would be 0; it must be 2 or more",
    ),
    (
        ["trainer.micro_batch_tokens=303"],
        "trainer.micro_batch_tokens=303 is less than rollout.max_prompt_tokens + "
        "rollout.max_response_tokens = 304",
    ),
    (
        ["entropy={drop_fraction: .3, top_k: 5}"],
        "entropy.drop_fraction and entropy.top_k are both given: give one of them",
    ),
    (
        ["entropy={measure: full, top_k: 5}", "controller.measure=full"],
        "entropy.top_k has no meaning with entropy.measure=full",
    ),
    (
        ["controller={initial: 0, step_size: .1}"],
        "controller.step_size has no meaning with controller.kind=constant",
    ),
    (
        ["controller={initial: 0, min: 0}"],
        "controller.min has no meaning with controller.kind=constant",
    ),
    (
        ["controller={initial: 0, warmup_steps: 1}"],
        "controller.warmup_steps has no meaning with controller.kind=constant",
    ),
    (
        ["controller={kind: band, initial: 0, low: 1, step_size: 1, min: 0}"],
        "controller.kind=band needs controller.high, controller.max",
    ),
    (
        [
            "controller={kind: automatic_band, initial: 0, high_fraction: .5, step_size: 1, "
            "min: 0, max: 1}"
        ],
        "controller.kind=automatic_band needs controller.low_fraction, controller.reference_steps",
    ),
    (
        ["controller={kind: proportional_integral, initial: 0, min: 0, max: 1}"],
        "controller.kind=proportional_integral needs controller.target, "
        "controller.proportional_gain, controller.integral_gain",
    ),
    (
        ["controller={kind: dual, initial: .1, target: 1, step_size: 1, min: 0, max: 1}"],
        "controller.min=0 must be above 0 with controller.kind=dual, which moves a logarithm",
    ),
    (
        ["controller={kind: target, initial: 0, target: 1, step_size: 1, min: 0, max: 1, low: 1}"],
        "controller.low has no meaning with controller.kind=target",
    ),
    (["controller.low=3"], "controller.low=3 is above controller.high=2"),
    (["controller.min=2"], "controller.min=2 is above controller.max=1"),
    (["controller.min=.5"], "controller.initial=0.1 is below controller.min=0.5"),
    (["controller.max=.01"], "controller.initial=0.1 is above controller.max=0.01"),
    (
        ["rollout.engines=0"],
        "either rollout.engines above 0 or rollout.urls (with engines: 0): neither is given",
    ),
    (
        ["rollout.urls=['http://a:1']"],
        "either rollout.engines above 0 or rollout.urls (with engines: 0): both are given",
    ),
    (
        ["rollout.engines=0", "rollout.urls=['a:1']"],
        "rollout.urls: a:1 is no http address (http://HOST:PORT)",
    ),
    *(
        (
            ["rollout.engines=0", f"rollout.urls=['{url}']"],
            f"rollout.urls: {url} is no http address (http://HOST:PORT)",
        )
        for url in ("http://[a:1", "http://a:b", "http://a:99999")
    ),
    (
        ["rollout.engines=0", "rollout.urls=['http://u:hunter2@a:1']"],
        "rollout.urls: http://u:***@a:1 has a user or a password, which recipe.yaml and MLflow "
        "would show: rollout.token_file is for secrets",
    ),
    (
        ["rollout.engine.options={hf_token: hunter2}"],
        "rollout.engine.options.hf_token is a secret, which recipe.yaml and MLflow would show",
    ),
    (
        ["rollout.engines=0", "rollout.urls=['http://a:8000x']"],
        "rollout.urls: http://a:8000x is no http address (http://HOST:PORT)",
    ),
    (
        ["rollout.engines=0", "rollout.urls=['http://[::1']"],
        "rollout.urls: http://[::1 is no http address (http://HOST:PORT)",
    ),
    (
        ["rollout.engines=0", "rollout.urls=['http://a:1', 'http://a:1/']"],
        "rollout.urls names an engine twice",
    ),
    (
        ["rollout.engines=2", "rollout.engine.port=65535"],
        "rollout.engine.port=65535 leaves no ports for rollout.engines=2",
    ),
    (
        ["evaluation.every=2", "task.heldout=0"],
        "evaluation.every=2 has nothing to score with task.heldout=0",
    ),
    (
        ["evaluation.samples=2"],
        "evaluation.samples=2 with evaluation.temperature=0 (greedy) would score the same answer "
        "again and again",
    ),
    (
        ["trainer.optimizer.betas=[.9, 1]"],
        "trainer.optimizer.betas[1] must be in [0, 1), got 1",
    ),
    (
        ["trainer.schedule.min_lr=1"],
        "trainer.schedule.min_lr=1 is above trainer.optimizer.lr=1e-06",
    ),
    (
        ["steps=2", "trainer.mini_batches=2", "trainer.schedule.warmup_steps=4"],
        "trainer.schedule.warmup_steps=4 leaves nothing of the run's 4 optimizer steps",
    ),
]


@pytest.mark.parametrize(("overrides", "sentence"), FAULTS)
def test_fault_is_one_sentence_naming_the_field(recipe, overrides, sentence):
    assert check(recipe(*overrides)) == [sentence]


def test_faults_of_the_model_folder(recipe, tmp_path):
    config = tmp_path / "model" / "config.json"
    (tmp_path / "model" / "model.safetensors").unlink()
    assert check(recipe()) == [f"model.path: {tmp_path}/model has no weights (*.safetensors)"]
    config.write_text(json.dumps(CONFIG | {"num_hidden_layers": "30"}))
    assert check(recipe()) == [
        f"model.path: {config}: num_hidden_layers must be a positive whole number, got '30'"
    ]
    config.write_text("{")
    (fault,) = check(recipe())
    assert re.match(rf"model\.path: {config} is not valid JSON: ", fault)
    config.unlink()
    assert check(recipe()) == [
        f"model.path: {tmp_path}/model is no Hugging Face folder: it has no config.json"
    ]
    assert check(recipe(), machine=False) == []


def test_a_data_set_that_cannot_be_made_is_refused_by_its_field(recipe):
    for config in ("{min_term: 1}", "{min_terms: 0}", "{min_terms: 5, max_terms: 2}"):
        wrong = recipe(f"task.config={config}")
        (fault,) = check(wrong)
        assert fault.startswith("task.config: ")
        assert check(wrong, machine=False) == []


def test_files_and_folders_may_begin_with_a_tilde(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "questions.jsonl").write_text(
        "".join(f'{{"question": "{n}?", "answer": "{n}"}}\n' for n in range(4))
    )
    at_home = [
        "task={kind: file, path: ~/questions.jsonl, heldout: 2, verifier: last_number}",
        "model.path=~/model", "model.tokenizer_path=~/model", "run_dir=~/run",
    ]  # fmt: skip
    assert check(recipe(*at_home, "rollout.prompts_per_step=2")) == []
    assert run_folder(recipe(*at_home)) == tmp_path / "run"
    (fault,) = check(recipe(*at_home, "rollout.prompts_per_step=3"))  # two of four are held out
    assert fault.startswith("rollout.prompts_per_step=3")
    assert " 2 " in fault


def test_a_run_may_be_resumed_in_its_folder(recipe, tmp_path):
    run = tmp_path / "run"
    assert check(recipe("resume=auto")) == []
    assert check(recipe("resume=required")) == [f"run_dir: no folder {run} to resume from"]
    run.mkdir()
    (run / "recipe.yaml").write_text("")
    assert check(recipe("resume=auto")) == check(recipe("resume=required")) == []
    assert check(recipe()) == [
        f"run_dir: the folder {run} is not empty (--resume goes on with the run in it)"
    ]


def test_faults_of_the_run_folder(recipe, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert check(recipe()) == []
    (run / "a").write_text("")
    assert check(recipe()) == [f"run_dir: the folder {run} is not empty"]
    assert check(recipe(), machine=False) == []
    assert check(recipe("resume=auto")) == check(recipe())  # whatever it is, it is no run
    assert check(recipe(f"run_dir={run}/a")) == [f"run_dir: {run}/a is a file, not a folder"]


def test_several_faults_are_all_reported(recipe):
    faults = check(recipe("trainer.tensor_parallel=5", "controller.low=3", "model.path=/no"))
    assert len(faults) == 2
    smollm2 = ("model={bundled: smollm2-135m-instruct}", "trainer.tensor_parallel=2")
    assert check(recipe(*smollm2, "controller.low=3")) == [
        "controller.low=3 is above controller.high=2",
        "trainer.tensor_parallel=2 does not divide the model's 9 attention heads",
        "trainer.tensor_parallel=2 does not divide the model's 3 key-value groups",
    ]


@pytest.mark.parametrize("path", HERE, ids=lambda p: p.stem)
def test_shipped_recipes_pass(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the default run folder is empty here
    assert check(load(path)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AENT_CACHE", str(tmp_path / "file" / "cache"))
    recipe = load(
        data_path("recipes/cpu/tiny.yaml"), [f"run_dir={tmp_path}/file/run", "task.size=8"]
    )
    faults = check(recipe)
    assert any(f.startswith("run_dir: ") and f"{tmp_path}/file" in f for f in faults)
    assert any(f.startswith("model.bundled: ") and "AENT_CACHE" in f for f in faults)
    monkeypatch.setenv("AENT_CACHE", str(tmp_path / "cache"))
    assert check(recipe.model_copy(update={"run_dir": str(tmp_path / "a" / "b")})) == []
