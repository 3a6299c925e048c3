/* Token statistics of one shard on a CPU: the functions of kernels/__init__.py, for fp32, bf16 and
 * fp16 logits. A row is one thread's work, and rows are dealt out one by one: split evenly, a core
 * that is busy with something else would double the time. Each returns 0, or 1 if out of memory.
 * to_log2 is 1 / (T ln 2). */
#include "vector.h"
#include <stdlib.h>

#define BLOCK 2048        /* columns whose sums are taken in fp32; a multiple of W */
#define RUN 16            /* neighbouring columns of a sample */
#define RUNS 512          /* how many such */
#define NARROW 1024       /* a row too narrow for a sample of its own */
#define LOWEST -1000.0f   /* 2^LOWEST is 0, and 0 * LOWEST is 0 */
#define FAR 40            /* BLOCK * 2^FAR * FAR is far from overflow */
#define NEAR 4            /* of sums of squares: what is left of e^2 d^2 loses NEAR^2 roundings */
#define NO_CUT INT32_MAX
#define LN_2 0.693147180559945309
#define FEW 65536         /* logits that are not worth a second thread */
#define MANY (1 << 22)    /* logits that fill the caches */

typedef struct {
    float peak;
    double total, weighted, kept_total, kept_weighted;
    double square, square_d, square_dd; /* of e^2, e^2 d, e^2 d^2 */
    int64_t above, inside;
} scan_t;

/* (v - peak) / T in units of ln 2, which makes e a power of 2; NaN stays. */
INLINE vf shifted(vf v, float peak, float to_log2) {
    return max_(all(LOWEST), mul(sub(v, all(peak)), all(to_log2)));
}

/* Let the sums so far refer to another peak. */
static void move_peak(scan_t *s, float peak, float to_log2) {
    if (s->total > 0) {
        double d = ((double)s->peak - peak) * to_log2, e = exp2(d);
        s->weighted = e == 0 ? 0 : e * (s->weighted + d * s->total);
        s->kept_weighted = e == 0 ? 0 : e * (s->kept_weighted + d * s->kept_total);
        s->square_dd = e == 0 ? 0 : e * e * (s->square_dd + d * (2 * s->square_d + d * s->square));
        s->square_d = e == 0 ? 0 : e * e * (s->square_d + d * s->square);
        s->total *= e, s->kept_total *= e, s->square *= e * e;
    }
    s->peak = peak;
}

/* -inf, of a row without a finite logit so far, as a peak from which to subtract. */
INLINE float finite(float peak) { return peak < -FLT_MAX ? -FLT_MAX : peak; }

INLINE float greatest(vf v) {
    float lanes[W], most = -INFINITY;
    store_f32(lanes, v);
    for (int i = 0; i < W; i++) most = lanes[i] > most ? lanes[i] : most;
    return most;
}

/* The largest of the first n logits; NaN counts for nothing. */
INLINE float largest(kind_t kind, const void *x, int64_t n) {
    vf most = all(-INFINITY);
    int64_t i = 0;
    for (; i + W <= n; i += W) most = max_(load(kind, x, i), most);
    if (i < n) most = max_(load_part(kind, x, i, (int)(n - i)), most);
    return greatest(most);
}

typedef struct { /* of one block, in registers */
    vf most, total, weighted, kept_total, kept_weighted, square, square_d, square_dd;
} lanes_t;

typedef struct {
    int64_t above, inside;
} counts_t;

/* One vector of n columns from column i on. */
INLINE void scan_vector(
    counts_t *c, lanes_t *l, vf v, int64_t i, int n, float peak, float to_log2, int squares,
    const float *low, const float *high, float *values, int32_t *columns, int64_t capacity
) {
    vf d = shifted(v, peak, to_log2), e = exp2_(d), w = mul(e, d);
    l->most = max_(l->most, v);
    l->total = add(l->total, e);
    l->weighted = add(l->weighted, w);
    if (squares) {
        l->square = fma_(e, e, l->square);
        l->square_d = fma_(e, w, l->square_d), l->square_dd = fma_(w, w, l->square_dd);
    }
    if (!low) return;
    vm above = gt(v, all(*high)), inside = and_not(ge(v, all(*low)), above);
    if (n < W) inside = both(inside, first(n));
    l->kept_total = add_if(above, l->kept_total, e);
    l->kept_weighted = add_if(above, l->kept_weighted, w);
    c->above += __builtin_popcount(bits_of(above));
    if (c->inside + W <= capacity) {
        if (columns) compress_ids(columns + c->inside, inside, (int32_t)i);
        c->inside += compress(values + c->inside, inside, v);
    } else { /* near the buffer's end, and beyond it */
        float some[W];
        int32_t ids[W];
        compress_ids(ids, inside, (int32_t)i);
        int found = compress(some, inside, v);
        for (int j = 0; j < found; j++, c->inside++)
            if (c->inside < capacity) {
                values[c->inside] = some[j];
                if (columns) columns[c->inside] = ids[j];
            }
    }
}

/* Columns [i, end), at most a block of them. */
INLINE lanes_t scan_block(
    kind_t kind, const void *x, int64_t i, int64_t end, float peak, float to_log2, int squares,
    counts_t *c, const float *low, const float *high, float *values, int32_t *columns,
    int64_t capacity
) {
    lanes_t l = {all(-INFINITY), all(0), all(0), all(0), all(0), all(0), all(0), all(0)}, l2 = l;
#define SCAN(lanes, v, i, n) \
    scan_vector(c, lanes, v, i, n, peak, to_log2, squares, low, high, values, columns, capacity)
    for (; i + 2 * W <= end; i += 2 * W) {
        SCAN(&l, load(kind, x, i), i, W);
        SCAN(&l2, load(kind, x, i + W), i + W, W);
    }
    for (; i < end; i += W) {
        int n = end - i < W ? (int)(end - i) : W;
        SCAN(&l, n < W ? load_part(kind, x, i, n) : load(kind, x, i), i, n);
    }
#undef SCAN
    return (lanes_t){
        max_(l.most, l2.most), add(l.total, l2.total), add(l.weighted, l2.weighted),
        add(l.kept_total, l2.kept_total), add(l.kept_weighted, l2.kept_weighted),
        add(l.square, l2.square), add(l.square_d, l2.square_d), add(l.square_dd, l2.square_dd),
    };
}

/* Sums of a row, and what lies in [low, high] where these are given: values with their columns, or,
 * for less work, with the number found before each block. The row is read once: the sums refer to
 * the first block's largest logit until a block goes so far beyond it that powers could overflow;
 * that block is done again. */
INLINE void scan_row(
    kind_t kind, const void *x, int64_t width, float to_log2, int squares, const float *low,
    const float *high, float *values, int32_t *columns, int32_t *found, int64_t capacity,
    scan_t *s
) {
#define SCAN_BLOCK(i, end)                                                               \
    scan_block(kind, x, i, end, s->peak, to_log2, squares, &c, low, high, values, columns, \
               capacity)
    counts_t c = {0, 0};
    float most = largest(kind, x, width < BLOCK ? width : BLOCK);
    *s = (scan_t){.peak = finite(most)};
    for (int64_t i = 0; i < width; i += BLOCK) {
        int64_t end = width < i + BLOCK ? width : i + BLOCK;
        if (found) found[i / BLOCK] = (int32_t)c.inside;
        counts_t before = c;
        lanes_t l = SCAN_BLOCK(i, end);
        if (bits_of(gt(l.most, all(most)))) most = greatest(l.most);
        if ((most - s->peak) * to_log2 > (squares ? NEAR : FAR)) {
            move_peak(s, most, to_log2);
            c = before;
            l = SCAN_BLOCK(i, end);
        }
        s->total += sum(l.total), s->weighted += sum(l.weighted);
        s->kept_total += sum(l.kept_total), s->kept_weighted += sum(l.kept_weighted);
        if (!squares) continue;
        s->square += sum(l.square), s->square_d += sum(l.square_d);
        s->square_dd += sum(l.square_dd);
    }
#undef SCAN_BLOCK
    move_peak(s, most, to_log2);
    s->above = c.above, s->inside = c.inside;
}

/* The wanted-th largest (from 1) of n numbers, none of them NaN; both buffers are overwritten. */
static float nth_largest(float *a, float *other, int64_t n, int64_t wanted) {
    for (;;) {
        float x = a[n / 4], y = a[n / 2], z = a[n - 1 - n / 4];
        float pivot = x < y ? (y < z ? y : (x < z ? z : x)) : (x < z ? x : (y < z ? z : y));
        int64_t higher = 0, lower = 0, i;
        for (i = 0; i + W <= n; i += W) { /* the higher ones stay in a, which is read ahead of it */
            vf v = load_f32(a + i);
            higher += compress(a + higher, gt(v, all(pivot)), v);
            lower += compress(other + lower, gt(all(pivot), v), v);
        }
        for (; i < n; i++) {
            float v = a[i];
            if (v > pivot) a[higher++] = v;
            if (v < pivot) other[lower++] = v;
        }
        if (wanted <= higher) {
            n = higher;
        } else if (wanted <= n - lower) {
            return pivot;
        } else {
            wanted -= n - lower, n = lower;
            float *swap = a;
            a = other, other = swap;
        }
    }
}

typedef struct {
    float low, high, most, least;
} ends_t;

#define SAMPLE (RUN * RUNS + W) /* numbers in a buffer for a sample */

/* An interval that likely holds the quantile with `share` of the row above it; see propose. Runs of
 * neighbours cost a cache line each; being alike, they tell less than as many scattered logits
 * would, for which the margin has some room. */
INLINE ends_t propose_row(
    kind_t kind, const void *x, int64_t width, double share, float *sample, float *other,
    float *copy
) {
    ends_t ends = {-INFINITY, INFINITY, -INFINITY, INFINITY};
    int64_t runs = width / (2 * RUN) < RUNS ? width / (2 * RUN) : RUNS, size = runs * RUN;
    vf most = all(-INFINITY), least = all(INFINITY);
    for (int64_t r = 0; r < runs; r++)
        for (int64_t j = 0, from = r * (width - RUN) / (runs - 1); j < RUN; j += W) {
            vf v = max_(load(kind, x, from + j), all(-INFINITY)); /* NaN has no place in an order */
            store_f32(sample + r * RUN + j, v);
            most = select(gt(all(INFINITY), v), max_(most, v), most);
            least = select(both(gt(least, v), gt(v, all(-INFINITY))), v, least);
        }
    for (int i = 0; i < W; i++) {
        float lanes[W];
        store_f32(lanes, most), ends.most = lanes[i] > ends.most ? lanes[i] : ends.most;
        store_f32(lanes, least), ends.least = lanes[i] < ends.least ? lanes[i] : ends.least;
    }
    double margin = 4 * sqrt(size * share * (1 - share)) + 4;
    int64_t from = (int64_t)floor(size * share - margin), to = (int64_t)(size * share + margin);
    memcpy(copy, sample, size * sizeof(float));
    if (to < size) ends.low = nth_largest(copy, other, size, to + 1);
    if (from >= 0) ends.high = nth_largest(sample, other, size, from + 1);
    return ends;
}

/* The column of a row's candidate number `place`. */
INLINE int32_t column_of(
    kind_t kind, const void *x, int64_t width, ends_t ends, const int32_t *found, int64_t place
) {
    int64_t block = (width - 1) / BLOCK;
    while (found[block] > place) block--;
    place -= found[block];
    for (int64_t i = block * BLOCK;; i += W) {
        int n = width - i < W ? (int)(width - i) : W;
        vf v = n < W ? load_part(kind, x, i, n) : load(kind, x, i);
        unsigned bits = bits_of(both(and_not(ge(v, all(ends.low)), gt(v, all(ends.high))), first(n)));
        if (place >= __builtin_popcount(bits)) {
            place -= __builtin_popcount(bits);
            continue;
        }
        while (place--) bits &= bits - 1;
        return (int32_t)i + __builtin_ctz(bits);
    }
}

/* Settle which candidates are kept: threshold, their part in the kept sums, and the place of the last
 * kept tie among them, -1 if all are. */
INLINE int64_t select_row(
    scan_t *s, int64_t k, float to_log2, const float *values, float *scratch, float *other,
    float *threshold
) {
    int64_t n = s->inside, wanted = k - s->above, higher = 0, ties = 0, i;
    memcpy(scratch, values, n * sizeof(float));
    *threshold = nth_largest(scratch, other, n, wanted);
    for (int64_t first_one = 0; first_one < n; first_one += BLOCK) {
        vf total = all(0), weighted = all(0);
        int64_t end = n < first_one + BLOCK ? n : first_one + BLOCK;
        for (i = first_one; i < end; i += W) {
            int lanes = end - i < W ? (int)(end - i) : W;
            vf v = lanes < W ? load_part(F32, values, i, lanes) : load_f32(values + i);
            vf d = shifted(v, s->peak, to_log2), e = exp2_(d);
            vm kept = gt(v, all(*threshold)), tied = and_not(ge(v, all(*threshold)), kept);
            if (lanes < W) tied = both(tied, first(lanes));
            total = add_if(kept, total, e), weighted = add_if(kept, weighted, mul(e, d));
            higher += __builtin_popcount(bits_of(kept));
            ties += __builtin_popcount(bits_of(tied));
        }
        s->kept_total += sum(total), s->kept_weighted += sum(weighted);
    }
    wanted -= higher;
    float lanes[W];
    vf d = shifted(all(*threshold), s->peak, to_log2), e = exp2_(d);
    store_f32(lanes, e);
    s->kept_total += wanted * (double)lanes[0];
    store_f32(lanes, mul(e, d));
    s->kept_weighted += wanted * (double)lanes[0];
    if (wanted == ties) return -1;
    for (i = 0; values[i] != *threshold || --wanted; i++) {}
    return i;
}

INLINE void forward_row(
    kind_t kind, const void *x, int64_t width, int64_t k, float to_log2, int squares,
    float *scratch, scan_t *s, float *threshold, int32_t *cut
) {
    int64_t room = width + W; /* of each of the four buffers in scratch */
    float *values = scratch, *other = scratch + room, *third = scratch + 2 * room;
    int32_t *found = (int32_t *)(scratch + 3 * room);
    ends_t ends = {-INFINITY, INFINITY, 0, 0};
    if (width >= NARROW) ends = propose_row(kind, x, width, (double)k / width, values, other, third);
    for (int attempt = 0; attempt < 2; attempt++) {
        scan_row(kind, x, width, to_log2, squares, &ends.low, &ends.high, values, NULL, found,
                 room, s);
        if (s->above < k && k <= s->above + s->inside) {
            int64_t last = select_row(s, k, to_log2, values, other, third, threshold);
            *cut = last < 0 ? NO_CUT : column_of(kind, x, width, ends, found, last);
            return;
        }
        if (s->above >= k) ends.low = ends.high, ends.high = INFINITY;
        else ends.high = ends.low, ends.low = -INFINITY;
    }
    *threshold = INFINITY, *cut = NO_CUT; /* only a row with NaN or +inf comes here */
}

/* e * (a + b d), or, where v is kept, e * (kept_a + kept_b d). */
INLINE vf gradient(
    vf v, vm kept, float to_log2, float peak, float a, float b, float kept_a, float kept_b
) {
    vf d = shifted(v, peak, to_log2);
    vf factor = fma_(select(kept, all(kept_b), all(b)), d, select(kept, all(kept_a), all(a)));
    return mul(exp2_(d), factor);
}

/* Write the gradient of columns [i, end); kept is v >= threshold, or v > threshold if strictly. */
INLINE void backward_part(
    kind_t kind, const void *x, void *out, int64_t i, int64_t end, float to_log2, float peak,
    float a, float b, float kept_a, float kept_b, float threshold, int strictly, int stream
) {
#define GRADIENT(v)                                                                           \
    gradient(v, strictly ? gt(v, all(threshold)) : ge(v, all(threshold)), to_log2, peak, a, b, \
             kept_a, kept_b)
    for (; i + 2 * W <= end; i += 2 * W) { /* two at a time hide each other's latency */
        vf v = load(kind, x, i), v2 = load(kind, x, i + W);
        v = GRADIENT(v), v2 = GRADIENT(v2);
        if (stream) {
            store_past_cache(kind, out, i, v), store_past_cache(kind, out, i + W, v2);
        } else {
            store(kind, out, i, v), store(kind, out, i + W, v2);
        }
    }
    for (; i < end; i += W) {
        int n = end - i < W ? (int)(end - i) : W;
        vf v = load_part(kind, x, i, n);
        store_part(kind, out, i, n, GRADIENT(v));
    }
#undef GRADIENT
}

INLINE void backward_row(
    kind_t kind, const void *x, void *out, int64_t width, float to_log2, float peak, float a,
    float b, float kept_a, float kept_b, float threshold, int64_t cut, int64_t column,
    float g_target, int stream
) {
    float target = column >= 0 ? load_one(kind, x, column) : 0; /* out may be x */
    int64_t to_cut = cut < 0 ? 0 : cut + 1 < width ? cut + 1 : width;
    /* Whole vectors on either side of the cut, and the one that it divides. */
    int64_t before = to_cut / W * W, after = to_cut < width ? before + W : width;
    if (after > width) after = width;
#define PART(i, end, strictly, stream)                                                   \
    backward_part(kind, x, out, i, end, to_log2, peak, a, b, kept_a, kept_b, threshold, \
                  strictly, stream)
    if (stream) {
        PART(0, before, 0, 1);
        PART(before, to_cut, 0, 0);
        PART(to_cut, after, 1, 0);
        PART(after, width, 1, 1);
    } else {
        PART(0, to_cut, 0, 0);
        PART(to_cut, width, 1, 0);
    }
#undef PART
    if (column < 0) return;
    vf v = all(target);
    vm kept = column <= cut ? ge(v, all(threshold)) : gt(v, all(threshold));
    v = gradient(v, kept, to_log2, peak, a, b, kept_a, kept_b);
    store_part(kind, out, column, 1, add(v, all(g_target)));
}

#define ROW(kind, x, stride, row) ((char *)(x) + (row) * (stride) * (int64_t)size_of(kind))
/* Run `statement` with `kind` a constant, so that each kind has loops of its own. */
#define FOR_KIND(code, statement)                                         \
    if ((code) == F32) { const kind_t kind = F32; statement; }            \
    else if ((code) == BF16) { const kind_t kind = BF16; statement; }     \
    else { const kind_t kind = F16; statement; }
/* The same for what is only summed up where it is asked for. */
#define FOR_SQUARES(asked, statement)               \
    if (asked) { const int squares = 1; statement } \
    else { const int squares = 0; statement }
#define THREADS num_threads(rows * width < FEW ? 1 : threads)

static void put_sums(float *sums, int64_t rows, int64_t row, int squares, const scan_t *s) {
    sums[row] = s->peak, sums[rows + row] = (float)s->total;
    sums[2 * rows + row] = (float)(s->weighted * LN_2);
    sums[3 * rows + row] = (float)s->kept_total;
    sums[4 * rows + row] = (float)(s->kept_weighted * LN_2);
    if (!squares) return;
    sums[5 * rows + row] = (float)s->square;
    sums[6 * rows + row] = (float)(s->square_d * LN_2);
    sums[7 * rows + row] = (float)(s->square_dd * LN_2 * LN_2);
}

int aent_forward(
    int code, const void *x, int64_t stride, int64_t rows, int64_t width, int64_t k,
    float to_log2, int asked, float *sums, float *threshold, int32_t *cut, int threads
) {
    int failed = 0;
#pragma omp parallel THREADS reduction(| : failed)
    {
        float *scratch = malloc(4 * (width + W) * sizeof(float));
        failed = !scratch;
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < rows; row++) {
            scan_t s;
            if (!scratch) continue;
            FOR_SQUARES(asked, FOR_KIND(code, forward_row(
                kind, ROW(kind, x, stride, row), width, k, to_log2, squares, scratch, &s,
                threshold + row, cut + row)))
            put_sums(sums, rows, row, asked, &s);
        }
        free(scratch);
    }
    return failed;
}

int aent_propose(
    int code, const void *x, int64_t stride, int64_t rows, int64_t width, double share,
    float *ends, int threads
) {
#pragma omp parallel for THREADS schedule(dynamic)
    for (int64_t row = 0; row < rows; row++) {
        float sample[3][SAMPLE];
        ends_t e = {INFINITY, -INFINITY, -INFINITY, INFINITY}; /* says nothing of an interval */
        if (width >= NARROW) {
            FOR_KIND(code, e = propose_row(kind, ROW(kind, x, stride, row), width, share,
                                           sample[0], sample[1], sample[2]))
        } else {
            for (int64_t i = 0; i < width; i++) {
                float v;
                FOR_KIND(code, v = load_one(kind, ROW(kind, x, stride, row), i))
                if (v > e.most && v <= FLT_MAX) e.most = v;
                if (v < e.least && v >= -FLT_MAX) e.least = v;
            }
        }
        ends[row] = e.high, ends[rows + row] = -e.low;
        ends[2 * rows + row] = e.most, ends[3 * rows + row] = -e.least;
    }
    return 0;
}

int aent_scan(
    int code, const void *x, int64_t stride, int64_t rows, int64_t width, float to_log2,
    int asked, const float *low, const float *high, int64_t capacity, float *sums, int32_t *above,
    int32_t *inside, float *values, int32_t *columns, int threads
) {
#pragma omp parallel for THREADS schedule(dynamic)
    for (int64_t row = 0; row < rows; row++) {
        scan_t s;
        if (low) {
            FOR_SQUARES(asked, FOR_KIND(code, scan_row(
                kind, ROW(kind, x, stride, row), width, to_log2, squares, low + row, high + row,
                values + row * capacity, columns + row * capacity, NULL, capacity, &s)))
            above[row] = (int32_t)s.above, inside[row] = (int32_t)s.inside;
        } else {
            FOR_SQUARES(asked, FOR_KIND(code, scan_row(
                kind, ROW(kind, x, stride, row), width, to_log2, squares, NULL, NULL, NULL, NULL,
                NULL, 0, &s)))
        }
        put_sums(sums, rows, row, asked, &s);
    }
    return 0;
}

/* b may be NULL; kept_a and what follows it, column and g_target as well. */
int aent_backward(
    int code, const void *x, int64_t stride, void *out, int64_t out_stride, int64_t rows,
    int64_t width, float to_log2, int64_t start, const float *peak, const float *a,
    const float *b, const float *kept_a, const float *kept_b, const float *threshold,
    const int32_t *cut, const int64_t *column, const float *g_target, int threads
) {
    /* A gradient that no cache will hold is written past them: its lines are not read first. */
    int stream = out != x && rows * width > MANY;
#pragma omp parallel for THREADS schedule(dynamic)
    for (int64_t row = 0; row < rows; row++) {
        float at = a[row], bt = b ? b[row] * (float)LN_2 : 0; /* d is in units of ln 2 */
        FOR_KIND(code, backward_row(
            kind, ROW(kind, x, stride, row), ROW(kind, out, out_stride, row), width, to_log2,
            finite(peak[row]), at, bt, kept_a ? at + kept_a[row] : at,
            kept_a ? bt + kept_b[row] * (float)LN_2 : bt, kept_a ? threshold[row] : 0,
            kept_a ? cut[row] - start : width, column ? column[row] : -1,
            column ? g_target[row] : 0,
            stream && (uintptr_t)ROW(kind, out, out_stride, row) % (W * size_of(kind)) == 0))
    }
    return 0;
}
