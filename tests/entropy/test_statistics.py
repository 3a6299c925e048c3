"""token_statistics on one rank, against the float64 reference."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aent.entropy import TokenStatistics, kernels, selection, token_statistics
from aent.entropy.kernels import c_path
from aent.entropy.kernels.torch_path import kept_mask
from aent.entropy.rows import forward_rows
from aent.entropy.shard import VocabShard
from entropy import reference
from wording import naming


def variants() -> list[str]:
    """The backends that can run on this processor."""
    return ["torch", *list(c_path.build.VARIANTS)[list(c_path.build.VARIANTS).index(BEST) :]]


BEST = c_path.best_variant()
BACKENDS = variants()


def kept_set(logits: Tensor, k: int) -> Tensor:
    """The set that the statistics of logits [N, V] are of: bool [N, V]."""
    targets = torch.zeros(len(logits), dtype=torch.int64)
    *_, saved = forward_rows(logits, targets, 1.0, k, VocabShard(0, *[logits.shape[1]] * 2, None))
    if saved.threshold is None or saved.cut is None:
        return torch.ones_like(logits, dtype=torch.bool)
    return kept_mask(logits.to(saved.threshold.dtype), saved.threshold, saved.cut, 0).bool()


def tolerance(dtype: torch.dtype) -> float:
    return 1e-11 if dtype == torch.float64 else 2e-5


def check_against_reference(
    logits: Tensor, targets: Tensor, temperature: float, k: int, vocab: int, stats: TokenStatistics
) -> None:
    expected = reference.statistics(logits, targets, temperature, k, vocab)
    tol = tolerance(logits.dtype)
    for name, want in zip(("log_prob", "entropy", "clamped_entropy", "kept_mass"), expected):
        got = getattr(stats, name)
        assert got.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(got.detach().double(), want, rtol=tol, atol=tol, msg=name)
    slopes = reference.slopes(logits, targets, temperature, vocab)
    for name, want in zip(("covariance", "entropy_slope"), slopes):
        got = getattr(stats, name)
        assert got.dtype == stats.entropy.dtype
        assert not got.requires_grad
        torch.testing.assert_close(got.double(), want, rtol=tol, atol=tol, msg=name)
    assert (stats.entropy >= 0).all()
    assert (stats.clamped_entropy >= 0).all()


@settings(max_examples=150)
@given(backend=st.sampled_from(BACKENDS), data=st.data())
def test_values_gradients_and_set_equal_the_reference(backend: str, data: st.DataObject) -> None:
    with kernels.using(backend):
        check_an_example(data)


def check_an_example(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.double]))
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 400))
    vocab = data.draw(st.integers(1, columns))
    k = data.draw(st.one_of(st.just(1), st.just(vocab), st.integers(1, vocab)))
    temperature = data.draw(st.sampled_from([1.0, 0.7, 1.6]))
    style = data.draw(
        st.sampled_from(["normal", "wide", "grid", "constant", "one_hot", "tiny", "sorted"])
    )
    seed = data.draw(st.integers(0, 10**6))
    logits = reference.make_logits(rows, columns, dtype, style, False, seed)
    logits[:, :vocab] = reference.make_logits(
        rows, vocab, dtype, style, data.draw(st.booleans()), seed
    )
    logits.requires_grad_()
    # a target with a finite log-prob: its -inf would be right, and its gradient undefined
    targets = logits.detach()[:, :vocab].double().argmax(dim=1)
    if not logits.isinf().any():
        targets = torch.randint(0, vocab, (rows,), generator=torch.Generator().manual_seed(seed))

    settings = {"top_k": k, "vocab_size": vocab}
    stats = token_statistics(logits, targets, temperature, slopes=True, **settings)
    check_against_reference(logits, targets, temperature, k, vocab, stats)

    weights = torch.randn(3, rows, generator=torch.Generator().manual_seed(seed + 1))
    terms = (stats.log_prob, stats.entropy, stats.clamped_entropy)
    sum((w * t).sum() for w, t in zip(weights, terms, strict=True)).backward()
    want = reference.gradient(logits, targets, temperature, k, vocab, weights)
    plain = token_statistics(logits, targets, temperature, **settings)
    assert plain.covariance is plain.entropy_slope is None
    tol = tolerance(dtype)
    for name in ("log_prob", "entropy", "clamped_entropy", "kept_mass"):
        torch.testing.assert_close(getattr(plain, name), getattr(stats, name), rtol=tol, atol=tol)
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    rounding = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(dtype, tolerance(dtype))
    torch.testing.assert_close(logits.grad.double(), want, rtol=rounding, atol=rounding)
    assert (logits.grad[:, vocab:] == 0).all()

    real = logits.detach()[:, :vocab]
    assert torch.equal(kept_set(real, k), reference.kept_mask(real, k))


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        *((backend, dtype) for backend in BACKENDS for dtype in (torch.float32, torch.bfloat16)),
        ("torch", torch.float64),
    ],
)
@pytest.mark.parametrize("style", ["normal", "grid", "sorted", "wide", "tiny", "one_hot"])
def test_set_of_a_real_vocabulary(style: str, dtype: torch.dtype, backend: str) -> None:
    """Wide enough for the sampled bracket and its candidates to do the work."""
    vocab = 20_000
    logits = reference.make_logits(6, vocab, dtype, style, style == "normal", 1)
    for k in (1, 2, 50, 13_400, vocab - 1, vocab):
        with kernels.using(backend):
            assert torch.equal(kept_set(logits, k), reference.kept_mask(logits, k)), k


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_that_misleads_leaves_the_set_exact(backend: str) -> None:
    """Columns that the sample never or always meets: every bracket is wrong."""
    vocab = 20_480
    logits = torch.randn(4, vocab)
    if backend == "torch":  # it takes every fifth
        logits[:, ::5] += 100
    else:  # runs of 16 neighbors, 512 of them evenly spread
        starts = torch.arange(512) * (vocab - 16) // 511
        logits[:, (starts[:, None] + torch.arange(16)).flatten()] += 100
    logits[2:] *= -1
    for k in (1000, 2048, 5000, 10_000, 13_722):
        with kernels.using(backend):
            mask = kept_set(logits, k)
        assert torch.equal(mask, reference.kept_mask(logits, k)), k


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("k", [1, 4, 7])
def test_gradcheck(temperature: float, k: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, 6])

    def terms(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = token_statistics(x, targets, temperature, top_k=k, vocab_size=7)
        return s.log_prob, s.entropy, s.clamped_entropy

    assert torch.autograd.gradcheck(terms, (logits,), atol=1e-8)


def test_keeping_one_token_has_no_entropy_and_no_gradient() -> None:
    logits = torch.cat([torch.randn(3, 50), torch.zeros(1, 50), torch.full((1, 50), 1e4)])
    logits.requires_grad_()
    stats = token_statistics(logits, torch.zeros(5, dtype=torch.int64), 0.8, top_k=1)
    stats.clamped_entropy.sum().backward()
    assert (stats.clamped_entropy == 0).all()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_without_clamping_the_clamped_entropy_is_the_entropy() -> None:
    logits, targets = torch.randn(4, 100), torch.zeros(4, dtype=torch.int64)
    grads = []
    for arguments in ({"drop_fraction": None}, {"drop_fraction": 0.0}, {"top_k": 100}):
        leaf = logits.clone().requires_grad_()
        stats = token_statistics(leaf, targets, **arguments)
        assert torch.equal(stats.clamped_entropy, stats.entropy)
        assert (stats.kept_mass == 1).all()
        (grad,) = torch.autograd.grad(stats.clamped_entropy.sum(), leaf, retain_graph=True)
        assert torch.equal(grad, torch.autograd.grad(stats.entropy.sum(), leaf)[0])
        grads.append(grad)
    assert torch.equal(grads[0], grads[2])


def test_the_default_drops_a_third() -> None:
    logits, targets = torch.randn(2, 101), torch.zeros(2, dtype=torch.int64)
    by_default = token_statistics(logits, targets).clamped_entropy
    kept = token_statistics(logits, targets, drop_fraction=None, top_k=101 - 33).clamped_entropy
    assert torch.equal(by_default, kept)
    assert not torch.equal(by_default, token_statistics(logits, targets, top_k=60).clamped_entropy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_slopes_of_rows_without_any(backend: str) -> None:
    """No step changes the entropy of uniform rows and of certain rows. The covariance is NaN for a
    target outside the vocabulary and 0 for an ignored one; a masked token takes no part."""
    logits = torch.zeros(5, 3000)
    logits[1, 7], logits[2, 7], logits[3, 5] = 1e4, 200.0, -torch.inf
    targets = torch.tensor([5, 7, 5, 5, -1])
    with kernels.using(backend):
        stats = token_statistics(logits, targets, slopes=True, ignore_index=-1)
        unowned = token_statistics(logits[:1], torch.tensor([3000]), slopes=True)
    assert stats.covariance is not None
    assert stats.entropy_slope is not None
    torch.testing.assert_close(stats.covariance, torch.zeros(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(stats.entropy_slope, torch.zeros(5), rtol=0, atol=1e-6)
    assert stats.covariance[4] == 0
    assert (stats.entropy_slope >= 0).all()
    assert unowned.covariance is not None
    assert unowned.covariance.isnan().all()


def test_near_deterministic_rows_stay_at_or_above_zero() -> None:
    logits = torch.randn(200, 500)
    logits[:, 3] += torch.linspace(0, 200, 200)
    leaf = logits.clone().requires_grad_()
    stats = token_statistics(leaf, torch.full((200,), 3))
    (stats.entropy + stats.clamped_entropy + stats.log_prob).sum().backward()
    assert (stats.entropy >= 0).all()
    assert (stats.clamped_entropy >= 0).all()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_do_not_depend_on_their_company(dtype: torch.dtype, backend: str) -> None:
    """Permuting or splitting the rows changes no bit, of values or gradients."""
    with kernels.using(backend):
        check_company(dtype)


def check_company(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(37, 30_000) * 3).to(dtype)
    targets = torch.randint(0, 30_000, (37,))

    def run(rows: Tensor) -> list[Tensor]:
        leaf = logits[rows].requires_grad_()
        s = token_statistics(leaf, targets[rows], 0.9)
        (s.log_prob + 0.1 * s.entropy - 0.2 * s.clamped_entropy).sum().backward()
        assert leaf.grad is not None
        terms = [s.log_prob, s.entropy, s.clamped_entropy, s.kept_mass, leaf.grad]
        return [t.detach() for t in terms]

    whole = run(torch.arange(37))
    order = torch.randperm(37)
    for piece in (order, *order.split([1, 2, 17, 1, 16])):
        for together, apart in zip(whole, run(piece)):
            assert torch.equal(together[piece], apart)


def test_no_graph_without_gradient_and_little_kept_with_it() -> None:
    logits = torch.randn(8, 300, requires_grad=True)
    targets = torch.zeros(8, dtype=torch.int64)
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        with torch.no_grad():
            assert not token_statistics(logits, targets).log_prob.requires_grad
        assert not token_statistics(logits.detach(), targets).clamped_entropy.requires_grad
        assert kept == []
        stats = token_statistics(logits, targets)
    assert stats.clamped_entropy.requires_grad
    assert not stats.kept_mass.requires_grad
    assert sum(t.numel() for t in kept if t.data_ptr() != logits.data_ptr()) <= 10 * 8


class Sizes(TorchDispatchMode):
    """The largest tensor that operations make, in bytes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, Tensor) and func.namespace == "aten" and "empty" in str(func):
                self.largest = max(self.largest, made.numel() * made.element_size())
        return result


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_of_the_logits_size_is_made(backend: str) -> None:
    """A slice's buffers at most; in place, the gradient is the logits' own storage."""
    rows, vocab = 400, 20_000
    logits = torch.randn(rows, vocab, requires_grad=True)
    targets = torch.zeros(rows, dtype=torch.int64)
    want = torch.autograd.grad(token_statistics(logits, targets).clamped_entropy.sum(), logits)[0]
    leaf = logits.detach().clone().requires_grad_()
    with kernels.using(backend), Sizes() as sizes:
        stats = token_statistics(leaf, targets, inplace_backward=True)
        total = stats.clamped_entropy.sum()
        (grad,) = torch.autograd.grad(total, leaf, retain_graph=True)
    assert sizes.largest <= 4 * 4 * selection.CHUNK_ELEMENTS + 4 * rows
    if backend != "torch":
        assert sizes.largest <= 5 * 4 * rows
    assert grad.data_ptr() == leaf.data_ptr()
    torch.testing.assert_close(grad, want, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="inplace_backward"):
        torch.autograd.grad(total, leaf)


def test_in_place_gradient_objects_where_another_backward_reads_the_logits() -> None:
    leaf = torch.randn(3, 2000, requires_grad=True)
    logits = leaf.tanh()  # keeps its result for its own backward
    stats = token_statistics(logits, torch.zeros(3, dtype=torch.int64), inplace_backward=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stats.log_prob.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_rows_are_counted_and_named(backend: str) -> None:
    logits, targets = torch.randn(5, 3000), torch.zeros(5, dtype=torch.int64)
    with kernels.using(backend):
        assert int(token_statistics(logits, targets).invalid_rows) == 0
        logits[1, 700], logits[3, 2999], logits[4] = torch.nan, torch.inf, -torch.inf
        assert int(token_statistics(logits, targets).invalid_rows) == 3
        with pytest.raises(ValueError, match=naming("logits", "row 1", "NaN")):
            token_statistics(logits, targets, raise_on_invalid=True)


def test_gradient_of_log_prob_alone_is_that_of_cross_entropy() -> None:
    logits = torch.randn(2, 3, 200, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 200, (2, 3))
    stats = token_statistics(logits, targets)
    assert stats.log_prob.shape == (2, 3)
    (ours,) = torch.autograd.grad(-stats.log_prob.sum(), logits)
    loss = torch.nn.functional.cross_entropy(logits.view(6, 200), targets.view(6), reduction="sum")
    torch.testing.assert_close(ours, torch.autograd.grad(loss, logits)[0])


def test_no_rows_at_all() -> None:
    logits = torch.randn(0, 50, requires_grad=True)
    stats = token_statistics(logits, torch.zeros(0, dtype=torch.int64))
    stats.clamped_entropy.sum().backward()
    assert logits.grad is not None
    assert logits.grad.shape == (0, 50)


def test_logits_that_are_not_contiguous() -> None:
    logits, targets = torch.randn(60, 4, 5), torch.zeros(4, 5, dtype=torch.int64)
    view = logits.permute(1, 2, 0).requires_grad_()
    grads: list[Tensor] = []
    for leaf in (view, view.detach().contiguous().requires_grad_()):
        stats = token_statistics(leaf, targets)
        grads += torch.autograd.grad(stats.clamped_entropy.sum() + stats.log_prob.sum(), leaf)
    torch.testing.assert_close(grads[0], grads[1])


def test_importing_the_package_needs_torch_alone() -> None:
    """Besides torch's own imports, aent.entropy only imports the package itself."""
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import aent.entropy, aent.entropy.controllers\n"
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}"
        " - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("['aent']", "['aent', 'torch']")


def test_backward_computes_only_what_has_a_gradient() -> None:
    """Only clamped entropy takes a mask (ge), and only log-prob looks at the targets."""

    class Operations(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    # float64: the path of torch operations, which can be watched
    logits = torch.randn(3, 100, dtype=torch.float64, requires_grad=True)
    used = {}
    for name in ("log_prob", "entropy", "clamped_entropy"):
        total = getattr(token_statistics(logits, torch.zeros(3, dtype=torch.int64)), name).sum()
        with Operations() as operations:
            torch.autograd.grad(total, logits)
        used[name] = set(operations.names)
    assert not used["entropy"] & {"scatter_add_"}
    assert "scatter_add_" in used["log_prob"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_row_spoils_only_itself(bad: float, backend: str) -> None:
    logits, targets = torch.randn(4, 5000), torch.zeros(4, dtype=torch.int64)
    broken = logits.clone()
    broken[1, 17], broken[2] = bad, -torch.inf
    good = [0, 3]
    with kernels.using(backend):
        want, got = token_statistics(logits, targets), token_statistics(broken, targets)
    for name in ("log_prob", "entropy", "clamped_entropy", "kept_mass"):
        assert getattr(got, name)[1:3].isnan().all()
        assert torch.equal(getattr(got, name)[good], getattr(want, name)[good])
