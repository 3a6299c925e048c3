"""The Triton kernels behind ``triton_path``: one program per row, independent of other rows.

Numbers are compared as numbers (so -0.0 equals 0.0). They are selected as unsigned integers in the
same order, by fixing the bits of the k-th largest from the top: one count per bit, for any
distribution. Loops run a fixed number of times, so they also end for NaN and inf.

``inner`` is fp32, float64 for float64: the element type of ``sums``. ``scale`` points to 1 / T of
that type, since Triton passes Python floats as fp32.
"""

import triton
import triton.language as tl

NEVER = tl.constexpr(2**31 - 1)  # the tie cut of a row whose ties are all kept: NO_CUT
# torch_path's: a finite mask (finfo.min) less a peak is -inf, and 0 * -inf NaN
LOWEST = tl.constexpr(-1000.0)


@triton.jit
def ordered(v, SIGN: tl.constexpr, UNSIGNED: tl.constexpr):
    """Map numbers to unsigned integers in the same order; -0.0 gets the integer of 0.0."""
    bits = tl.where(v == 0, 0.0, v).to(UNSIGNED, bitcast=True)
    # not ~bits: triton 3.7's interpreter fails at it with numpy 2
    return tl.where(bits >= SIGN, bits ^ (2 * SIGN - 1), bits | SIGN)


@triton.jit
def number(key, SIGN: tl.constexpr, FLOAT: tl.constexpr):
    """Undo ``ordered``."""
    return tl.where(key >= SIGN, key ^ SIGN, key ^ (2 * SIGN - 1)).to(FLOAT, bitcast=True)


@triton.jit
def largest(keys, rank, BITS: tl.constexpr):
    """The rank-th (from 1) largest of the keys; absent entries have key 0."""
    one = tl.full([], 1, keys.dtype)
    found = tl.full([], 0, keys.dtype)
    for i in range(BITS):
        tried = found | (one << (BITS - 1 - i))
        found = tl.where(tl.sum((keys >= tried).to(tl.int32), 0) >= rank, tried, found)
    return found


@triton.jit
def bounded(d):
    """LOWEST at least; a NaN stays one, which tl.maximum would not leave."""
    return tl.where(d < LOWEST, LOWEST, d)


@triton.jit
def weights(v, peak, scale):
    """d and e of numbers; a masked one (-inf) weighs 0 with 0 log 0 = 0, a NaN stays one."""
    masked = v == float("-inf")
    d = tl.where(masked, 0.0, bounded((v - peak) * scale))
    return d, tl.where(masked, 0.0, tl.exp(d))


@triton.jit
def propose_kernel(
    x, stride, width, first_rank, last_rank, out, rows,
    SAMPLE: tl.constexpr, BITS: tl.constexpr, SIGN: tl.constexpr, UNSIGNED: tl.constexpr,
):  # fmt: skip
    """high, -low, and the sample's largest and negated smallest finite numbers: out [4, rows].

    high and low are the first_rank-th and the last_rank-th largest of the sample; where     there
    is no such rank, no bound.
    """
    row = tl.program_id(0).to(tl.int64)
    FLOAT: tl.constexpr = out.dtype.element_ty
    size = tl.minimum(width, SAMPLE)
    lane = tl.arange(0, SAMPLE)
    column = lane.to(tl.int64) * width // size
    there = lane < size
    v = tl.load(x + row * stride + column, mask=there, other=float("-inf")).to(FLOAT)
    keys = tl.where(there, ordered(v, SIGN, UNSIGNED), 0)
    high = tl.full([], float("inf"), FLOAT)
    low = tl.full([], float("-inf"), FLOAT)
    if first_rank >= 1:
        high = number(largest(keys, first_rank, BITS), SIGN, FLOAT)
    if last_rank <= size:
        low = number(largest(keys, last_rank, BITS), SIGN, FLOAT)
    finite = there & (v > float("-inf")) & (v < float("inf"))
    tl.store(out + row, high)
    tl.store(out + rows + row, -low)
    tl.store(out + 2 * rows + row, tl.max(tl.where(finite, v, float("-inf")), 0))
    tl.store(out + 3 * rows + row, tl.max(tl.where(finite, -v, float("-inf")), 0))


@triton.jit
def scan_kernel(
    x, stride, width, scale, low, high, sums, pitch, above, inside, values, columns, capacity,
    CLAMPED: tl.constexpr, SQUARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One read of the row: its peak and sums into sums [5, pitch] (8 with SQUARES: then of e^2,
    e^2 d and e^2 d^2 as well), how many numbers lie above
    ``high`` and inside [low, high] into above and inside, the latter's numbers and columns, in
    order, into values and columns [rows, capacity].

    The peak is the largest number so far: where it moves, the sums move along. Sums are BLOCK
    separate ones until the end, of width / BLOCK numbers each.
    """
    row = tl.program_id(0).to(tl.int64)
    x += row * stride
    FLOAT: tl.constexpr = sums.dtype.element_ty
    inverse = tl.load(scale)
    lane = tl.arange(0, BLOCK)
    peak = tl.full([], float("-inf"), FLOAT)
    total = tl.zeros([BLOCK], FLOAT)
    weighted = tl.zeros([BLOCK], FLOAT)
    if SQUARES:
        square = tl.zeros([BLOCK], FLOAT)
        square_d = tl.zeros([BLOCK], FLOAT)
        square_dd = tl.zeros([BLOCK], FLOAT)
    if CLAMPED:
        kept_total = tl.zeros([BLOCK], FLOAT)
        kept_weighted = tl.zeros([BLOCK], FLOAT)
        larger = tl.zeros([BLOCK], tl.int32)
        found = tl.full([], 0, tl.int32)
        lowest = tl.load(low + row)
        highest = tl.load(high + row)
    for first in range(0, width, BLOCK):
        there = first + lane < width
        v = tl.load(x + first + lane, mask=there, other=float("-inf")).to(FLOAT)
        now = tl.maximum(peak, tl.max(v, 0))
        grows = (now > peak) & (peak > float("-inf"))
        move = tl.where(grows, bounded((peak - now) * inverse), 0.0)
        factor = tl.exp(move)
        d, e = weights(v, now, inverse)
        weighted = (weighted + total * move) * factor + e * d
        total = total * factor + e
        if SQUARES:
            again = factor * factor
            moved = square_dd + move * (2 * square_d + move * square)
            square_dd = moved * again + e * e * d * d
            square_d = (square_d + move * square) * again + e * e * d
            square = square * again + e * e
        if CLAMPED:
            is_above = there & (v > highest)
            kept_weighted = (kept_weighted + kept_total * move) * factor
            kept_weighted += tl.where(is_above, e * d, 0.0)
            kept_total = kept_total * factor + tl.where(is_above, e, 0.0)
            larger += is_above.to(tl.int32)
            within = (there & (v >= lowest) & (v <= highest)).to(tl.int32)
            place = found + tl.cumsum(within, 0) - 1
            store = (within > 0) & (place < capacity)
            tl.store(values + row * capacity + place, v, mask=store)
            tl.store(columns + row * capacity + place, first + lane, mask=store)
            found += tl.sum(within, 0)
        peak = now
    tl.store(sums + row, peak)
    tl.store(sums + pitch + row, tl.sum(total, 0))
    tl.store(sums + 2 * pitch + row, tl.sum(weighted, 0))
    if SQUARES:
        tl.store(sums + 5 * pitch + row, tl.sum(square, 0))
        tl.store(sums + 6 * pitch + row, tl.sum(square_d, 0))
        tl.store(sums + 7 * pitch + row, tl.sum(square_dd, 0))
    if CLAMPED:
        tl.store(sums + 3 * pitch + row, tl.sum(kept_total, 0))
        tl.store(sums + 4 * pitch + row, tl.sum(kept_weighted, 0))
        tl.store(above + row, tl.sum(larger, 0))
        tl.store(inside + row, found)


@triton.jit
def select_kernel(
    k, scale, sums, pitch, above, inside, values, columns, threshold, cut, missed,
    CAPACITY: tl.constexpr, BITS: tl.constexpr, SIGN: tl.constexpr, UNSIGNED: tl.constexpr,
):  # fmt: skip
    """The k-th largest number of the row, from what its scan found inside the interval: threshold
    and cut, and the kept sums made whole. ``missed`` is 1 where the interval does not hold it, or
    holds more than there is room for."""
    row = tl.program_id(0).to(tl.int64)
    FLOAT: tl.constexpr = sums.dtype.element_ty
    rank = k - tl.load(above + row)
    found = tl.load(inside + row)
    hit = (rank >= 1) & (rank <= found) & (found <= CAPACITY)
    tl.store(missed + row, 1 - hit.to(tl.int32))
    if hit:
        lane = tl.arange(0, CAPACITY)
        there = lane < found
        v = tl.load(values + row * CAPACITY + lane, mask=there, other=float("-inf"))
        column = tl.load(columns + row * CAPACITY + lane, mask=there, other=0)
        keys = tl.where(there, ordered(v, SIGN, UNSIGNED), 0)
        key = largest(keys, rank, BITS)
        tie = there & (keys == key)
        wanted = rank - tl.sum((keys > key).to(tl.int32), 0)
        keeps = tie & (tl.cumsum(tie.to(tl.int32), 0) <= wanted)
        last = tl.max(tl.where(keeps, column, -1), 0)
        all_ties = tl.sum(tie.to(tl.int32), 0) == wanted
        d, e = weights(v, tl.load(sums + row), tl.load(scale))
        keeps = keeps | (there & (keys > key))
        kept = tl.sum(tl.where(keeps, e, 0.0), 0) + tl.load(sums + 3 * pitch + row)
        kept_weighted = tl.sum(tl.where(keeps, e * d, 0.0), 0) + tl.load(sums + 4 * pitch + row)
        tl.store(sums + 3 * pitch + row, kept)
        tl.store(sums + 4 * pitch + row, kept_weighted)
        tl.store(threshold + row, number(key, SIGN, FLOAT))
        tl.store(cut + row, tl.where(all_ties, NEVER, last))


@triton.jit
def search_kernel(
    x, stride, width, k, scale, sums, pitch, threshold, cut, missed,
    BLOCK: tl.constexpr, BITS: tl.constexpr, SIGN: tl.constexpr, UNSIGNED: tl.constexpr,
):  # fmt: skip
    """``select_kernel`` for the few rows that missed, by reading them BITS + 2 more times."""
    row = tl.program_id(0).to(tl.int64)
    FLOAT: tl.constexpr = sums.dtype.element_ty
    if tl.load(missed + row) != 0:
        numbers = x + row * stride
        lane = tl.arange(0, BLOCK)
        one = tl.full([], 1, UNSIGNED)
        key = tl.full([], 0, UNSIGNED)
        for i in range(BITS):
            tried = key | (one << (BITS - 1 - i))
            count = tl.full([], 0, tl.int32)
            for first in range(0, width, BLOCK):
                there = first + lane < width
                v = tl.load(numbers + first + lane, mask=there, other=0.0).to(FLOAT)
                count += tl.sum((there & (ordered(v, SIGN, UNSIGNED) >= tried)).to(tl.int32), 0)
            key = tl.where(count >= k, tried, key)
        value = number(key, SIGN, FLOAT)
        wanted = tl.full([], 0, tl.int32) + k
        ties = tl.full([], 0, tl.int32)
        for first in range(0, width, BLOCK):
            there = first + lane < width
            v = tl.load(numbers + first + lane, mask=there, other=0.0).to(FLOAT)
            wanted -= tl.sum((there & (v > value)).to(tl.int32), 0)
            ties += tl.sum((there & (v == value)).to(tl.int32), 0)
        seen = tl.full([], 0, tl.int32)
        last = tl.full([], -1, tl.int32)
        total = tl.zeros([BLOCK], FLOAT)
        weighted = tl.zeros([BLOCK], FLOAT)
        peak = tl.load(sums + row)
        inverse = tl.load(scale)
        for first in range(0, width, BLOCK):
            there = first + lane < width
            v = tl.load(numbers + first + lane, mask=there, other=float("-inf")).to(FLOAT)
            tie = (there & (v == value)).to(tl.int32)
            keeps = (tie > 0) & (seen + tl.cumsum(tie, 0) <= wanted)
            seen += tl.sum(tie, 0)
            last = tl.maximum(last, tl.max(tl.where(keeps, first + lane, -1), 0))
            keeps = keeps | (there & (v > value))
            d, e = weights(v, peak, inverse)
            total += tl.where(keeps, e, 0.0)
            weighted += tl.where(keeps, e * d, 0.0)
        tl.store(sums + 3 * pitch + row, tl.sum(total, 0))
        tl.store(sums + 4 * pitch + row, tl.sum(weighted, 0))
        tl.store(threshold + row, value)
        tl.store(cut + row, tl.where(ties == wanted, NEVER, last))


@triton.jit
def backward_kernel(
    x, stride, out, out_stride, width, start, scale, peak, a, b, kept_a, kept_b, threshold, cut,
    target, g_target, CLAMPED: tl.constexpr, TARGET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of columns of a row: one read, one write, possibly to the same place."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < width
    FLOAT: tl.constexpr = peak.dtype.element_ty
    v = tl.load(x + row * stride + column, mask=there, other=float("-inf")).to(FLOAT)
    d, e = weights(v, tl.load(peak + row), tl.load(scale))
    constant = tl.load(a + row)
    slope = tl.load(b + row)
    if CLAMPED:
        at = tl.load(threshold + row)
        keeps = (v > at) | ((v == at) & (start + column <= tl.load(cut + row)))
        constant = constant + tl.where(keeps, tl.load(kept_a + row), 0.0)
        slope = slope + tl.where(keeps, tl.load(kept_b + row), 0.0)
    gradient = e * (constant + slope * d)
    if TARGET:
        gradient += tl.where(column == tl.load(target + row), tl.load(g_target + row), 0.0)
    tl.store(out + row * out_stride + column, gradient.to(out.dtype.element_ty), mask=there)
