/* Products of few rows, read at the speed of memory: each weight is used at once, and there is nothing to reuse.
   A thread reads one stream, front to back, and asks for what comes next ahead of time: several rows read at once are
   slower. Weights of int8 and bfloat16 become float32 as they are read. Every operation rounds by itself, and every
   element is summed in an order that depends on sizes alone: the same bits for any number of threads, in both modes. */
/* SHARED: bytes worth another thread; STRIP: bytes of a part, long enough that its first lines, waited for, are few */
enum { FEW = 4, AHEAD = 4096, SHARED = 32768, STRIP = 262144, SUMS = 16, STRETCH = 4096, NARROW = 128, UNPACKED = 512 };
#define INLINE static inline __attribute__((always_inline))
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
typedef float Four __attribute__((vector_size(16)));
typedef float AnyFour __attribute__((vector_size(16), aligned(4), may_alias));
typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef float AnyLanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
INLINE Lanes lanes_f(const float *p) { return *(const AnyLanes *)p; }
#if defined(__AVX512F__)
#include <immintrin.h>
INLINE Lanes lanes_b(const int8_t *p) { return (Lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p))); }
INLINE Lanes lanes_h(const uint16_t *p) { return (Lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16); }
#elif defined(__AVX2__)
#include <immintrin.h>
INLINE Lanes lanes_b(const int8_t *p) { return (Lanes)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p))); }
INLINE Lanes lanes_h(const uint16_t *p) { return (Lanes)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16); }
#else
INLINE Lanes lanes_b(const int8_t *p) { return (Lanes){p[0], p[1], p[2], p[3]}; }
INLINE Lanes lanes_h(const uint16_t *p) {
    const union { uint32_t b[4]; Lanes v; } u = {{(uint32_t)p[0] << 16, (uint32_t)p[1] << 16, (uint32_t)p[2] << 16, (uint32_t)p[3] << 16}};
    return u.v;
}
#endif
INLINE float one_f(float q) { return q; }
INLINE float one_b(int8_t q) { return (float)q; }
INLINE float one_h(uint16_t q) { const uint32_t b = (uint32_t)q << 16; float f; memcpy(&f, &b, 4); return f; }
INLINE Four quarter(Lanes v) {
    const union { Lanes v; Four f[LANES / 4]; } u = {v};
    Four t = u.f[0];
    for (int i = 1; i < LANES / 4; i++) t += u.f[i];
    return t;
}
INLINE float total(Lanes v) { const Four t = quarter(v); return (t[0] + t[2]) + (t[1] + t[3]); }
INLINE Four totals(Lanes a, Lanes b, Lanes c, Lanes d) {
    const Four p = quarter(a), q = quarter(b), r = quarter(c), s = quarter(d);
    const Four e = {p[0], q[0], r[0], s[0]}, f = {p[1], q[1], r[1], s[1]}, g = {p[2], q[2], r[2], s[2]}, h = {p[3], q[3], r[3], s[3]};
    return (e + g) + (f + h);
}
/* dots: y[i][j] = x[i] . w[j] for rows j of k elements, `ld` apart */
#define DOTS(t, T)                                                                                                   \
INLINE float dot_##t(const float *x, const T *w, int64_t k) {                                                        \
    Lanes a = {0}, b = {0}, c = {0}, d = {0};                                                                        \
    int64_t p = 0;                                                                                                   \
    for (; p + 4 * LANES <= k; p += 4 * LANES) {                                                                     \
        for (size_t l = 0; l < 4 * LANES * sizeof(T); l += 64) __builtin_prefetch((const char *)(w + p) + AHEAD + l);\
        a += lanes_f(x + p) * lanes_##t(w + p); b += lanes_f(x + p + LANES) * lanes_##t(w + p + LANES);              \
        c += lanes_f(x + p + 2 * LANES) * lanes_##t(w + p + 2 * LANES);                                              \
        d += lanes_f(x + p + 3 * LANES) * lanes_##t(w + p + 3 * LANES);                                              \
    }                                                                                                                \
    for (; p + LANES <= k; p += LANES) a += lanes_f(x + p) * lanes_##t(w + p);                                       \
    float s = total((a + b) + (c + d));                                                                                \
    for (; p < k; p++) s += x[p] * one_##t(w[p]);                                                                    \
    return s;                                                                                                        \
}                                                                                                                    \
static void dots_##t(const float *x, int64_t lda, const T *w, int64_t ld, const float *scale, float *y, int64_t ldy, \
                     int64_t m, int64_t n, int64_t k) {                                                              \
    for (int l = 0; l < AHEAD; l += 64) __builtin_prefetch((const char *)w + l);                                     \
    for (int64_t j = 0; j < n; j++)                                                                                  \
        for (int64_t i = 0; i < m; i++) {                                                                            \
            const float s = dot_##t(x + i * lda, w + j * ld, k);                                                     \
            y[i * ldy + j] = scale ? s * scale[j] : s;                                                               \
        }                                                                                                            \
}
DOTS(f, float)
DOTS(b, int8_t)
DOTS(h, uint16_t)
/* Short rows, the keys of a head: four at a time, whose lanes are summed up together, each in the order of one alone. */
static void dots_short(const float *x, int64_t lda, const float *w, int64_t ld, float *y, int64_t ldy, int64_t m, int64_t n, int64_t k) {
    int64_t j = 0;
    for (; j + 4 <= n; j += 4) {
        const float *const r = w + j * ld;
        for (int64_t l = 0; l < 4 * k; l += 16) __builtin_prefetch((const char *)(r + l) + AHEAD);
        for (int64_t i = 0; i < m; i++) {
            const float *const q = x + i * lda;
            Lanes a = {0}, b = {0}, c = {0}, d = {0};
            for (int64_t p = 0; p < k; p += LANES) {
                const Lanes v = lanes_f(q + p);
                a += v * lanes_f(r + p); b += v * lanes_f(r + ld + p); c += v * lanes_f(r + 2 * ld + p); d += v * lanes_f(r + 3 * ld + p);
            }
            *(AnyFour *)(y + i * ldy + j) = totals(a, b, c, d);
        }
    }
    for (; j < n; j++)
        for (int64_t i = 0; i < m; i++) {
            Lanes a = {0};
            for (int64_t p = 0; p < k; p += LANES) a += lanes_f(x + i * lda + p) * lanes_f(w + j * ld + p);
            y[i * ldy + j] = total(a);
        }
}
/* z[i] = x[i][lo .. hi] b[lo .. hi], for rows p of n weights, `ld` apart, in stretches of results that stay in cache */
static void columns(const float *x, int64_t x0, int64_t x1, const float *b, int64_t ld, float *z, int64_t ldz, int64_t m, int64_t n, int64_t lo, int64_t hi) {
    if (n <= NARROW) { /* results that stay in registers */
        for (int64_t i = 0; i < m; i++) {
            int64_t j = 0;
            for (; j + 4 * LANES <= n; j += 4 * LANES) {
                Lanes s = {0}, t = {0}, u = {0}, v = {0};
                for (int64_t p = lo; p < hi; p++) {
                    const float *const y = b + p * ld + j, q = x[i * x0 + p * x1];
                    for (int l = 0; l < 16 * LANES; l += 64) __builtin_prefetch((const char *)y + AHEAD + l);
                    s += q * lanes_f(y); t += q * lanes_f(y + LANES); u += q * lanes_f(y + 2 * LANES); v += q * lanes_f(y + 3 * LANES);
                }
                AnyLanes *const to = (AnyLanes *)(z + i * ldz + j);
                to[0] = s; to[1] = t; to[2] = u; to[3] = v;
            }
            for (; j < n; j++) {
                float t = 0;
                for (int64_t p = lo; p < hi; p++) t += x[i * x0 + p * x1] * b[p * ld + j];
                z[i * ldz + j] = t;
            }
        }
        return;
    }
    for (int64_t i = 0; i < m; i++) memset(z + i * ldz, 0, (size_t)n * sizeof(float));
    for (int64_t from = 0; from < n; from += STRETCH) {
        const int64_t to = from + STRETCH < n ? from + STRETCH : n;
        for (int64_t p = lo; p < hi; p++)
            for (int64_t i = 0; i < m; i++) {
                const float *const y = b + p * ld, v = x[i * x0 + p * x1];
                float *const restrict r = z + i * ldz;
                int64_t j = from;
                for (; j + LANES <= to; j += LANES) {
                    __builtin_prefetch((const char *)(y + j) + AHEAD);
                    *(AnyLanes *)(r + j) += v * lanes_f(y + j);
                }
                for (; j < to; j++) r[j] += v * y[j];
            }
    }
}
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int by_dots(const Gemm *g) { return g->b0 == 1 && g->a1 == 1; }
static int64_t entries(const Gemm *g) { return g->batch[0] * g->batch[1] * g->batch[2]; }
static int is_few(const Gemm *g) {
    return !g->wide && (!g->count || g->count == entries(g)) && !g->add && g->m <= FEW && (by_dots(g) || g->b1 == 1);
}
static int64_t in_batch(const Gemm *g, const int64_t *steps, int64_t i) {
    const int64_t last = g->batch[2], middle = g->batch[1];
    return i % last * steps[2] + i / last % middle * steps[1] + i / (last * middle) * steps[0];
}
/* results lo .. hi of all batches, one after another */
static void dots_part(Call *call, void *const *args, int64_t lo, int64_t hi, int64_t block, char *w) {
    const Gemm *g = args[0];
    (void)call; (void)block; (void)w;
    for (int64_t at = lo; at < hi;) {
        const int64_t i = at / g->n, j = at % g->n, n = least(hi - at, g->n - j);
        const float *const x = (const float *)g->a + in_batch(g, g->as, i), *const w = (const float *)g->b + in_batch(g, g->bs, i) + j * g->b1;
        float *const y = (float *)g->c + in_batch(g, g->cs, i) + j;
        if (g->k <= NARROW && g->k % LANES == 0) dots_short(x, g->a0, w, g->b1, y, g->ldc, g->m, n, g->k);
        else dots_f(x, g->a0, w, g->b1, 0, y, g->ldc, g->m, n, g->k);
        at += n;
    }
}
/* parts lo .. hi of the sums: `sums` of them in each batch, each over a stretch of k; if there are several, into args[1] */
static void columns_part(Call *call, void *const *args, int64_t lo, int64_t hi, int64_t block, char *w) {
    const Gemm *g = args[0];
    const int64_t sums = (int64_t)(intptr_t)args[2];
    (void)call; (void)block; (void)w;
    for (int64_t at = lo; at < hi; at++) {
        const int64_t i = at / sums, part = at % sums;
        float *const to = sums > 1 ? (float *)args[1] + at * g->m * g->n : (float *)g->c + in_batch(g, g->cs, i);
        columns((const float *)g->a + in_batch(g, g->as, i), g->a0, g->a1, (const float *)g->b + in_batch(g, g->bs, i), g->b0, to,
                sums > 1 ? g->n : g->ldc, g->m, g->n, g->k * part / sums, g->k * (part + 1) / sums);
    }
}
/* results lo .. hi of all batches, one after another, from their sums in args[1] */
static void merge_part(Call *call, void *const *args, int64_t lo, int64_t hi, int64_t block, char *w) {
    const Gemm *g = args[0];
    const int64_t sums = (int64_t)(intptr_t)args[2];
    (void)call; (void)block; (void)w;
    for (int64_t at = lo; at < hi;) {
        const int64_t row = at / g->n, j = at % g->n, i = row / g->m, r = row % g->m, n = least(hi - at, g->n - j);
        const float *from = (const float *)args[1] + (i * sums * g->m + r) * g->n + j;
        float *const restrict z = (float *)g->c + in_batch(g, g->cs, i) + r * g->ldc + j;
        memcpy(z, from, (size_t)n * sizeof(float));
        for (int64_t s = 1; s < sums; s++) {
            from += g->m * g->n;
            _Pragma("omp simd")
            for (int64_t q = 0; q < n; q++) z[q] += from[q];
        }
        at += n;
    }
}
static void run(Call *, Fn, void *const *, int64_t, int64_t, int64_t);
/* as many for each thread: of results that are sums by themselves, the bits do not depend on how they are cut */
static int64_t parts_of(const Call *c, int64_t bytes, int64_t most) {
    most = least(most, bytes > SHARED ? least(64, 1 + bytes / (STRIP * c->threads)) * c->threads : 1);
    return most < 1 ? 1 : most;
}
static void gemm_few(Call *c, const Gemm *given) {
    Gemm rows = *given, *const g = &rows;
    if (g->m == 1 && g->batch[2] > 1 && !g->bs[2]) { /* queries of heads that share keys and values: rows of one product */
        g->m = g->batch[2]; g->a0 = g->as[2]; g->ldc = g->cs[2];
        g->batch[2] = 1;
    }
    const int64_t count = entries(g), bytes = 4 * g->n * g->k;
    if (!count) return;
    if (by_dots(g)) {
        void *args[] = {g};
        run(c, dots_part, args, count * g->n, parts_of(c, count * bytes, count * g->n), 1);
        return;
    }
    int64_t sums = least(least(SUMS / count, bytes / SHARED), g->k / 32);
    sums = sums < 1 ? 1 : sums;
    float *const apart = sums > 1 ? malloc((size_t)(count * sums * g->m * g->n) * sizeof(float)) : 0;
    if (!apart) sums = 1;
    void *args[] = {g, apart, (void *)(intptr_t)sums};
    run(c, columns_part, args, count * sums, sums > 1 ? count * sums : parts_of(c, count * bytes, count), 1);
    if (sums > 1) run(c, merge_part, args, count * g->m * g->n, parts_of(c, 4 * count * sums * g->m * g->n, count * g->m * g->n / 16), 16);
    free(apart);
}
static void packed_part(Call *c, void *const *args, int64_t lo, int64_t hi, int64_t block, char *w) {
    const Packed *g = args[0];
    const float *const scale = g->scale ? g->scale + lo : 0;
    (void)c; (void)block; (void)w;
    if (g->half) dots_h(g->x, g->k, (const uint16_t *)g->w + lo * g->k, g->k, scale, g->y + lo, g->n, g->m, hi - lo, g->k);
    else dots_b(g->x, g->k, (const int8_t *)g->w + lo * g->k, g->k, scale, g->y + lo, g->n, g->m, hi - lo, g->k);
}
/* rows args[2] + lo .. args[2] + hi as float32 in args[1] */
static void unpack_part(Call *c, void *const *args, int64_t lo, int64_t hi, int64_t block, char *w) {
    const Packed *g = args[0];
    const int64_t k = g->k, from = (int64_t)(intptr_t)args[2];
    (void)c; (void)block; (void)w;
    for (int64_t j = lo; j < hi; j++) {
        const float s = g->scale ? g->scale[from + j] : 1;
        const int8_t *const b = (const int8_t *)g->w + (from + j) * k;
        const uint16_t *const h = (const uint16_t *)g->w + (from + j) * k;
        float *const restrict to = (float *)args[1] + j * k;
        if (g->half) { _Pragma("omp simd") for (int64_t p = 0; p < k; p++) to[p] = s * one_h(h[p]); }
        else { _Pragma("omp simd") for (int64_t p = 0; p < k; p++) to[p] = s * one_b(b[p]); }
    }
}
static void gemm(Call *, const Gemm *);
/* Few rows of x: each weight is used at once. More: a stretch of weights is unpacked, then a product as any other. */
static void packed(Call *c, const Packed *g) {
    if (g->m <= FEW) {
        void *args[] = {(void *)g};
        run(c, packed_part, args, g->n, parts_of(c, g->n * g->k * (g->half ? 2 : 1), g->n), 1);
        return;
    }
    float *const rows = (float *)c->w;
    for (int64_t from = 0; from < g->n; from += UNPACKED) {
        const int64_t n = g->n - from < UNPACKED ? g->n - from : UNPACKED;
        void *args[] = {(void *)g, rows, (void *)(intptr_t)from};
        run(c, unpack_part, args, n, parts_of(c, n * g->k, n), 1);
        const Gemm f = {0, g->fixed, g->m, n, g->k, {1, 1, 1}, {0}, {0}, {0}, g->k, 1, 1, g->k, g->n, g->x, rows, g->y + from};
        gemm(c, &f);
    }
}
