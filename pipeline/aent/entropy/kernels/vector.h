/* One vector of floats, W lanes wide: AVX-512, AVX2 with FMA, or four lanes of whatever the compiler
 * makes of its vector extensions. The compiler's flags decide; c_path.py compiles once for each. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef enum { F32, BF16, F16 } kind_t; /* in the order of c_path.KINDS */

INLINE size_t size_of(kind_t kind) { return kind == F32 ? 4 : 2; }

#if defined(__AVX512F__) && defined(__AVX512BW__)

#include <immintrin.h>
#define W 16
#define HAVE_F16 1
typedef __m512 vf;
typedef __mmask16 vm;

INLINE vf all(float a) { return _mm512_set1_ps(a); }
INLINE vf load_f32(const float *p) { return _mm512_loadu_ps(p); }
INLINE void store_f32(float *p, vf v) { _mm512_storeu_ps(p, v); }
INLINE vf load_bf16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
#ifdef __AVX512BF16__
INLINE void store_bf16(uint16_t *p, vf v) { /* to nearest, ties to even; denormals become 0 */
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(v));
}
#else
INLINE void store_bf16(uint16_t *p, vf v) { /* to nearest, ties to even */
    const __m512i upper_halves = _mm512_castsi256_si512(
        _mm256_setr_epi16(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31));
    __m512i bits = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    bits = _mm512_permutexvar_epi16(upper_halves, bits);
    _mm256_storeu_si256((__m256i *)p, _mm512_castsi512_si256(bits));
}
#endif
INLINE vf load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
INLINE void store_f16(uint16_t *p, vf v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
INLINE vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf fma_(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf max_(vf a, vf b) { return _mm512_max_ps(a, b); } /* b if one is NaN */
INLINE vm gt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
INLINE vm ge(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
INLINE vm and_not(vm a, vm b) { return (vm)(a & ~b); }
INLINE vm first(int n) { return (vm)(n >= W ? 0xffff : (1u << n) - 1); }
INLINE vm both(vm a, vm b) { return (vm)(a & b); }
INLINE unsigned bits_of(vm m) { return m; }
INLINE vf select(vm m, vf yes, vf no) { return _mm512_mask_blend_ps(m, no, yes); }
INLINE vf add_if(vm m, vf a, vf b) { return _mm512_mask_add_ps(a, m, a, b); }
INLINE vf round_(vf a) { return _mm512_roundscale_ps(a, 8); } /* to nearest, no exceptions */
INLINE vf scale(vf a, vf n, vf t) { (void)t; return _mm512_scalef_ps(a, n); }
/* Write the marked lanes one after the other; up to W floats from p on may be written. */
INLINE int compress(float *p, vm m, vf v) {
    _mm512_storeu_ps(p, _mm512_maskz_compress_ps(m, v));
    return __builtin_popcount(m);
}
INLINE void compress_ids(int32_t *p, vm m, int32_t first_id) {
    const __m512i steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i ids = _mm512_add_epi32(_mm512_set1_epi32(first_id), steps);
    _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(m, ids));
}

#else

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(__BMI2__)

#include <immintrin.h>
#define W 8
#define HAVE_F16 1
typedef __m256 vf;
typedef __m256 vm;

INLINE vf all(float a) { return _mm256_set1_ps(a); }
INLINE vf load_f32(const float *p) { return _mm256_loadu_ps(p); }
INLINE void store_f32(float *p, vf v) { _mm256_storeu_ps(p, v); }
INLINE vf load_bf16(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE void store_bf16(uint16_t *p, vf v) {
    __m256i bits = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    bits = _mm256_srli_epi32(bits, 16);
    __m128i low = _mm256_castsi256_si128(bits), high = _mm256_extracti128_si256(bits, 1);
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi32(low, high));
}
INLINE vf load_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
INLINE void store_f16(uint16_t *p, vf v) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
INLINE vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf fma_(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf max_(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vm gt(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
INLINE vm ge(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
INLINE vm and_not(vm a, vm b) { return _mm256_andnot_ps(b, a); }
INLINE vm both(vm a, vm b) { return _mm256_and_ps(a, b); }
INLINE vm first(int n) {
    const __m256i steps = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), steps));
}
INLINE unsigned bits_of(vm m) { return (unsigned)_mm256_movemask_ps(m); }
INLINE vf select(vm m, vf yes, vf no) { return _mm256_blendv_ps(no, yes, m); }
INLINE vf add_if(vm m, vf a, vf b) { return _mm256_add_ps(a, _mm256_and_ps(m, b)); }
INLINE vf round_(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | 8); }
/* An order of lanes in which the marked ones come first; BMI2 packs the bytes that number them. */
INLINE __m256i marked_first(unsigned bits) {
    uint64_t bytes = _pdep_u64(bits, 0x0101010101010101) * 0xff;
    uint64_t order = _pext_u64(0x0706050403020100, bytes);
    return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)order));
}
/* Write the marked lanes one after the other; up to W floats from p on may be written. */
INLINE int compress(float *p, vm m, vf v) {
    unsigned bits = bits_of(m);
    _mm256_storeu_ps(p, _mm256_permutevar8x32_ps(v, marked_first(bits)));
    return __builtin_popcount(bits);
}
INLINE void compress_ids(int32_t *p, vm m, int32_t first_id) {
    unsigned bits = bits_of(m);
    if (!bits) return;
    __m256i ids = _mm256_add_epi32(_mm256_set1_epi32(first_id), marked_first(bits));
    _mm256_storeu_si256((__m256i *)p, ids);
}
INLINE vf power_of_2(vf n) {
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}

#else

#define W 4
#define HAVE_F16 0
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vm __attribute__((vector_size(16)));

INLINE vf all(float a) { return (vf){a, a, a, a}; }
INLINE vf load_f32(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE void store_f32(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vf load_bf16(const uint16_t *p) {
    vm bits = {p[0], p[1], p[2], p[3]};
    return (vf)(bits << 16);
}
INLINE void store_bf16(uint16_t *p, vf v) {
    vm bits = (vm)v;
    bits += 0x7fff + ((bits >> 16) & 1);
    for (int i = 0; i < W; i++) p[i] = (uint16_t)((uint32_t)bits[i] >> 16);
}
INLINE vf load_f16(const uint16_t *p) { (void)p; return all(NAN); } /* c_path.py never asks */
INLINE void store_f16(uint16_t *p, vf v) { (void)p, (void)v; }
INLINE vf add(vf a, vf b) { return a + b; }
INLINE vf sub(vf a, vf b) { return a - b; }
INLINE vf mul(vf a, vf b) { return a * b; }
INLINE vf fma_(vf a, vf b, vf c) { return a * b + c; }
INLINE vm gt(vf a, vf b) { return a > b; }
INLINE vm ge(vf a, vf b) { return a >= b; }
INLINE vm and_not(vm a, vm b) { return a & ~b; }
INLINE vm both(vm a, vm b) { return a & b; }
INLINE vm first(int n) { return (vm){0, 1, 2, 3} < n; }
INLINE unsigned bits_of(vm m) {
    return (unsigned)((m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8));
}
INLINE vf select(vm m, vf yes, vf no) { return (vf)((m & (vm)yes) | (~m & (vm)no)); }
INLINE vf max_(vf a, vf b) { return select(a > b, a, b); }
INLINE vf add_if(vm m, vf a, vf b) { return a + (vf)(m & (vm)b); }
/* Adding 1.5 * 2^23 leaves the nearest integer in the last bits; |a| is far below 2^22 here. */
INLINE vf round_(vf a) { const vf magic = all(12582912.0f); return (a + magic) - magic; }
INLINE int compress(float *p, vm m, vf v) {
    float lanes[W];
    int n = 0;
    unsigned bits = bits_of(m);
    if (!bits) return 0;
    store_f32(lanes, v);
    for (; bits; bits &= bits - 1) p[n++] = lanes[__builtin_ctz(bits)];
    return n;
}
INLINE void compress_ids(int32_t *p, vm m, int32_t first_id) {
    for (unsigned bits = bits_of(m); bits; bits &= bits - 1) *p++ = first_id + __builtin_ctz(bits);
}
INLINE vf power_of_2(vf n) { return (vf)(((vm)(n + all(12582912.0f)) - 0x4b400000 + 127) << 23); }

#endif

/* a * 2^n, 0 below the smallest normal number; n is t rounded, NaN in t stays NaN. */
INLINE vf scale(vf a, vf n, vf t) {
    return select(gt(all(-126.0f), t), all(0.0f), mul(a, power_of_2(max_(all(-126.0f), n))));
}

#endif

INLINE vf load(kind_t kind, const void *p, int64_t i) {
    if (kind == F32) return load_f32((const float *)p + i);
    return kind == BF16 ? load_bf16((const uint16_t *)p + i) : load_f16((const uint16_t *)p + i);
}

INLINE void store(kind_t kind, void *p, int64_t i, vf v) {
    if (kind == F32) store_f32((float *)p + i, v);
    else if (kind == BF16) store_bf16((uint16_t *)p + i, v);
    else store_f16((uint16_t *)p + i, v);
}

/* Without a copy in the caches; p + i must be a multiple of the vector's size in bytes. */
INLINE void store_past_cache(kind_t kind, void *p, int64_t i, vf v) {
#if W == 16
    if (kind == F32) { _mm512_stream_ps((float *)p + i, v); return; }
    uint16_t half[W];
    store(kind, half, 0, v);
    _mm256_stream_si256((__m256i *)((uint16_t *)p + i), _mm256_loadu_si256((__m256i *)half));
#elif W == 8
    if (kind == F32) { _mm256_stream_ps((float *)p + i, v); return; }
    uint16_t half[W];
    store(kind, half, 0, v);
    _mm_stream_si128((__m128i *)((uint16_t *)p + i), _mm_loadu_si128((__m128i *)half));
#else
    store(kind, p, i, v);
#endif
}

/* The first n < W lanes from p + i on, and -inf in the others. */
INLINE vf load_part(kind_t kind, const void *p, int64_t i, int n) {
    char bytes[4 * W] = {0};
    memcpy(bytes, (const char *)p + i * size_of(kind), n * size_of(kind));
    return select(first(n), load(kind, bytes, 0), all(-INFINITY));
}

INLINE void store_part(kind_t kind, void *p, int64_t i, int n, vf v) {
    char bytes[4 * W];
    store(kind, bytes, 0, v);
    memcpy((char *)p + i * size_of(kind), bytes, n * size_of(kind));
}

INLINE float load_one(kind_t kind, const void *p, int64_t i) {
    float lanes[W];
    store_f32(lanes, load_part(kind, p, i, 1));
    return lanes[0];
}

INLINE double sum(vf v) {
    float lanes[W];
    double total = 0;
    store_f32(lanes, v);
    for (int i = 0; i < W; i++) total += lanes[i];
    return total;
}

/* 2^t to 1.7e-7 of it: the nearest integer apart, a minimax polynomial that is 1 at 0. */
INLINE vf exp2_(vf t) {
    vf n = round_(t), r = sub(t, n);
    vf p = fma_(all(1.326472725e-3f), r, all(9.671512688e-3f));
    p = fma_(p, r, all(5.550733744e-2f));
    p = fma_(p, r, all(2.402224208e-1f));
    p = fma_(p, r, all(6.931469776e-1f));
    return scale(fma_(p, r, all(1.0f)), n, t);
}
