/* Weights of int8 or bfloat16: rows are unpacked as they are read. kind 0: int8, 1: bfloat16. */
TG_FN float tg_half(uint16_t q) { const uint32_t b = (uint32_t)q << 16; float f; memcpy(&f, &b, 4); return f; }
TG_FN float tg_byte(int8_t q) { return (float)q; }
#define TG_FEW 4
#define TG_ROWS 512
typedef struct Packed { int64_t kind, m, n, k; const float *x; const void *w; const float *scale; float *y; int64_t from; } Packed;
#define TG_DOTS(name, T, read)                                                                                   \
TG_PART void name(const Packed *g, int64_t lo, int64_t hi) {                                                     \
    const int64_t k = g->k;                                                                                      \
    int64_t j = lo;                                                                                              \
    for (; j + 4 <= hi; j += 4)                                                                                  \
        for (int64_t i = 0; i < g->m; i++) {                                                                     \
            const float *restrict x = g->x + i * k; const T *restrict q = (const T *)g->w + j * k;               \
            float s = 0, t = 0, u = 0, v = 0;                                                                    \
            _Pragma("omp simd reduction(+:s,t,u,v)")                                                             \
            for (int64_t p = 0; p < k; p++) {                                                                    \
                s = tg_fma_f(x[p], read(q[p]), s); t = tg_fma_f(x[p], read(q[p + k]), t);            \
                u = tg_fma_f(x[p], read(q[p + 2 * k]), u); v = tg_fma_f(x[p], read(q[p + 3 * k]), v);\
            }                                                                                                    \
            float *const y = g->y + i * g->n + j;                                                                \
            y[0] = s; y[1] = t; y[2] = u; y[3] = v;                                                              \
            if (g->scale) for (int r = 0; r < 4; r++) y[r] *= g->scale[j + r];                                   \
        }                                                                                                        \
    for (; j < hi; j++)                                                                                          \
        for (int64_t i = 0; i < g->m; i++) {                                                                     \
            const float *restrict x = g->x + i * k; const T *restrict q = (const T *)g->w + j * k;               \
            float s = 0;                                                                                         \
            _Pragma("omp simd reduction(+:s)")                                                                   \
            for (int64_t p = 0; p < k; p++) s = tg_fma_f(x[p], read(q[p]), s);                             \
            g->y[i * g->n + j] = g->scale ? s * g->scale[j] : s;                                                 \
        }                                                                                                        \
}
TG_DOTS(tg_dots_byte, int8_t, tg_byte)
TG_DOTS(tg_dots_half, uint16_t, tg_half)
TG_PART void tg_packed_few(Call *c, void *const *a, int64_t lo, int64_t hi, int64_t block, char *w) {
    const Packed *g = a[0]; (void)c; (void)block; (void)w;
    if (g->kind) tg_dots_half(g, lo, hi); else tg_dots_byte(g, lo, hi);
}
/* rows from + lo .. from + hi as float32, in scratch */
TG_PART void tg_unpack(Call *c, void *const *a, int64_t lo, int64_t hi, int64_t block, char *w) {
    const Packed *g = a[0]; float *const to = a[1]; const int64_t k = g->k; (void)c; (void)block; (void)w;
    for (int64_t j = lo; j < hi; j++) {
        const float s = g->scale ? g->scale[g->from + j] : 1;
        const int64_t at = (g->from + j) * k;
        if (g->kind) { _Pragma("omp simd") for (int64_t p = 0; p < k; p++) to[j * k + p] = s * tg_half(((const uint16_t *)g->w)[at + p]); }
        else { _Pragma("omp simd") for (int64_t p = 0; p < k; p++) to[j * k + p] = s * (float)((const int8_t *)g->w)[at + p]; }
    }
}
/* Few rows of x: each weight is used at once. More: a stretch of weights is unpacked, then a product as any other. */
TG_PART void tg_packed(Call *c, Packed g) {
    if (g.m <= TG_FEW) {
        void *a[] = {&g};
        int64_t parts = g.n * g.k / 131072;
        tg_run(c, tg_packed_few, a, g.n, parts < 1 ? 1 : parts > 16 ? 16 : parts, 16);
        return;
    }
    float *const rows = (float *)c->w;
    for (g.from = 0; g.from < g.n; g.from += TG_ROWS) {
        const int64_t n = g.n - g.from < TG_ROWS ? g.n - g.from : TG_ROWS;
        void *a[] = {&g, rows};
        tg_run(c, tg_unpack, a, n, n * g.k / 131072 > 1 ? 4 : 1, 16);
        const Gemm f = {0, TG_FIXED, g.m, n, g.k, {1, 1, 1}, {0}, {0}, {0}, g.k, 1, 1, g.k, g.n, g.x, rows, g.y + g.from};
        c->rt->gemm(c, &f);
    }
}
