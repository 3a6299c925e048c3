"""Checks across fields: every sentence once, and nothing is written."""

import json
import re
from pathlib import Path

import pytest

from aent.checks.recipe import check
from aent.models.attention import attention_of
from aent.models.facts import model_facts
from aent.recipe.folder import run_folder
from aent.recipe.load import load
from aent.runtime import environment
from aent.runtime.environment import data_path
from models import folders
from wording import assert_names

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


def test_what_transformer_engine_does_not_compute(recipe, tmp_path, monkeypatch):
    named, half = "trainer.attention=transformer_engine", "model.dtype=bfloat16"
    sharing = (named, half, "trainer.share_prompts=true")
    (fault,) = check(recipe(named, half))
    assert_names(fault, "trainer.attention", "transformer_engine", "not installed")
    monkeypatch.setattr(environment, "why_not", lambda _: "")  # as on a GPU that has it
    assert check(recipe(named, half)) == []
    for machine in (True, False):
        (fault,) = check(recipe(*sharing), machine=machine)
        assert_names(fault, "trainer.attention", "trainer.share_prompts", "sdpa")
        (fault,) = check(recipe(named, "model.dtype=float32"), machine=machine)
        assert_names(fault, "trainer.attention", "float32", "model.dtype", "sdpa")
    # what auto leaves to torch
    for overrides in ((), (half, "trainer.share_prompts=true")):
        assert check(recipe(*overrides)) == []
    windowed, split = {"model_type": "mistral", "sliding_window": 64}, "trainer.context_parallel=2"
    assert check(recipe(named, half, split)) == []
    folders.write(tmp_path / "model", CONFIG | windowed)
    (fault,) = check(recipe(named, half, split))
    assert_names(fault, "trainer.attention", split, "sliding_window=64", "sdpa")
    assert check(recipe(named, half)) == check(recipe(half, split)) == []
    config = json.loads((tmp_path / "model/config.json").read_text())
    folders.write(tmp_path / "model", config | {"model_type": "olmo2", "sliding_window": None})
    (fault,) = check(recipe(named, half))
    assert_names(fault, "trainer.attention", "olmo2", "sdpa")
    assert check(recipe(half)) == []


def test_which_attention_auto_is(recipe, monkeypatch):
    def chosen(*overrides):
        loaded = recipe(*overrides)
        return attention_of(loaded, model_facts(loaded.model))

    half, sharing = "model.dtype=bfloat16", "trainer.share_prompts=true"
    assert chosen(half) == "sdpa"
    monkeypatch.setattr(environment, "why_not", lambda _: "")
    assert chosen(half) == "transformer_engine"
    assert chosen(half, sharing) == chosen("model.dtype=float32") == "sdpa"
    assert chosen(half, "trainer.attention=sdpa") == "sdpa"
    assert chosen(half, "trainer.attention=flex") == "flex"


def test_flex_attention_is_not_trained_with_on_a_cpu(recipe, monkeypatch):
    (fault,) = check(recipe("trainer.attention=flex"))
    assert_names(fault, "trainer.attention=flex", "CPU", "sdpa")
    assert check(recipe("trainer.attention=flex"), machine=False) == []
    monkeypatch.setattr(environment, "device_kind", lambda: "cuda")
    assert not [f for f in check(recipe("trainer.attention=flex")) if "flex" in f]


def test_longrope_up_to_the_original_length(recipe, tmp_path):
    rope = {"type": "longrope", "short_factor": [1.5] * 24, "long_factor": [3.0] * 24}
    config = CONFIG | {"model_type": "phi3", "rope_scaling": rope}
    folders.write(tmp_path / "model", config | {"original_max_position_embeddings": 384})
    assert check(recipe("rollout.max_response_tokens=128")) == []
    (fault,) = check(recipe("rollout.max_response_tokens=129"))
    assert_names(fault, "rollout.max_prompt_tokens", "rollout.max_response_tokens", 385, 384)


def test_a_window_that_vllm_does_not_serve(recipe, tmp_path):
    window = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64}
    for layers, served in ((0, True), (30, False), (29, False)):
        folders.write(tmp_path / "model", CONFIG | window | {"max_window_layers": layers})
        faults = check(recipe())
        assert (faults == []) == served
        for fault in faults:
            assert_names(fault, "model.path", "sliding_window=64", "vLLM")


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


AHEAD = ("rollout.max_staleness=1", "algorithm.importance=truncated_token")
FAULTS = [
    (["model={}"], "model.path model.bundled"),
    (["model.bundled=tiny-qwen2"], "model.path model.bundled"),
    (["model.path=/no/where"], "model.path /no/where"),
    (["model.tokenizer_path=/no"], "model.tokenizer_path /no"),
    (["run_dir=~no-such-user/x"], "run_dir ~no-such-user/x"),
    (["model.path=~no-such-user/x"], "model.path ~no-such-user/x"),
    (["task.size=7", "rollout.prompts_per_step=8"], "rollout.prompts_per_step 8 7"),
    (["task.name=chain_sun"], "task.name chain_sun chain_sum"),
    (["trainer.tensor_parallel=4"], "trainer.tensor_parallel 4 6"),
    (["trainer.tensor_parallel=3"], "trainer.tensor_parallel 3 1540"),
    (["trainer.pipeline_parallel=31"], "trainer.pipeline_parallel 31 30"),
    (["trainer.sequence_parallel=true"], "trainer.sequence_parallel trainer.tensor_parallel 1"),
    (["rollout.engine.tensor_parallel=5"], "rollout.engine.tensor_parallel 5 12"),
    (
        ["rollout.engine.options={tensor-parallel-size: 2}"],
        "rollout.engine.options.tensor-parallel-size rollout.engine.tensor_parallel",
    ),
    (
        ["rollout.engine.options={no_enable_scale_out: true}"],
        "rollout.engine.options.no_enable_scale_out",
    ),
    (["rollout.engine.options={api-key: x}"], "rollout.engine.options.api-key"),
    (
        ["rollout.engine.options={api_server_count: 4}"],
        "rollout.engine.options.api_server_count rollout.engines",
    ),
    (
        [*AHEAD, "rollout.engine.options={max_num_seqs: 64}"],
        "rollout.engine.options.max_num_seqs rollout.max_staleness rollout.concurrency",
    ),
    (
        [*AHEAD, "rollout.concurrency=2047"],
        "rollout.concurrency 2047 rollout.engine.options.max-num-batched-tokens 2049 2048",
    ),
    (["rollout.token_file=/nowhere/token"], "rollout.token_file rollout.urls"),
    (
        ["trainer.phase_timeout_s=900", "trainer.collective_timeout_s=900"],
        "trainer.phase_timeout_s 900 trainer.collective_timeout_s",
    ),
    (
        ["trainer.phase_timeout_s=650", "rollout.engine.start_timeout_s=400"],
        "trainer.phase_timeout_s 650 rollout.progress_timeout_s rollout.engine.start_timeout_s 700",
    ),
    (["profile.steps=[2]"], "profile.steps 2 0"),
    (["profile.ranks=[0,9]"], "profile.ranks 9"),
    (
        ["profile.peak_tflops=2", "profile.measure_peak=true"],
        "profile.peak_tflops profile.measure_peak",
    ),
    (["entropy.top_k=1001"], "entropy.top_k 1001 1000"),
    (
        ["rollout.max_prompt_tokens=465"],
        "rollout.max_prompt_tokens rollout.max_response_tokens 513 512",
    ),
    (["trainer.mini_batches=3"], "trainer.mini_batches 3 rollout.prompts_per_step 8"),
    (["trainer.mini_batches=8", "trainer.data_parallel=9"], "trainer.data_parallel 9 8"),
    (["algorithm.policy_loss=cispo"], "algorithm.policy_loss cispo trainer.mini_batches 1"),
    (["algorithm.clip_high=.28"], "algorithm.clip_high 0.28 trainer.mini_batches 1"),
    (
        ["algorithm.policy_loss=gspo", "trainer.mini_batches=2"],
        "algorithm.policy_loss gspo algorithm.aggregation sequence_mean",
    ),
    (
        ["algorithm.policy_loss=cispo", "trainer.mini_batches=2", "algorithm.dual_clip=3"],
        "algorithm.dual_clip algorithm.policy_loss cispo",
    ),
    (
        ["algorithm.overlong_buffer=49"],
        "algorithm.overlong_buffer 49 rollout.max_response_tokens 48",
    ),
    (
        ["rollout.replacement_prompts=4", "algorithm.advantage=reinforce_plus_plus"],
        "rollout.replacement_prompts algorithm.advantage reinforce_plus_plus",
    ),
    (
        ["rollout.replacement_prompts=4", "task.size=8"],
        "rollout.replacement_prompts 4 task.size 8 rollout.prompts_per_step",
    ),
    (
        ["controller={kind: constant, initial: .1, drives: upper_clip}"],
        "controller.drives upper_clip trainer.mini_batches 1",
    ),
    (
        ["controller={kind: log_pi, initial: .1, target: 1, drives: gradient_share}"],
        "controller.max 1 controller.drives gradient_share",
    ),
    (
        ["controller={kind: constant, initial: 2, drives: gradient_share}"],
        "controller.initial 2 controller.drives gradient_share",
    ),
    (
        [
            "controller={kind: constant, initial: 2, drives: advantage_zeta}",
            "entropy_controls=[{kind: difficulty_coefficient}]",
        ],
        "entropy_controls[0] difficulty_coefficient controller.drives advantage_zeta",
    ),
    # ln 1000 is 6.91 nats, ln 900 6.80, ln 670 6.51, ln 5 1.61; 0.33 are dropped by default
    (["controller.low=6.55", "controller.high=9"], "controller.low 6.55 6.51 670"),
    (
        ["controller.low=6.85", "controller.high=9", "entropy.drop_fraction=.1"],
        "controller.low 6.85 6.8 900",
    ),
    (
        ["controller={kind: log_pi, initial: .1, target: 1.7}", "entropy.top_k=5"],
        "controller.target 1.7 1.61",
    ),
    (
        [
            "controller={kind: log_pi, initial: .1, target: 4, anneal_to: 2, anneal_steps: 9, "
            "measure: full}"
        ],
        "controller.target 4 controller.anneal_to 2 6.91",
    ),
    (["entropy_controls=[{kind: clip_cov}, {kind: clip_cov}]"], "entropy_controls[1] clip_cov"),
    (["entropy_controls=[{kind: clip_cov, low: 5}]"], "entropy_controls[0] clip_cov low 5 high"),
    (["entropy_controls=[{kind: clip_cov, low: 0, exact: true}]"], "clip_cov exact low high"),
    (
        ["entropy_controls=[{kind: sample_switch, low: .7, high: .5}]"],
        "entropy_controls[0] sample_switch low 0.7 high 0.5",
    ),
    (
        ["entropy_controls=[{kind: kept_gradient}]"],
        "entropy_controls[0] kept_gradient trainer.mini_batches 1",
    ),
    (
        [
            "entropy_controls=[{kind: kept_gradient}]",
            "algorithm.policy_loss=cispo",
            "trainer.mini_batches=2",
        ],
        "entropy_controls[0] kept_gradient algorithm.policy_loss cispo",
    ),
    (
        ["entropy_controls=[{kind: quantile_baseline}]", "algorithm.advantage=reinforce_plus_plus"],
        "entropy_controls[0] quantile_baseline algorithm.advantage reinforce_plus_plus",
    ),
    (
        ["entropy_controls=[{kind: advantage_clip, bound: 1}, {kind: quantile_baseline}]"],
        "entropy_controls[1] quantile_baseline advantage_clip",
    ),
    (["entropy_controls=[{kind: kl_cov}]"], "entropy_controls[0] kl_cov trainer.mini_batches 1"),
    (
        ["entropy_controls=[{kind: advantage_kl}]"],
        "entropy_controls[0] advantage_kl algorithm.kl_coefficient",
    ),
    (
        [
            "entropy_controls=[{kind: response_entropy_advantage}]",
            "rollout.samples_per_prompt=1",
            "algorithm.advantage=reinforce_plus_plus",
        ],
        "entropy_controls[0] response_entropy_advantage rollout.samples_per_prompt 2",
    ),
    (
        ["entropy_controls=[{kind: advantage_clip, bound: 1.5}]", "rollout.samples_per_prompt=4"],
        "entropy_controls[0] advantage_clip bound 1.5 4",
    ),
    (
        ["entropy_controls=[{kind: entropy_smoothing}]"],
        "entropy_controls[0] entropy_smoothing entropy.measure full",
    ),
    (
        [
            "entropy_controls=[{kind: entropy_smoothing, low: 2}]",
            "entropy.measure=full",
        ],
        "entropy_controls[0] entropy_smoothing low 2 high",
    ),
    (
        ["entropy_controls=[{kind: difficulty_coefficient}]", "controller={initial: 0}"],
        "entropy_controls[0] difficulty_coefficient controller.initial 0 controller.kind constant",
    ),
    (
        ["entropy_controls=[{kind: rollout_budget, high: 6}]"],
        "entropy_controls[0] rollout_budget rollout.samples_per_prompt 8 low 4 high 6",
    ),
    (
        ["entropy_controls=[{kind: rollout_budget, low: 1}]"],
        "entropy_controls[0] rollout_budget low 1 algorithm.advantage group_normalized",
    ),
    (
        [
            "entropy_controls=[{kind: reroll, target: 1}]",
            "algorithm.importance=truncated_token",
        ],
        "entropy_controls[0] reroll algorithm.importance truncated_token",
    ),
    (["rollout.max_staleness=1"], "rollout.max_staleness 1 algorithm.importance"),
    (
        [
            "rollout.max_staleness=1",
            "algorithm.importance=truncated_token",
            "entropy_controls=[{kind: temperature_schedule}]",
        ],
        "rollout.max_staleness 1 temperature_schedule",
    ),
    (
        ["entropy_controls=[{kind: reroll, target: 1, high: .9}]"],
        "entropy_controls[0] reroll rollout.temperature 1 low 0.8 high 0.9",
    ),
    (
        ["entropy_controls=[{kind: reroll, target: 1}, {kind: temperature_schedule}]"],
        "entropy_controls[0] reroll temperature_schedule",
    ),
    (
        [
            "entropy_controls=[{kind: majority_reward}]",
            "rollout.samples_per_prompt=1",
            "algorithm.advantage=reinforce_plus_plus",
        ],
        "entropy_controls[0] majority_reward rollout.samples_per_prompt 2",
    ),
    (
        ["entropy_controls=[{kind: forked_rollouts}]"],
        "entropy_controls[0] forked_rollouts 5 rollout.samples_per_prompt 8",
    ),
    (
        [
            "entropy_controls=[{kind: forked_rollouts, forks: 1, branches: 3}, "
            "{kind: rollout_budget}]"
        ],
        "entropy_controls[0] forked_rollouts rollout_budget",
    ),
    (
        ["rollout.samples_per_prompt=1"],
        "rollout.samples_per_prompt 1 algorithm.advantage group_normalized 2",
    ),
    (
        ["trainer.micro_batch_tokens=303"],
        "trainer.micro_batch_tokens 303 rollout.max_prompt_tokens rollout.max_response_tokens 304",
    ),
    (["entropy={drop_fraction: .3, top_k: 5}"], "entropy.drop_fraction entropy.top_k"),
    (
        ["entropy={measure: full, top_k: 5}", "controller.measure=full"],
        "entropy.top_k entropy.measure full",
    ),
    (["controller={initial: 0, step_size: .1}"], "controller.step_size controller.kind constant"),
    (["controller={initial: 0, min: 0}"], "controller.min controller.kind constant"),
    (
        ["controller={initial: 0, warmup_steps: 1}"],
        "controller.warmup_steps controller.kind constant",
    ),
    (
        ["controller={kind: band, initial: 0, low: 1, step_size: 1, min: 0}"],
        "controller.kind band controller.high controller.max",
    ),
    (
        [
            "controller={kind: automatic_band, initial: 0, high_fraction: .5, step_size: 1, "
            "min: 0, max: 1}"
        ],
        "controller.kind automatic_band controller.low_fraction controller.reference_steps",
    ),
    (
        ["controller={kind: proportional_integral, initial: 0, min: 0, max: 1}"],
        "controller.kind proportional_integral controller.target "
        "controller.proportional_gain controller.integral_gain",
    ),
    (
        ["controller={kind: dual, initial: .1, target: 1, step_size: 1, min: 0, max: 1}"],
        "controller.min 0 controller.kind dual",
    ),
    (
        ["controller={kind: target, initial: 0, target: 1, step_size: 1, min: 0, max: 1, low: 1}"],
        "controller.low controller.kind target",
    ),
    (["controller.low=3"], "controller.low 3 controller.high 2"),
    (["controller.min=2"], "controller.min 2 controller.max 1"),
    (["controller.min=.5"], "controller.initial 0.1 controller.min 0.5"),
    (["controller.max=.01"], "controller.initial 0.1 controller.max 0.01"),
    (["rollout.engines=0"], "rollout.engines rollout.urls"),
    (["rollout.urls=['http://a:1']"], "rollout.engines rollout.urls"),
    (["rollout.engines=0", "rollout.urls=['a:1']"], "rollout.urls a:1"),
    *(
        (["rollout.engines=0", f"rollout.urls=['{url}']"], f"rollout.urls {url}")
        for url in ("http://[a:1", "http://a:b", "http://a:99999", "http://a:8000x", "http://[::1")
    ),
    (
        ["rollout.engines=0", "rollout.urls=['http://u:hunter2@a:1']"],
        "rollout.urls http://u:***@a:1 rollout.token_file",
    ),
    (
        ["rollout.engine.options={hf_token: hunter2}"],
        "rollout.engine.options.hf_token",
    ),
    (["rollout.engines=0", "rollout.urls=['http://a:1', 'http://a:1/']"], "rollout.urls"),
    (
        ["rollout.engines=2", "rollout.engine.port=65535"],
        "rollout.engine.port 65535 rollout.engines 2",
    ),
    (["evaluation.every=2", "task.heldout=0"], "evaluation.every 2 task.heldout 0"),
    (["evaluation.samples=2"], "evaluation.samples 2 evaluation.temperature 0"),
    (["trainer.optimizer.betas=[.9, 1]"], "trainer.optimizer.betas[1] 0 1"),
    (["trainer.schedule.min_lr=1"], "trainer.schedule.min_lr 1 trainer.optimizer.lr 1e-06"),
    (
        ["steps=2", "trainer.mini_batches=2", "trainer.schedule.warmup_steps=4"],
        "trainer.schedule.warmup_steps 4",
    ),
]


@pytest.mark.parametrize(("overrides", "names"), FAULTS)
def test_fault_is_one_sentence_naming_the_fields(recipe, overrides, names):
    (fault,) = check(recipe(*overrides))
    assert_names(fault, *names.split())


def test_none_is_another_fault_than_two(recipe):
    assert check(recipe("model={}")) != check(recipe("model.bundled=tiny-qwen2"))
    assert check(recipe("rollout.engines=0")) != check(recipe("rollout.urls=['http://a:1']"))


def test_faults_of_the_model_folder(recipe, tmp_path):
    config = tmp_path / "model" / "config.json"
    (tmp_path / "model" / "model.safetensors").unlink()
    (fault,) = check(recipe())
    assert_names(fault, "model.path", f"{tmp_path}/model", "*.safetensors")
    config.write_text(json.dumps(CONFIG | {"num_hidden_layers": "30"}))
    (fault,) = check(recipe())
    assert_names(fault, "model.path", config, "num_hidden_layers", "'30'")
    config.write_text("{")
    (fault,) = check(recipe())
    assert_names(fault, "model.path", config, "JSON")
    config.unlink()
    (fault,) = check(recipe())
    assert_names(fault, "model.path", f"{tmp_path}/model", "config.json")
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
        "task={kind: file, path: ~/questions.jsonl, heldout: 2, graders: [{kind: last_number}]}",
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
    (missing,) = check(recipe("resume=required"))
    assert_names(missing, "run_dir", run)
    run.mkdir()
    (run / "start.json").write_text("{}")  # killed before there was a recipe.yaml
    assert check(recipe("resume=auto")) == check(recipe("resume=required")) == []
    (taken,) = check(recipe())
    assert_names(taken, "run_dir", run, "--resume")


def test_faults_of_the_run_folder(recipe, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert check(recipe()) == []
    (run / "a").write_text("")
    (taken,) = check(recipe())
    assert_names(taken, "run_dir", run)
    assert "--resume" not in taken
    assert check(recipe(), machine=False) == []
    assert check(recipe("resume=auto")) == [taken]  # it is not a run
    (file,) = check(recipe(f"run_dir={run}/a"))
    assert_names(file, "run_dir", f"{run}/a")


def test_several_faults_are_all_reported(recipe):
    faults = check(recipe("trainer.tensor_parallel=5", "controller.low=3", "model.path=/no"))
    assert len(faults) == 2
    smollm2 = ("model={bundled: smollm2-135m-instruct}", "trainer.tensor_parallel=2")
    band, heads, groups = check(recipe(*smollm2, "controller.low=3"))
    assert_names(band, "controller.low", 3, "controller.high", 2)
    assert_names(heads, "trainer.tensor_parallel", 2, 9)
    assert_names(groups, "trainer.tensor_parallel", 2, 3)


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
    assert any("run_dir" in f and f"{tmp_path}/file" in f for f in faults)
    assert any("model.bundled" in f and "AENT_CACHE" in f for f in faults)
    monkeypatch.setenv("AENT_CACHE", str(tmp_path / "cache"))
    assert check(recipe.model_copy(update={"run_dir": str(tmp_path / "a" / "b")})) == []
