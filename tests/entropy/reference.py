"""The clamped entropy computed directly, in float64, over the whole vocabulary; test data."""

from __future__ import annotations

import torch
from torch import Tensor


def kept_mask(logits: Tensor, k: int) -> Tensor:
    """The k largest logits of each row, lower ids first among equals: bool [N, V]."""
    raw = logits.detach().double() + 0.0  # + 0.0 turns -0.0 into 0.0
    order = raw.sort(dim=1, descending=True, stable=True).indices  # equals stay in order of id
    return torch.zeros_like(raw, dtype=torch.bool).scatter_(1, order[:, :k], True)


def statistics(
    logits: Tensor, targets: Tensor, temperature: float, k: int, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log_prob, entropy, clamped_entropy, kept_mass, each float64 [N]; logits [N, columns]."""
    real = logits[:, :vocab_size]
    mask = kept_mask(real, k)
    z = real.double() / temperature
    log_p = z.log_softmax(dim=1)
    log_q = z.masked_fill(~mask, -torch.inf).log_softmax(dim=1)

    def entropy(log_probs: Tensor) -> Tensor:
        possible = log_probs > -torch.inf  # 0 log 0 = 0, in the gradient too
        return -torch.where(possible, log_probs.exp() * log_probs.where(possible, 0), 0).sum(dim=1)

    log_prob = log_p.gather(1, targets[:, None]).squeeze(1)
    mass = (log_p.exp() * mask).sum(dim=1)
    return log_prob, entropy(log_p), entropy(log_q), mass


def slopes(
    logits: Tensor, targets: Tensor, temperature: float, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """<d log_prob, d entropy> and ||d entropy||^2 by the tempered logits, from autograd's two
    gradients; float64 [N]."""
    z = (logits.detach()[:, :vocab_size].double() / temperature).requires_grad_()
    log_prob, entropy, *_ = statistics(z, targets, 1.0, vocab_size, vocab_size)
    of_log_prob, of_entropy = (
        torch.autograd.grad(value.sum(), z, retain_graph=True)[0] for value in (log_prob, entropy)
    )
    return (of_log_prob * of_entropy).sum(dim=1), of_entropy.square().sum(dim=1)


def gradient(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    k: int,
    vocab_size: int,
    weights: Tensor,
) -> Tensor:
    """Gradient, float64 [N, columns], of the sum of weights [3, N] times the first three."""
    leaf = logits.detach().double().requires_grad_()
    terms = statistics(leaf, targets, temperature, k, vocab_size)[:3]
    sum((w * t).sum() for w, t in zip(weights.double(), terms, strict=True)).backward()
    assert leaf.grad is not None
    return leaf.grad


def make_logits(
    rows: int, vocab: int, dtype: torch.dtype, style: str, masked: bool, seed: int
) -> Tensor:
    """Logits of the kinds that break selections; every row keeps one finite logit."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, vocab, generator=g, dtype=torch.float64)
    if style == "wide":
        x = x * torch.tensor([1.0, 50.0, 3000.0])[torch.randint(0, 3, (rows, 1), generator=g)]
    elif style == "grid":  # many ties, zeros of both signs among them
        x = (x * 2).round() / 2
    elif style == "constant":
        x = x[:, :1].expand(rows, vocab).clone()
    elif style == "one_hot":
        x = torch.zeros_like(x)
        x[torch.arange(rows), torch.randint(0, vocab, (rows,), generator=g)] = 1e4
    elif style == "tiny":  # logits within a few units in the last place of one another
        x = 1 + x * 3 * torch.finfo(dtype).eps
    elif style == "sorted":  # neighbors are correlated: samples and shards differ from the whole
        x = x.sort(dim=1).values
    if masked:
        hide = torch.rand(rows, vocab, generator=g) < 0.3
        hide[torch.arange(rows), torch.randint(0, vocab, (rows,), generator=g)] = False
        x[hide] = -torch.inf
    return x.to(dtype)
