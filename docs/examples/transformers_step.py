"""A plain transformers training step with a clamped-entropy bonus: python transformers_step.py

A tiny random model is pulled towards a fixed text by its log-probs, as a policy gradient with
advantage 1 would, while the bonus holds its entropy up.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from aent.entropy import token_statistics

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
    num_attention_heads=2,
)  # fmt: skip
model = LlamaForCausalLM(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
ids = torch.randint(0, 500, (4, 32))
coefficient = 0.5

for step in range(5):
    logits = model(ids).logits[:, :-1]
    stats = token_statistics(logits, ids[:, 1:])  # drop_fraction: the paper's .33
    advantages = torch.ones_like(stats.log_prob)
    policy_loss = -(advantages * stats.log_prob).mean()
    loss = policy_loss - coefficient * stats.clamped_entropy.mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: log-prob {stats.log_prob.mean():.3f}, ", end="")
    print(f"clamped entropy {stats.clamped_entropy.mean():.3f} nats")

# The same without ever holding the logits, for long sequences and large vocabularies:
#   hidden = model.model(ids).last_hidden_state[:, :-1]
#   stats = linear_token_statistics(hidden, model.lm_head.weight, ids[:, 1:])
