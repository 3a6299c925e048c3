"""The Triton kernels' numbers, through Triton's interpreter, against the float64 reference.

They are compiled too, for a GPU that is not there. The interpreter must be asked for before Triton
is imported (vLLM may have done that in this process), so the tests that need it run in a process of
their own, which the first one starts.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from aent.entropy import kernels, token_statistics
from aent.entropy.kernels import torch_path
from aent.entropy.kernels.interface import NO_CUT, Gradient, Sums
from entropy import reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
STYLES = ("normal", "wide", "grid", "constant", "one_hot", "tiny", "sorted")
full = pytest.mark.full


def fp32_first(*rest: object) -> list[object]:
    """Types x the rest: types other than fp32 only in `make test-all`."""
    others = [pytest.param(dtype, each, marks=full) for dtype in DTYPES[1:] for each in rest]
    return [*((torch.float32, each) for each in rest), *others]


FORWARD = [(torch.float32, style) for style in STYLES]
FORWARD += [(dtype, "grid") for dtype in DTYPES[1:]]
FORWARD += [pytest.param(dtype, "normal", marks=full) for dtype in DTYPES[1:]]


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
@pytest.mark.parametrize("chosen", ["not full", pytest.param("full", marks=full)])
def test_in_the_interpreter(chosen: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", f"not gpu and {chosen}", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(("given", "inner"), [("bf16", "fp32"), ("fp64", "fp64")])
def test_compiles_to_machine_code_of_a_gpu(
    given: str, inner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For Hopper (sm_90): the interpreter lets pass what the compiler does not."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from aent.entropy.kernels import triton_kernels, triton_path

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"x": f"*{given}", "target": "*i64"}
    types |= dict.fromkeys(["above", "inside", "columns", "cut", "missed"], "*i32")
    numbers = ["k", "stride", "out_stride", "width", "start", "rows", "pitch", "capacity"]
    types |= dict.fromkeys([*numbers, "first_rank", "last_rank"], "i32")
    dtype = torch.float64 if inner == "fp64" else torch.float32
    constants = {"BLOCK": 2048, "SAMPLE": 2048, "CAPACITY": 1024, "CLAMPED": True, "TARGET": True}
    constants |= {"SQUARES": True}
    constants |= triton_path._keys(dtype)
    for name in ("propose", "scan", "select", "search", "backward"):
        kernel = getattr(triton_kernels, f"{name}_kernel")
        out = inner if name == "propose" else given
        named = types | {"out": f"*{out}"} | dict.fromkeys(constants, "constexpr")
        signature = {a: named.get(a, f"*{inner}") for a in kernel.arg_names}
        values = {a: constants[a] for a in kernel.arg_names if a in constants}
        source = ASTSource(kernel, signature, values)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


@pytest.fixture(scope="module")
def triton_path() -> ModuleType:
    from aent.entropy.kernels import triton_path

    return triton_path


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dist.ProcessGroup]:
    """One rank is group enough for every round of the exchange."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


def kept(x: Tensor, threshold: Tensor, cut: Tensor, start: int = 0) -> Tensor:
    """The set that a threshold and a tie cut name, bool [N, width]."""
    wide, at = x.to(threshold.dtype), threshold[:, None]
    ids = torch.arange(start, start + x.shape[1])
    return (wide > at) | ((wide == at) & (ids <= cut[:, None]))


def expected_sums(x: Tensor, mask: Tensor, temperature: float) -> list[Tensor]:
    """The columns of Sums in float64, with the squares."""
    z = x.double()
    peak = z.amax(dim=1)
    d = (z - peak[:, None]) / temperature
    e = d.exp()
    ed = torch.where(e > 0, e * d, 0)
    squares = [(e * e).sum(1), (e * ed).sum(1), (ed * ed).sum(1)]
    return [peak, e.sum(1), ed.sum(1), (e * mask).sum(1), (ed * mask).sum(1), *squares]


def check_sums(sums: Sums, x: Tensor, mask: Tensor, temperature: float) -> None:
    tol = 1e-12 if x.dtype == torch.float64 else 5e-6
    for got, want in zip(sums.columns, expected_sums(x, mask, temperature)):
        torch.testing.assert_close(got.double(), want, rtol=tol, atol=tol)


@interpreted
@pytest.mark.parametrize(("dtype", "style"), FORWARD)
def test_forward(triton_path: ModuleType, dtype: torch.dtype, style: str) -> None:
    """Rows narrower and wider than the sample; rows whose interval misses, or is one long tie."""
    for width, k in ((3, 1), (400, 268), (400, 399), (2500, 1675)):
        x = reference.make_logits(2, width, dtype, style, style == "normal", seed=1)
        sums, threshold, cut = triton_path.forward(x, k, 0.7, squares=True)
        assert len(sums.columns) == 8
        mask = reference.kept_mask(x, k)
        assert torch.equal(kept(x, threshold, cut), mask), (width, k)
        assert sums.total.dtype == threshold.dtype
        assert cut.dtype == torch.int32
        check_sums(sums, x, mask, 0.7)


@interpreted
def test_rows_that_miss_are_searched(triton_path: ModuleType) -> None:
    """Columns that the sample's stride always meets, and never: every interval is wrong."""
    x = torch.randn(4, 6_144)
    x[:, ::3] += 100
    x[2:] *= -1
    for k in (500, 4_116):
        sums, threshold, cut = triton_path.forward(x, k, 1.0)
        mask = reference.kept_mask(x, k)
        assert torch.equal(kept(x, threshold, cut), mask), k
        check_sums(sums, x, mask, 1.0)


@interpreted
def test_broken_rows_spoil_themselves_alone(triton_path: ModuleType) -> None:
    x = torch.randn(4, 3000)
    good, *_ = triton_path.forward(x, 2000, 1.0)
    x[1, 17], x[2, 30] = math.nan, math.inf
    sums, *_ = triton_path.forward(x, 2000, 1.0)
    assert sums.total[1:3].isnan().all()
    for got, want in zip(sums.columns, good.columns):
        assert torch.equal(got[::3], want[::3])


@interpreted
def test_more_rows_than_a_block_of_rows(
    triton_path: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_path, "ROWS", 4)
    x = torch.randn(11, 20)
    sums, threshold, cut = triton_path.forward(x, 7, 1.0)
    mask = reference.kept_mask(x, 7)
    assert torch.equal(kept(x, threshold, cut), mask)
    check_sums(sums, x, mask, 1.0)
    alone, *_ = triton_path.forward(x[5:6], 7, 1.0)
    for got, want in zip(alone.columns, sums.columns):
        assert torch.equal(got, want[5:6])


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
def test_propose_and_scan(triton_path: ModuleType, dtype: torch.dtype) -> None:
    x = reference.make_logits(3, 5000, dtype, "grid", True, seed=2)
    high, low, largest, smallest = (
        triton_path.propose(x, 0.3) * torch.tensor([1, -1, 1, -1])[:, None]
    )
    wide = x.to(high.dtype)
    rank = (wide > high[:, None]).sum(1), (wide >= low[:, None]).sum(1)
    assert (rank[0] <= 1500).all()
    assert (rank[1] >= 1500).all()
    assert (largest <= wide.amax(1)).all()
    assert (smallest >= wide.masked_fill(x.isinf(), math.inf).amin(1)).all()

    inside = (wide >= low[:, None]) & (wide <= high[:, None])
    count = inside.sum(1)
    scan = triton_path.scan(x, 0.7, low, high, int(count.max()) - 1)  # one row has no room
    check_sums(scan.sums, x, wide > high[:, None], 0.7)
    assert torch.equal(scan.above, (wide > high[:, None]).sum(1).int())
    assert torch.equal(scan.inside, count.int())
    for row in (count < count.max()).nonzero()[:, 0].tolist():
        columns = inside[row].nonzero()[:, 0]
        assert torch.equal(scan.columns[row, : len(columns)], columns.int())
        assert torch.equal(scan.values[row, : len(columns)], wide[row, columns])

    plain = triton_path.scan(x, 0.7, None, None, 0).sums
    for got, want in zip(plain[:3], scan.sums):
        assert torch.equal(got, want)
    masked = triton_path.scan(torch.full_like(x, -math.inf), 1.0, low, high, 4).sums
    assert not any(s.any() for s in masked.columns[1:])  # of a shard whose tokens are all masked
    for few in (0, 20):
        assert (triton_path.propose(x[:, :few], 0.3) == -math.inf).all()


@interpreted
@pytest.mark.parametrize(
    ("dtype", "in_place"), [*fp32_first(True), *((dtype, False) for dtype in DTYPES)]
)
def test_backward(triton_path: ModuleType, dtype: torch.dtype, in_place: bool) -> None:
    """Padded rows at a stride; targets here and elsewhere; a cut among ties, in global ids."""
    start, width, temperature = 1000, 4100, 0.7
    padded = reference.make_logits(3, width + 28, dtype, "grid", True, seed=3)
    x = padded[:, :width]
    inner = torch.float64 if dtype == torch.float64 else torch.float32
    g = torch.Generator().manual_seed(0)
    a, b, kept_a, kept_b, g_target = torch.randn(5, 3, generator=g, dtype=inner)
    at = x.to(inner).median(dim=1).values
    cut = torch.tensor([start + 2000, NO_CUT, start - 1], dtype=torch.int32)
    column = torch.tensor([7, -1, width - 1])
    peak = x.to(inner).amax(dim=1) + 0.5  # another shard's

    mask = kept(x, at, cut, start)
    z = x.double()
    d = torch.where(z.isinf(), 0, (z - peak[:, None]) / temperature)
    e = torch.where(z.isinf(), 0, d.exp())
    want = e * (a + kept_a * mask.t() + (b + kept_b * mask.t()) * d.t()).t()
    for row in (0, 2):
        want[row, column[row]] += g_target[row]

    out = padded.clone() if not in_place else padded
    gradient = Gradient(peak, a, b, kept_a, kept_b, at, cut, column, g_target)
    triton_path.backward(x, out[:, :width], gradient, temperature, start)
    tol = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}.get(dtype, 1e-12)
    torch.testing.assert_close(out[:, :width].double(), want, rtol=tol, atol=tol)

    rest = Gradient(peak, a, b, None, None, None, None, None, None)
    other = torch.empty_like(out)
    triton_path.backward(padded[:, :0] if in_place else x, other[:, :width], rest, temperature, 0)
    if not in_place:
        plain = e * (a[:, None] + b[:, None] * d)
        torch.testing.assert_close(other[:, :width].double(), plain, rtol=tol, atol=tol)


@interpreted
@pytest.mark.parametrize(
    ("dtype", "sharded"),
    [
        (torch.float32, False),
        (torch.float32, True),
        (torch.bfloat16, False),
        (torch.float64, False),
        pytest.param(torch.bfloat16, True, marks=full),
        pytest.param(torch.float64, True, marks=full),
    ],
)
def test_token_statistics(
    triton_path: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    group: dist.ProcessGroup,
    dtype: torch.dtype,
    sharded: bool,
) -> None:
    """The whole function with these kernels, on one rank and with the rounds over ranks."""
    monkeypatch.setattr(kernels, "choose", lambda x: triton_path)
    vocab, columns = 700, 720
    targets = torch.tensor([3, 699, 0])
    weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(4))
    tol = 1e-11 if dtype == torch.float64 else 2e-5
    for style, k in (("normal", 470), ("grid", 470), ("sorted", 20), ("tiny", 700)):
        logits = torch.full((3, columns), 9.0, dtype=dtype)
        logits[:, :vocab] = reference.make_logits(3, vocab, dtype, style, False, seed=5)
        problem = (logits, targets, 0.8, k, vocab)
        leaf = logits.clone().requires_grad_()
        stats = token_statistics(
            leaf, targets, 0.8, top_k=k, vocab_size=vocab, tp_group=group if sharded else None,
            slopes=True,
        )  # fmt: skip
        terms = (stats.log_prob, stats.entropy, stats.clamped_entropy)
        sum((w * t).sum() for w, t in zip(weights, terms, strict=True)).backward()
        slopes = reference.slopes(logits, targets, 0.8, vocab)
        found = (*terms, stats.kept_mass, stats.covariance, stats.entropy_slope)
        for got, want in zip(found, (*reference.statistics(*problem), *slopes), strict=True):
            torch.testing.assert_close(got.double(), want, rtol=tol, atol=tol)
        assert leaf.grad is not None
        gradient = reference.gradient(*problem, weights)
        rounding = max(tol, {torch.bfloat16: 1e-2}.get(dtype, 0))
        torch.testing.assert_close(leaf.grad.double(), gradient, rtol=rounding, atol=rounding)


@interpreted
@pytest.mark.parametrize(
    ("dtype", "where"),
    [*((dtype, "scattered") for dtype in DTYPES), *fp32_first("leading", "all but one")],
)
def test_a_finite_mask_is_no_token(
    triton_path: ModuleType, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, where: str
) -> None:
    """finfo.min, as many attention masks have it: less the peak, or over T < 1, it is -inf. In
    whole blocks before the first real logit it is the peak for a while."""
    monkeypatch.setattr(kernels, "choose", lambda x: triton_path)
    width = triton_path.BLOCK + 500
    logits = reference.make_logits(2, width, dtype, "normal", False, seed=6)
    masked = torch.rand(2, width, generator=torch.Generator().manual_seed(7)) < 0.5
    if where == "leading":
        masked = (torch.arange(width) < triton_path.BLOCK + 100).expand(2, width)
    elif where == "all but one":
        masked = (torch.arange(width) != width - 3).expand(2, width)
    finite, infinite = (
        logits.masked_fill(masked, value).requires_grad_()
        for value in (torch.finfo(dtype).min, -math.inf)
    )
    targets = torch.full((2,), width - 3)
    masked_targets = targets.masked_fill(masked[:, width - 3], 0)
    results = []
    for leaf in (finite, infinite):
        stats = token_statistics(leaf, masked_targets, 0.5, top_k=300)
        terms = stats.log_prob, stats.entropy, stats.clamped_entropy, stats.kept_mass
        unmasked = stats.log_prob[~masked.gather(1, masked_targets[:, None])[:, 0]]
        (unmasked.sum() + stats.entropy.sum() - stats.clamped_entropy.sum()).backward()
        assert leaf.grad is not None
        results.append((terms[1:], unmasked, leaf.grad))
    assert all(term.isfinite().all() for term in results[0][0])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_as_by_torch_operations(
    triton_path: ModuleType, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    g = torch.Generator("cuda").manual_seed(0)
    logits = (3 * torch.randn(64, 151_936, generator=g, device="cuda")).to(dtype)
    targets = torch.randint(0, 151_900, (64,), generator=g, device="cuda")
    results = []
    for backend in (torch_path, triton_path):
        monkeypatch.setattr(kernels, "choose", lambda x, chosen=backend: chosen)
        leaf = logits.clone().requires_grad_()
        stats = token_statistics(leaf, targets, 0.8, vocab_size=151_900, slopes=True)
        (stats.log_prob + 0.7 * stats.entropy - 1.3 * stats.clamped_entropy).sum().backward()
        assert leaf.grad is not None
        terms = stats.log_prob, stats.entropy, stats.clamped_entropy, stats.kept_mass
        slopes = stats.covariance, stats.entropy_slope
        results.append([*(t.detach() for t in terms), *slopes, leaf.grad.float()])
    for by_triton, by_torch in zip(results[1], results[0]):
        tol = 1e-2 if dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(by_triton, by_torch, rtol=tol, atol=1e-6)
