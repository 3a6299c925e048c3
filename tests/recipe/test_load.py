"""Loading recipes: one sentence per fault, overrides, and the way back to YAML."""

from pathlib import Path

import pytest
import yaml

from aent.recipe.keys import known_keys
from aent.recipe.load import RecipeError, dump, flatten, load
from aent.recipe.schema import Recipe
from wording import assert_names, naming

BASE = "name: x\nmodel: {bundled: tiny-qwen2}\ncontroller: {initial: 0.0}\n"
RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write_recipe(text: str) -> Path:
        path = tmp_path / "r.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_recipe


FAULTS = [
    # text after BASE, overrides, what the sentence names (FILE stands for the recipe's path)
    ("rolout: {}", [], "FILE rolout rollout"),
    ("trainer: {tensor_paralel: 2}", [], "FILE trainer.tensor_paralel trainer.tensor_parallel"),
    (
        "trainer: {optimizer: {learning: 1}}",
        [],
        "FILE trainer.optimizer.learning implementation lr betas eps distributed",
    ),
    ("trainer: {lr: 1}", [], "FILE trainer.lr trainer.optimizer.lr"),
    ("steps: 2.5", [], "FILE steps 2.5"),
    ("steps: 2.0", [], "FILE steps 2.0"),
    ("steps: '2'", [], 'FILE steps "2"'),
    ("steps: true", [], "FILE steps true"),
    ("steps:", [], "FILE steps null"),
    ("rollout: {temperature: true}", [], "FILE rollout.temperature true"),
    ("trainer: {sequence_parallel: 1}", [], "FILE trainer.sequence_parallel 1"),
    ("trainer: {sequence_parallel: yes}", [], 'FILE trainer.sequence_parallel "yes"'),
    ("run_dir: 3", [], "FILE run_dir 3"),
    ("trainer:", [], "FILE trainer null"),
    ("task: {config: [1]}", [], "FILE task.config list"),
    ("rollout: {engines: 0, urls: 'http://a'}", [], 'FILE rollout.urls "http://a"'),
    ("steps: 0", [], "FILE steps 1 0"),
    ("rollout: {temperature: 0}", [], "FILE rollout.temperature 0"),
    (
        "entropy_controls: [{kind: clip_covs}]",
        [],
        'FILE entropy_controls[0].kind clip_cov forked_rollouts "clip_covs"',
    ),
    (
        "entropy_controls: [{kind: nucleus_anchor, topp: .5}]",
        [],
        "FILE entropy_controls[0].nucleus_anchor.topp entropy_controls[0].nucleus_anchor.top_p",
    ),
    (
        "entropy_controls: [{kind: clip_cov, lr: .5}]",
        [],
        "FILE entropy_controls[0].clip_cov.lr kind share low high exact",
    ),
    ("entropy_controls: [{}]", [], "FILE entropy_controls[0].kind"),
    ("entropy: {drop_fraction: 1}", [], "FILE entropy.drop_fraction 1"),
    (
        "rollout: {engine: {gpu_memory_utilization: 1.5}}",
        [],
        "FILE rollout.engine.gpu_memory_utilization 1 1.5",
    ),
    ("trainer: {optimizer: {lr: .inf}}", [], "FILE trainer.optimizer.lr inf"),
    ("trainer: {optimizer: {betas: [.9, no]}}", [], 'FILE trainer.optimizer.betas[1] "no"'),
    ("trainer: {optimizer: {betas: [.9]}}", [], "FILE trainer.optimizer.betas[1]"),
    ("entropy: {measure: some}", [], 'FILE entropy.measure clamped full "some"'),
    ("3: 4", [], "FILE 3"),
    ("task: {config: {3: 4}}", [], "FILE task.config 3"),
    ("task: &a {config: {b: *a}}", [], "FILE task.config.b"),
    ("task: {config: {a: !!set {b}}}", [], "FILE task.config.a"),
    ("task: {config: {a: !!timestamp 2024-01-01}}", [], "FILE task.config.a date"),
    ("seed: -1", [], "FILE seed 0 -1"),  # vLLM's numpy takes neither of these
    ("seed: 4294967297", [], "FILE seed 4294967296 4294967297"),
    ("tracking: {experiment: ''}", [], "FILE tracking.experiment"),
    ("steps: 1\nsteps: 2", [], "FILE 5 YAML steps"),
    ("task:\n  size: 1\n  size: 2", [], "FILE 6 YAML size"),
    ("steps: [1", [], "FILE 4 YAML ]"),
    ("task:\n\tsize: 1", [], "FILE 5 YAML \\t"),
    ('seed: 3\nrun_dir: "a\\0b"', [], "FILE 5 'a\\x00b' NUL"),
    ('task: {instruction: "\\udc00"}', [], "FILE 4 \\udc00 character"),
    ('task: {config: {"a\\0": 1}}', [], "FILE 4 \\x00 NUL"),
    ("", ['model.path="/m\\0"'], "model.path \\x00 NUL"),
    ("", ['tracking.experiment="\\ud800"'], "tracking.experiment \\ud800 character"),
    ("", ["steps"], "steps key=value"),
    ("", ["=3"], "=3 key=value"),
    ("", ["stps=3"], "stps=3 steps"),
    ("", ["lr=3"], "lr=3 trainer.optimizer.lr"),
    ("", ["steps.a=3"], "steps.a=3"),
    ("", ["trainer.optimiser.lr=1"], "trainer.optimiser.lr=1 trainer.optimizer"),
    ("", ["steps=true"], "steps=true"),
    ("", ["name=a b"], 'name ^[A-Za-z0-9._-]+$ "a b"'),
    ("", ["trainer.optimizer={lr: 0}"], "trainer.optimizer={lr: 0} trainer.optimizer.lr"),
    ("", ["steps=[1"], "steps=[1 YAML ]"),
]


@pytest.mark.parametrize(("text", "overrides", "names"), FAULTS)
def test_fault_is_one_sentence_naming_source_and_field(write, text, overrides, names):
    path = write(BASE + text)
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    (line,) = str(caught.value).splitlines()
    assert_names(line, *names.replace("FILE", str(path)).split())


@pytest.mark.parametrize(
    ("method", "kinds"),
    [
        ("siren", "nucleus_anchor"),
        ("Lp-Reg", "low_probability_kl"),
        ("EntroPIC", "probability_push"),
        ("aepo", "reroll"),
        ("EPO", "entropy_smoothing"),
        ("aer", "difficulty_coefficient"),
        ("adrpo", "advantage_kl"),
        (
            "ettrl",
            "response_entropy_advantage advantage_clip majority_reward forked_rollouts",
        ),
        ("ttrl", "majority_reward"),
        ("etmr", "forked_rollouts"),
        ("e3", "temperature_schedule rollout_budget"),
        ("erc", "entropy_ratio_clip"),
        ("ear", "response_entropy_advantage"),
        ("clip-cov", "clip_cov"),
        ("80/20", "top_entropy_tokens"),
        ("entrocraft", "sample_switch"),
        ("stare", "surprise_boost"),
        ("steer", "entropy_change_weight"),
        ("clip_b", "entropy_change_mask"),
        ("qae", "quantile_baseline"),
        ("ce-gppo", "kept_gradient"),
    ],
)
def test_a_methods_name_is_answered_with_the_kinds_of_its_parts(write, method, kinds):
    with pytest.raises(RecipeError) as caught:
        load(write(BASE), [f"entropy_controls=[{{kind: {method}}}]"])
    assert_names(
        str(caught.value), "entropy_controls[0].kind", method, *kinds.split(), "docs/algorithms.md"
    )


def test_fault_of_the_whole_file(write, tmp_path):
    for text, named in (
        ("", "null"),
        ("- 1", "list"),
        ("name: x\nname2: y\n--- \na: 1", "document"),  # the YAML reader's own word
        ("name: x", "model"),
    ):
        path = write(text)
        with pytest.raises(RecipeError, match=naming(path, named)):
            load(path)
    with pytest.raises(RecipeError, match=r"none\.yaml"):
        load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match=naming(tmp_path, "Is a directory")):
        load(tmp_path)
    (tmp_path / "latin").write_bytes(b"name: \xe9")
    with pytest.raises(RecipeError, match=naming("latin", "UTF-8", 6)):
        load(tmp_path / "latin")


def test_jsons_two_escapes_of_a_character_are_that_character(write):
    recipe = load(write(BASE + r'task: {instruction: "\ud83d\ude00"}'))
    assert recipe.task.instruction == "\U0001f600"


def test_several_faults_are_reported_at_once_but_not_all(write):
    path = write(BASE + "steps: 0\nseed: a\nrollout: {temperature: 0, engines: -1}\na1: 1\nb1: 1")
    with pytest.raises(RecipeError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert_names(lines[-1], path, 1)
    (seed,) = (line for line in lines if '"a"' in line)
    assert_names(seed, path, "seed")


@pytest.mark.parametrize("number", ["2e-5", "2E-5", "2.e-5", "0.2e-4", ".00002", "+2e-05"])
def test_scientific_numbers_are_numbers(write, number):
    path = write(BASE + f"trainer: {{optimizer: {{lr: {number}}}}}")
    assert load(path).trainer.optimizer.lr == 2e-5
    assert load(write(BASE), [f"trainer.optimizer.lr={number}"]).trainer.optimizer.lr == 2e-5


def test_an_override_sets_one_key_of_a_free_mapping(write):
    text = "trainer: {megatron: {recompute_granularity: full}, ddp: {bucket_size: 1}}"
    path = write(BASE + text)
    overrides = "trainer.megatron.recompute_num_layers=2", "trainer.ddp.overlap_grad_reduce=true"
    engine = "rollout.engine.options.max-num-seqs=512"
    recipe = load(path, [*overrides, "task.template.enable_thinking=false", engine])
    assert recipe.trainer.megatron == {"recompute_granularity": "full", "recompute_num_layers": 2}
    assert recipe.trainer.ddp == {"bucket_size": 1, "overlap_grad_reduce": True}
    assert recipe.task.template == {"enable_thinking": False}
    assert recipe.rollout.engine.options == {"max-num-seqs": 512}


def test_overrides_apply_left_to_right_over_the_file(write):
    path = write(BASE + "steps: 3\ntrainer: {optimizer: {lr: 1e-3, eps: 1e-6}}")
    recipe = load(
        path,
        [
            "steps=4",
            "steps=5",
            "trainer.optimizer.betas=[0, .5]",
            "task.config.min_terms=2",
            "rollout.urls=['http://a:1', 'http://b:1']",
            "run_dir=out=1",
            "controller={kind: band, initial: .1}",
        ],
    )
    assert recipe.steps == 5
    assert recipe.trainer.optimizer.betas == (0.0, 0.5)
    assert (recipe.trainer.optimizer.lr, recipe.trainer.optimizer.eps) == (1e-3, 1e-6)
    assert recipe.task.config == {"min_terms": 2}
    assert recipe.rollout.urls == ("http://a:1", "http://b:1")
    assert recipe.run_dir == "out=1"
    assert (recipe.controller.kind, recipe.controller.initial) == ("band", 0.1)
    assert load(path).steps == 3


@pytest.mark.parametrize(
    "value", ["1e5", "yes", "0o7", "010", "null", "~", "", "2024-01-01", "1:30", "a\nb", "<<", ".5"]
)
def test_dump_loads_back_to_an_equal_recipe(write, value):
    recipe = Recipe.model_validate(
        {
            "name": "n",
            "run_dir": value,
            "model": {"path": value},
            "task": {"config": {"text": value, "list": [1, 1.5, True, None, value], "n": {"a": 1}}},
            "controller": {"initial": 1e-7},
            "trainer": {"optimizer": {"lr": 1e22, "betas": (0.0, 1 / 3)}},
        }
    )
    text = dump(recipe)
    assert load(write(text)) == recipe
    assert yaml.safe_load(text)["run_dir"] == value  # other YAML readers see the same text


def test_flatten_has_a_scalar_for_every_field(write):
    flat = flatten(load(write(BASE), ["task.config.a.b=3", "task.curriculum.low=.2"]))
    sections = {k for k in known_keys() if any(o.startswith(f"{k}.") for o in known_keys())}
    assert set(known_keys()) - sections - {"task.config"} == set(flat) - {"task.config.a.b"}
    assert flat["task.config.a.b"] == 3
    assert flat["trainer.optimizer.betas"] == "[0.9, 0.95]"
    assert flat["rollout.urls"] == "[]"
    assert flat["model.path"] is None
    assert all(isinstance(v, str | int | float | bool | None) for v in flat.values())


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_load_and_round_trip(path, write):
    recipe = load(path)
    assert load(write(dump(recipe))) == recipe


def test_a_recipe_may_be_changes_of_another(write, tmp_path):
    (tmp_path / "whole.yaml").write_text(
        BASE + "steps: 3\nentropy: {drop_fraction: .4}\ntrainer: {mini_batches: 2}\n"
    )
    path = write(
        "base: whole.yaml\nchange:\n  name: y\n  entropy: {measure: full}\n"
        "  trainer.tensor_parallel: 2\n"
    )
    recipe = load(path, ["steps=5"])
    assert (recipe.name, recipe.steps) == ("y", 5)
    assert (recipe.entropy.measure, recipe.entropy.drop_fraction) == ("full", None)  # the whole
    assert (recipe.trainer.tensor_parallel, recipe.trainer.mini_batches) == (2, 2)
    assert load(write("base: whole.yaml")) == load(tmp_path / "whole.yaml")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("base: none.yaml", "FILE base FOLDER/none.yaml"),
        ("base: other.yaml", "FILE base other.yaml"),
        ("base: 3", "FILE base change"),
        ("base: whole.yaml\nchange: [1]", "FILE base change"),
        ("base: whole.yaml\nsteps: 3", "FILE base change steps"),
        ("base: whole.yaml\nchange: {stps: 3}", "FILE change stps steps"),
        ("base: whole.yaml\nchange: {steps: 0}", "FILE steps 1 0"),
    ],
)
def test_faults_of_changes(write, tmp_path, text, names):
    (tmp_path / "whole.yaml").write_text(BASE)
    (tmp_path / "other.yaml").write_text("base: whole.yaml")
    path = write(text)
    names = names.replace("FILE", str(path)).replace("FOLDER", str(tmp_path))
    with pytest.raises(RecipeError, match=naming(*names.split())):
        load(path)
