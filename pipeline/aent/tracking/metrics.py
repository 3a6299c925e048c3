# ruff: noqa: E501  (one line a metric, so that branches which add metrics merge)
"""Every metric that a run records: its name, unit, when it is recorded, and what it means.

``docs/metrics.md`` is ``markdown()``; ``tests/tracking/test_metrics.py`` holds the page against this
table, and the table against the names in the code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One row: metrics that share a unit and an explanation."""

    names: str  # separated by ", "; words in capitals stand for any name, "..." at the end for any
    unit: str
    when: str
    meaning: str

    def matches(self, name: str) -> bool:
        """Whether a recorded metric of this name belongs to the row."""
        return any(re.fullmatch(_pattern(own), name) for own in self.names.split(", "))


STEP, TEXT, MIXED = "each step", "each evaluation", "each step, with sources"
CURRICULUM, STALE = "each step, with `task.curriculum`", "each step, with `rollout.max_staleness`"
AIM, BUDGET = "each step, with a band or target", "each step, with `entropy_budget`"
PEAK = "each step, with `profile.peak_tflops` or `profile.measure_peak`"
SUITES = "each evaluation, with `evaluation.suites`"

# fmt: off
METRICS = (
    Metric("reward/mean, reward/std", "reward", STEP, "Mean and standard deviation over the responses; responses that `reroll` added at another temperature are left out"),
    Metric("reward/judged_mean", "reward", STEP, "Mean of the graders' rewards. It differs from `reward/mean` only with `majority_reward`, which learns from other rewards, and with `task.finished_only`, which sets rewards of truncated responses to 0"),
    Metric("reward/rerolled", "responses", STEP, "Responses that `reroll` (AEPO) added at another temperature"),
    Metric("reward/groups_without_signal", "share", STEP, "Prompts whose responses all got the same reward: they teach nothing"),
    Metric("reward/groups_replaced", "groups", STEP, "Groups without signal that were replaced by newly sampled ones (`rollout.replacement_prompts`)"),
    Metric("reward/penalty", "reward", STEP, "Mean of what `algorithm.overlong_buffer` adds to the rewards before advantages are computed; `reward/mean` is without it"),
    Metric("reward/judge_errors", "responses", STEP, "Responses on which a grader hung or raised an exception; they got reward 0"),
    Metric("grader/NAME/mean", "reward", STEP, "Mean reward of one grader ([rewards.md](rewards.md)) before its weight, over the responses that it scored"),
    Metric("grader/NAME/right_share", "share", STEP, "Responses to which the grader gave 1 or more"),
    Metric("grader/NAME/part/PART", "reward", STEP, "Mean of a named part of the grader's rewards"),
    Metric("grader/NAME/errors", "responses", STEP, "Responses on which the grader hung or raised an exception"),
    Metric("time/grader/NAME", "s", STEP, "Time the grader took, summed over responses (`task.judge_processes` of them are scored at once)"),
    Metric("source/NAME/prompts", "prompts", MIXED, "Prompts of one source of a mixture ([data.md](data.md)) in the step"),
    Metric("source/NAME/reward_mean", "reward", MIXED, "Mean reward of the source's responses"),
    Metric("source/NAME/right_share", "share", MIXED, "Responses to which the source's first grader gave 1 or more"),
    Metric("source/NAME/groups_without_signal", "share", MIXED, "As `reward/groups_without_signal`, of the source's prompts"),
    Metric("source/NAME/length_mean", "tokens", MIXED, "Mean length of the source's responses"),
    Metric("source/NAME/truncated_share", "share", MIXED, "As `response/truncated_share`, of the source's responses"),
    Metric("source/NAME/grader/..., time/source/NAME/grader/GRADER", "as above", MIXED, "As `grader/NAME/...` and `time/grader/NAME`, of the source's responses"),
    Metric("curriculum/known", "questions", CURRICULUM, "Questions asked so far"),
    Metric("curriculum/success", "share", CURRICULUM, "Mean over those questions of their success rate"),
    Metric("curriculum/in_window_share", "share", CURRICULUM, "Those questions whose success rate lies in the window"),
    Metric("curriculum/repeated_share", "share", CURRICULUM, "Questions of this step that were asked before"),
    Metric("curriculum/outside_share", "share", CURRICULUM, "Questions of this step that lie outside the window, asked because too few lay in it"),
    Metric("response/length_mean, response/length_max", "tokens", STEP, "Length of the responses"),
    Metric("response/distinct_answers", "answers", STEP, "Different answers among the responses to a prompt, as the grader reads them; mean over prompts"),
    Metric("response/truncated_share", "share", STEP, "Responses cut off by `rollout.max_response_tokens`"),
    Metric("policy/entropy", "nats per token", STEP, "Entropy over the whole vocabulary of the policy at its sampling temperature"),
    Metric("policy/clamped_entropy", "nats per token", STEP, "Entropy of the policy renormalized on its kept tokens ([clamped-entropy.md](clamped-entropy.md))"),
    Metric("policy/entropy_error", "nats per token", "each step of two prompts or more", "Standard error of the controller's entropy, over prompts (tokens of one prompt are not independent); the bars in `figure.png`"),
    Metric("entropy/class/NAME", "nats per token", STEP, "Mean entropy of the response tokens of one class: `words`, `digits`, `punctuation`, `space` or `special` (by the first character that is not a space; special tokens have no text). All of `entropy/` is of the entropy that the controller measures"),
    Metric("entropy/class_share/NAME", "share", STEP, "Response tokens of that class"),
    Metric("entropy/position/from_N", "nats per token", STEP, "Mean entropy of the tokens at positions N = 0, 1, 2, 4, 8, ... of their responses, each up to the next N"),
    Metric("entropy/change", "nats per token", "each step but the first", "Change of the mean entropy since the step before"),
    Metric("entropy/change_same, entropy/change_other", "nats per token", "each step but the first", "The two parts of that change: tokens of the same classes became more or less certain; other classes were written (below)"),
    Metric("policy/kept_mass", "probability", STEP, "Probability that the full policy gives its kept tokens"),
    Metric("policy/logprob_gap", "nats", "each step; with `rollout.max_staleness` if some tokens were sampled with the present weights", "Train-inference mismatch: mean absolute difference of the trainer's and the engine's log-probs for the same tokens and weights, before the step's first update; with `rollout.max_staleness` only over tokens of the present weights. The run stops if it exceeds `rollout.max_logprob_gap`"),
    Metric("staleness/mean", "updates", STALE, "By how many updates the weights that sampled a response token were older than the trainer's; mean over tokens"),
    Metric("staleness/logprob_gap", "nats", STALE, "As `policy/logprob_gap`, over tokens sampled with older weights: how far the policy has moved since, which `algorithm.importance` corrects for"),
    Metric("staleness/mixed_share", "share", STALE, "Responses whose tokens have several weight versions, because an update came while they were sampled"),
    Metric("staleness/sampled_anew", "responses", STALE, "Responses of the step, if an earlier start had begun to sample it and it was not on disk; else 0"),
    Metric("policy/probe_gap", "nats", STEP, "Mean absolute difference of engine and trainer log-probs on the probe's tokens after the step's weight update; the largest of all engines. The run stops if it exceeds `rollout.probe_tolerance`"),
    Metric("policy/kl_behaviour", "nats per token", STEP, "Estimate (k3) of KL(rollout policy, policy in training), over the step's mini-batches"),
    Metric("policy/kl_reference", "nats per token", STEP, "Estimate (k3) of the KL to the first weights; 0 unless `algorithm.kl_coefficient` is set"),
    Metric("policy/invalid_tokens", "tokens", STEP, "Response tokens with NaN or +inf among their logits, or a target outside the vocabulary. Anything but 0 is a fault"),
    Metric("policy/clip_fraction", "share", STEP, "Tokens whose gradient the clip removed (CISPO: whose weight it bounded)"),
    Metric("policy/correction", "factor", STEP, "Mean over response tokens of the off-policy correction (`algorithm.importance`: TIS or MIS); 1 without one. Far below 1, many tokens are truncated or masked: the engine's policy is not the trainer's"),
    Metric("policy/token_weight", "factor", STEP, "Mean over response tokens of the entropy controls' factor on the policy loss (80/20, Clip-Cov, `reroll`); 1 without one"),
    Metric("policy/masked_share", "share", STEP, "Response tokens that a correction or an entropy control leaves without a policy loss"),
    Metric("policy/kl_clamped_share", "share", STEP, "Response tokens for which `advantage_kl` (ADRPO) leaves no KL; 0 without it"),
    Metric("update/loss, update/policy_loss", "loss", STEP, "Means over the step's mini-batches"),
    Metric("update/grad_norm", "norm", STEP, "Gradient norm before clipping; mean over the step's mini-batches"),
    Metric("update/lr", "learning rate", STEP, "Learning rate of the step's last update"),
    Metric("update/skipped", "updates", STEP, "Updates skipped because the gradient was not finite. The step's line in the log says so too; after three in a row the run ends"),
    Metric("controller/coefficient", "lambda", STEP, "Coefficient of this step: what entered its loss"),
    Metric("controller/bonus", "lambda", STEP, "Coefficient of the entropy bonus in this step's loss: the same, unless `controller.drives` is something else"),
    Metric("controller/next_coefficient", "lambda", STEP, "Coefficient that the controller computed from it and from this step's entropy"),
    Metric("controller/low, controller/high", "nats", AIM, "Band in which the controller wants the entropy; equal for a target. Absent for `constant`, and for an automatic band that is still being measured"),
    Metric("controller/in_band", "0 or 1", AIM, "1 if the step's entropy lies in that band (for a target T: in [0.6 T, 1.6 T])"),
    Metric("controller/time_in_band", "share", AIM, "Steps so far with `controller/in_band` = 1"),
    Metric("controller/error", "nats", STEP, "How far the entropy lies outside the band; negative below it"),
    Metric("controller/move", "lambda", STEP, "`controller/next_coefficient` - `controller/coefficient`"),
    Metric("controller/at_bound", "-1, 0 or 1", STEP, "Saturation: -1 at `controller.min`, 1 at `controller.max`, else 0"),
    Metric("controller/steps_at_bound", "steps", STEP, "For how many steps in a row it has been there"),
    Metric("controller/skipped", "0 or 1", STEP, "1 if the measured entropy was not finite, so that the coefficient did not move"),
    Metric("control/KIND/NAME", "as the control's", "each step, with that control", "Numbers that an entropy control keeps for the next step ([algorithms.md](algorithms.md))"),
    Metric("control/entropy_budget/raised, control/entropy_budget/lowered", "nats per unit step", BUDGET, "By how much the policy loss would raise the mean entropy at some tokens and lower it at others; exact, over all tokens, in the units of `gradient/predicted_policy`"),
    Metric("control/entropy_budget/factor", "factor", BUDGET, "Factor on the tokens that lower the entropy"),
    Metric("control/entropy_budget/bonus", "nats per unit step", BUDGET, "By how much a bonus of coefficient 1 would raise the mean entropy"),
    Metric("gradient/policy, gradient/entropy", "norm", STEP, "Norm of each term's gradient with respect to the logits; the entropy's at coefficient 1"),
    Metric("gradient/bonus_share", "share", STEP, "The bonus's share of the gradient on the logits: `controller/bonus` x `gradient/entropy` / (that + `gradient/policy`)"),
    Metric("gradient/product", "product", STEP, "Scalar product of the two gradients, <dL, dH>; positive if the policy loss lowers the entropy"),
    Metric("gradient/predicted_policy, gradient/predicted_bonus", "nats per unit step", STEP, "Change of the mean entropy, to first order, if the logits took a step of length 1 against each term's gradient: -<dL, dH> and `controller/bonus` x ‖dH‖². Compare them with `entropy/change`, which differs by the optimizer's scale"),
    Metric("gradient/neutral_coefficient", "lambda", STEP, "Coefficient at which bonus and policy loss would not change the entropy, to first order (below)"),
    Metric("memory/rank_N_peak_gib", "GiB", "after the last step", "Most memory that rank N held (resident memory on a CPU, torch's allocator on a GPU), to be compared with the estimate of `--dry-run`. The policy is saved after that, so its saving is not included"),
    Metric("time/PHASE", "s", STEP, "Wall time of `sample`, `score`, `train` and `sync`, and of the step before: `record`, `evaluate`, `checkpoint` (written and hashed; only copied with `checkpoint.asynchronous`), `publish` (renamed)"),
    Metric("time/total", "s", STEP, "Wall time of the step: the sum of its phases"),
    Metric("time/trainer_busy, time/trainer_idle", "s", STEP, "Time in which the trainer's ranks computed or sent (`restore`, `score`, `train`, `sync`, `checkpoint`), and in which they waited; they sum to `time/total`"),
    Metric("time/engines_busy, time/engines_idle", "s", STEP, "Time in which an engine had requests to answer, mean over engines, and the rest of `time/total`"),
    Metric("time/trainer_idle_share, time/engines_idle_share", "share", STEP, "`time/trainer_idle` and `time/engines_idle` / `time/total`"),
    Metric("compute/tflop", "10^12 FLOPs", STEP, "Model FLOPs of the step's updates, all ranks together: forward and backward pass of every token once (three forward passes). They include only matrix products, and of attention only the pairs of tokens that attend to one another. A shared prompt counts once. Scoring and recomputation do not count"),
    Metric("compute/tflop_per_s", "10^12 FLOPs/s", STEP, "`compute/tflop` / `time/total`"),
    Metric("compute/peak_tflop_per_s", "10^12 FLOPs/s", PEAK, "What all ranks together compute at most: `profile.peak_tflops`, or measured by matrix products at the start (`profile.measure_peak`)"),
    Metric("compute/mfu", "share", PEAK, "Model FLOPs utilization of the whole step, idle time included: `compute/tflop_per_s` / `compute/peak_tflop_per_s`"),
    Metric("compute/train_mfu", "share", PEAK, "Model FLOPs utilization of the phase `train` alone"),
    Metric("compute/bubble_share", "share", "each step, with `trainer.pipeline_parallel` above 1", "Part of an update's forward and backward in which a rank waits for the tensors of another stage, measured; mean over ranks and updates. It includes the transfers themselves"),
    Metric("tokens/total", "tokens", STEP, "Tokens of the step, prompts included"),
    Metric("tokens/response", "tokens", STEP, "Response tokens of the step"),
    Metric("tokens/per_s", "tokens/s", STEP, "`tokens/total` / `time/total`"),
    Metric("engine/response_tokens_per_s, engine/prompt_tokens_per_s", "tokens/s", STEP, "Tokens that all engines wrote, and prompt tokens that they read (from the prefix cache too), per second in which an engine had requests; from vLLM's own counters, evaluations since the last step included"),
    Metric("engine/running, engine/waiting", "requests", "each step; not if sampling took under 0.25 s", "Requests being computed, and waiting, summed over engines; mean over samples taken while requests were in flight (the first after 0.25 s, then less often, at least every 5 s)"),
    Metric("engine/kv_use", "share", "each step; not if sampling took under 0.25 s", "Largest share of its key-value cache that an engine used in one of these samples"),
    Metric("engine/preemptions", "requests", STEP, "Requests that engines preempted because the cache was full"),
    Metric("engine/prefix_hit_share", "share", STEP, "Tokens looked up in the prefix cache that were found there"),
    Metric("system/NODE/...", "MLflow's", "every `tracking.system_metrics_every_s`", "Each machine of the run, with MLflow's names; the step is the number of the sample ([tracking.md](tracking.md))"),
    Metric("evaluation/accuracy, evaluation/standard_error", "share", TEXT, "Accuracy on the held-out questions, and its standard error; the step is the number of steps trained before it"),
    Metric("evaluation/length_mean", "tokens", TEXT, "Mean length of those answers"),
    Metric("evaluation/truncated_share", "share", TEXT, "Those answers that were cut off"),
    Metric("evaluation/judge_errors", "answers", TEXT, "Those answers on which a grader hung or raised an exception"),
    Metric("evaluation/grader/NAME/..., time/evaluation/grader/NAME", "as above", TEXT, "As `grader/NAME/...` and `time/grader/NAME`, of those answers"),
    Metric("evaluation/source/NAME/accuracy", "share", "each evaluation, with sources", "Accuracy on one source's held-out questions"),
    Metric("evaluation/source/NAME/grader/..., time/evaluation/source/NAME/grader/GRADER", "as above", "each evaluation, with sources", "As `grader/NAME/...` and `time/grader/NAME`, of that source's held-out questions"),
    Metric("evaluation/pass_at_K", "share", TEXT, "Probability that at least one of K answers to a question is right (reward 1): unbiased, from `evaluation.samples` answers to each question"),
    Metric("evaluation/SUITE/...", "as above", SUITES, "The same, of a suite"),
    Metric("suite/SUITE/pass_at_K, suite/SUITE/pass_at_K_low, suite/SUITE/pass_at_K_high", "share", "`aent eval`", "As `evaluation/pass_at_K`, with its 95% interval; in an MLflow run below the training run ([evaluation.md](evaluation.md))"),
    Metric("suite/SUITE/mean_reward", "reward", "`aent eval`", "Mean reward of the answers"),
    Metric("suite/SUITE/mean_length", "tokens", "`aent eval`", "Mean length of the answers"),
    Metric("suite/SUITE/truncated_share", "share", "`aent eval`", "Answers that were cut off"),
    Metric("suite/SUITE/judge_errors", "answers", "`aent eval`", "Answers on which a grader hung or raised an exception"),
)
# fmt: on

HEAD = """# What a run records

One value per step and metric (steps count from 0), written to `journal.jsonl` in the run's folder
and sent to MLflow. Means over tokens are over every response token of the step. `aent metrics
--markdown` writes this page; in a terminal, `aent metrics policy/entropy` explains one metric.
A word in capitals means any name.
"""

FOOT = """## How to read `gradient/`

The gradients' norms are measured exactly on one response token in sixteen (at most 64 of a
micro-batch) and scaled up to all tokens: an unbiased estimate of each squared norm, noisy if few
tokens carry most of the policy's gradient. The sample is drawn anew for each update. Over a step's
mini-batches the norms are root mean squares. (Measured with SmolLM2, 49,152 columns: 39 ms of one
core for a micro-batch of 128 response tokens, four of which make a step of 12 s.)

The norms are the sizes of the two gradients; `gradient/product` says whether they have the same
direction. At the neutral coefficient, <dL, dH> / ‖dH‖², plain gradient steps on the logits would
not change the entropy: below it, learning lowers the entropy; above it, the bonus raises it.
Numerator and denominator are averaged over updates (weight 0.9 on the past).

## How to read `entropy/change`

`entropy/change_same` and `entropy/change_other` are Oaxaca's decomposition. A class of tokens has
shares w, w' and mean entropies h, h' in the step before and in this one. The first part is the sum
over classes of (w + w') / 2 (h' - h), the second that of (h + h') / 2 (w' - w); together they are
the change. If answers become short, they lose words and keep digits: the entropy changes although
no token became more certain, and only the second part shows it.

Pages and tables of single responses, parameters and artifacts: [tracking.md](tracking.md). What the
controller does with these numbers: [controllers.md](controllers.md).
"""


def find(name: str) -> list[Metric]:
    """The row of a recorded metric's name, else the rows with a name that begins with it."""
    return [m for m in METRICS if m.matches(name)] or [
        m for m in METRICS if any(own.startswith(name) for own in m.names.split(", "))
    ]


def markdown() -> str:
    """``docs/metrics.md``."""
    rows = [
        f"| `{m.names.replace(', ', '`, `')}` | {m.unit} | {m.when} | {m.meaning} |"
        for m in METRICS
    ]
    head = "| metric | unit | recorded | meaning |\n|---|---|---|---|"
    return "\n".join([HEAD, head, *rows, "", FOOT])


def _pattern(name: str) -> str:
    """As a regular expression."""
    found = re.sub(r"[A-Z]+", "[^/]+", re.escape(name))
    return found.replace(re.escape("..."), ".+")
