/* softmax(q k' * scale + bias) v within every text of a packed batch, in bfloat16 with sums in float32.

   One task is one head of one text: its keys and values are laid out for the dot-product instruction of AVX-512 BF16
   (two neighbouring numbers a lane), then eight queries at a time go through scores, softmax and values without leaving
   the first cache level. Built at run time by native.py. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef __AVX512BF16__
#error "needs AVX-512 BF16"
#endif

#define INLINE static inline __attribute__((always_inline))
#define MOST_DIMS 128

typedef uint16_t bf16;

/* e^x for x <= 0, relative error below 1e-5: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. */
INLINE __m512 exponential(__m512 x) {
    __m512 scaled = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    __m512 n = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.69314718f), x);
    __m512 p = _mm512_set1_ps(1.0f / 120);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

INLINE __m512bh pairs(const void *at) { return (__m512bh)_mm512_loadu_si512(at); }

INLINE __m512bh same_pair(const bf16 *at) {
    int32_t two;
    memcpy(&two, at, 4);
    return (__m512bh)_mm512_set1_epi32(two);
}

/* rows of 16 numbers of 32 bits, turned. */
INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

/* keys [t, d], a row every `stride`, to [blocks of 16 keys][d / 2][16 keys][2]; keys beyond t are zero. */
static void lay_out_keys(const bf16 *keys, int64_t stride, int t, int d, bf16 *to) {
    for (int first = 0; first < t; first += 16)
        for (int at = 0; at < d; at += 32) {
            __m512i r[16];
            for (int i = 0; i < 16; i++)
                r[i] = first + i < t ? _mm512_loadu_si512(keys + (first + i) * stride + at) : _mm512_setzero_si512();
            transpose(r);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + (int64_t)first * d + (at / 2 + i) * 32, r[i]);
        }
}

/* values [t, d] to [t / 2][d / 16][16][2]: neighbouring keys side by side; an odd last one has a zero neighbour. */
static void lay_out_values(const bf16 *values, int64_t stride, int t, int d, bf16 *to) {
    for (int k = 0; k < t; k += 2)
        for (int at = 0; at < d; at += 16) {
            const bf16 *row = values + k * stride + at;
            __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)row));
            __m512i high = k + 1 < t ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(row + stride)))
                                     : _mm512_setzero_si512();
            _mm512_storeu_si512(to + (int64_t)k * d + at * 2, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

/* Scores of M queries with the N blocks of 16 keys from `first`, to rows of `width` floats. */
INLINE void score(const int M, const int N, const bf16 *const *queries, const bf16 *keys, int first, int d, int width,
                  float *to) {
    __m512 sums[8][2];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) sums[m][0] = sums[m][1] = _mm512_setzero_ps();
    const bf16 *left = keys + (int64_t)first * d, *right = left + (N - 1) * 16 * d;
    for (int i = 0; i < d; i += 2) {
        __m512bh a = pairs(left + i * 16), b = pairs(right + i * 16);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            __m512bh q = same_pair(queries[m] + i);
            sums[m][0] = _mm512_dpbf16_ps(sums[m][0], q, a);
            if (N > 1) sums[m][1] = _mm512_dpbf16_ps(sums[m][1], q, b);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
        _mm512_store_ps(to + m * width + first, sums[m][0]);
        if (N > 1) _mm512_store_ps(to + m * width + first + 16, sums[m][1]);
    }
}

/* Scores of one query to weights that still have to be divided by the sum, which is returned. Keys outside
   [from, until) count nothing. */
INLINE float weigh(float *scores, bf16 *weights, int from, int until, int begin, int end, float scale,
                   const bf16 *bias) {
    __m512 least = _mm512_set1_ps(-INFINITY), top = least, sum = _mm512_setzero_ps();
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int k = begin; k < end; k += 16) {
        __m512i at = _mm512_add_epi32(lanes, _mm512_set1_epi32(k));
        __mmask16 seen = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(from)) &
                         _mm512_cmplt_epi32_mask(at, _mm512_set1_epi32(until));
        __m512 x = _mm512_mul_ps(_mm512_load_ps(scores + k), _mm512_set1_ps(scale));
        if (bias) {
            __m256i b = _mm256_maskz_loadu_epi16(seen, bias + k);
            x = _mm512_add_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16)));
        }
        x = _mm512_mask_blend_ps(seen, least, x);
        _mm512_store_ps(scores + k, x);
        top = _mm512_max_ps(top, x);
    }
    top = _mm512_set1_ps(_mm512_reduce_max_ps(top));
    for (int k = begin; k < end; k += 16) {
        __m512 e = exponential(_mm512_sub_ps(_mm512_load_ps(scores + k), top));
        sum = _mm512_add_ps(sum, e);
        _mm256_storeu_si256((void *)(weights + k), (__m256i)_mm512_cvtneps_pbh(e));
    }
    return _mm512_reduce_add_ps(sum);
}

/* Sums of M queries over the values of keys [begin, end), 32 numbers of them from `at`. */
INLINE void gather(const int M, const bf16 *weights, int width, const bf16 *values, int begin, int end, int d, int at,
                   const float *sums, bf16 *const *out, int rows) {
    __m512 found[8][2];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) found[m][0] = found[m][1] = _mm512_setzero_ps();
    for (int k = begin; k < end; k += 2) {
        __m512bh a = pairs(values + (int64_t)k * d + at * 2), b = pairs(values + (int64_t)k * d + at * 2 + 32);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            __m512bh w = same_pair(weights + m * width + k);
            found[m][0] = _mm512_dpbf16_ps(found[m][0], w, a);
            found[m][1] = _mm512_dpbf16_ps(found[m][1], w, b);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
        if (m >= rows) break;
        __m512 share = _mm512_set1_ps(1.0f / sums[m]);
        _mm256_storeu_si256((void *)(out[m] + at), (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(found[m][0], share)));
        _mm256_storeu_si256((void *)(out[m] + at + 16), (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(found[m][1], share)));
    }
}

typedef struct {
    const bf16 *qkv, *bias; /* one head's queries; its bias [bias_size, bias_size] or null */
    bf16 *out;
    int64_t stride, side, out_stride; /* between tokens; from queries to keys to values; between tokens of `out` */
    int64_t bias_size;
    int t, d, window; /* window < 0: none */
    float scale;
} Head;

INLINE void queries_at(const int M, const Head *h, int first, const bf16 *keys, const bf16 *values, int width,
                       float *scores, bf16 *weights) {
    const bf16 *queries[8];
    bf16 *out[8];
    float sums[8];
    int rows = h->t - first < M ? h->t - first : M;
    int begin = 0, end = width;
    for (int m = 0; m < M; m++) { /* rows beyond the last repeat it, and are not written */
        int row = first + (m < rows ? m : rows - 1);
        queries[m] = h->qkv + row * h->stride;
        out[m] = h->out + row * h->out_stride;
    }
    if (h->window >= 0) { /* only the keys that one of these queries sees */
        int low = first - h->window, high = first + rows + h->window;
        begin = low > 0 ? low / 16 * 16 : 0;
        end = high < h->t ? (high + 15) / 16 * 16 : width;
    }
    int k = begin;
    for (; k + 32 <= end; k += 32) score(M, 2, queries, keys, k, h->d, width, scores);
    if (k < end) score(M, 1, queries, keys, k, h->d, width, scores);
    for (int m = 0; m < M; m++) {
        int row = first + (m < rows ? m : rows - 1), from = 0, until = h->t;
        if (h->window >= 0) {
            from = row - h->window > 0 ? row - h->window : 0;
            until = row + h->window + 1 < h->t ? row + h->window + 1 : h->t;
        }
        const bf16 *bias = h->bias ? h->bias + row * h->bias_size : NULL;
        sums[m] = weigh(scores + m * width, weights + m * width, from, until, begin, end, h->scale, bias);
    }
    for (int at = 0; at < h->d; at += 32)
        gather(M, weights, width, values, begin, end, h->d, at, sums, out, rows);
}

static void attend_head(const Head *h, void *room, int width) {
    bf16 *keys = room, *values = keys + (int64_t)width * h->d;
    float *scores = (float *)(values + (int64_t)width * h->d);
    bf16 *weights = (bf16 *)(scores + 8 * width);
    int padded = (h->t + 15) / 16 * 16;
    lay_out_keys(h->qkv + h->side, h->stride, h->t, h->d, keys);
    lay_out_values(h->qkv + 2 * h->side, h->stride, h->t, h->d, values);
    int even = (h->t + 1) / 2 * 2; /* weights beyond t are zero, but zero times what lay there may be NaN */
    memset(values + (int64_t)even * h->d, 0, (int64_t)(padded - even) * h->d * sizeof(bf16));
    int first = 0;
    for (; h->t - first > 4; first += 8) queries_at(8, h, first, keys, values, padded, scores, weights);
    for (; first < h->t; first += 4) queries_at(4, h, first, keys, values, padded, scores, weights);
}

/* qkv [tokens, 3, heads, d], out [tokens, heads, d], text i being tokens offsets[i] to offsets[i + 1]; bias [heads, size,
   size] or null; window < 0 for none. d is 32, 64, 96 or 128. Returns 0, or 1 for want of memory. */
int raybert_attend(const bf16 *qkv, bf16 *out, const int64_t *offsets, int64_t texts, int64_t heads, int64_t d,
                   const bf16 *bias, int64_t bias_size, int64_t window, int threads) {
    int64_t longest = 0;
    int failed = 0;
    for (int64_t i = 0; i < texts; i++)
        if (offsets[i + 1] - offsets[i] > longest) longest = offsets[i + 1] - offsets[i];
    if (!longest) return 0;
    int64_t width = (longest + 15) / 16 * 16;
    size_t bytes = 2 * width * d * sizeof(bf16) + 8 * width * (sizeof(float) + sizeof(bf16));
#pragma omp parallel num_threads(threads)
    {
        void *room = aligned_alloc(64, (bytes + 63) / 64 * 64);
        if (!room) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < texts * heads; i++) {
            int64_t text = i / heads, head = i % heads, start = offsets[text];
            Head one = {
                .qkv = qkv + (start * 3 * heads + head) * d,
                .bias = bias ? bias + head * bias_size * bias_size : NULL,
                .out = out + (start * heads + head) * d,
                .stride = 3 * heads * d,
                .side = heads * d,
                .out_stride = heads * d,
                .bias_size = bias_size,
                .t = (int)(offsets[text + 1] - start),
                .d = (int)d,
                .window = (int)window,
                .scale = 1.0f / sqrtf((float)d),
            };
            if (room && one.t > 0) attend_head(&one, room, (int)width);
        }
        free(room);
    }
    return failed;
}
