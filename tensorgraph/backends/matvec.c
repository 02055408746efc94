/* Products of few rows, read at the speed of memory: a product of one row has nothing that a blocked one could reuse.
   Every element is summed in an order that depends on sizes alone. */
enum { FEW = 4, STRIP = 131072 /* elements of a matrix worth a part of its own */ };
static float dot(const float *restrict x, const float *restrict y, int64_t k) {
    float t = 0;
    _Pragma("omp simd reduction(+:t)")
    for (int64_t p = 0; p < k; p++) t += x[p] * y[p];
    return t;
}
/* b: rows of k elements, `ld` apart, each the weights of one result */
static void few_by_rows(const float *a, int64_t lda, const float *b, int64_t ld, float *c, int64_t ldc, int64_t m, int64_t n, int64_t k) {
    int64_t j = 0;
    for (; j + 4 <= n; j += 4)
        for (int64_t i = 0; i < m; i++) {
            const float *restrict x = a + i * lda, *restrict y = b + j * ld;
            float s = 0, t = 0, u = 0, v = 0;
            _Pragma("omp simd reduction(+:s,t,u,v)")
            for (int64_t p = 0; p < k; p++) {
                s += x[p] * y[p]; t += x[p] * y[p + ld]; u += x[p] * y[p + 2 * ld]; v += x[p] * y[p + 3 * ld];
            }
            c[i * ldc + j] = s; c[i * ldc + j + 1] = t; c[i * ldc + j + 2] = u; c[i * ldc + j + 3] = v;
        }
    for (; j < n; j++)
        for (int64_t i = 0; i < m; i++) c[i * ldc + j] = dot(a + i * lda, b + j * ld, k);
}
/* b: k rows of n results, `ld` apart; eight rows at a time pass over a stretch of the results that stays in cache */
static void few_by_columns(const float *a, int64_t lda, int64_t a1, const float *b, int64_t ld, float *c, int64_t ldc, int64_t m, int64_t n, int64_t k) {
    for (int64_t i = 0; i < m; i++) memset(c + i * ldc, 0, (size_t)n * sizeof(float));
    int64_t p = 0;
    for (; p + 8 <= k; p += 8)
        for (int64_t i = 0; i < m; i++) {
            const float *restrict y = b + p * ld, *x = a + i * lda + p * a1;
            float *restrict z = c + i * ldc;
            const float x0 = x[0], x1 = x[a1], x2 = x[2 * a1], x3 = x[3 * a1], x4 = x[4 * a1], x5 = x[5 * a1], x6 = x[6 * a1], x7 = x[7 * a1];
            _Pragma("omp simd")
            for (int64_t j = 0; j < n; j++)
                z[j] += ((x0 * y[j] + x1 * y[j + ld]) + (x2 * y[j + 2 * ld] + x3 * y[j + 3 * ld]))
                      + ((x4 * y[j + 4 * ld] + x5 * y[j + 5 * ld]) + (x6 * y[j + 6 * ld] + x7 * y[j + 7 * ld]));
        }
    for (; p < k; p++)
        for (int64_t i = 0; i < m; i++) {
            const float *restrict y = b + p * ld;
            const float x = a[i * lda + p * a1];
            float *restrict z = c + i * ldc;
            _Pragma("omp simd")
            for (int64_t j = 0; j < n; j++) z[j] += x * y[j];
        }
}
static int is_few(const Gemm *g) {
    return !g->wide && g->m <= FEW && ((g->b0 == 1 && g->a1 == 1) || g->b1 == 1);
}
/* whether a part of a product was one of few rows, and is done */
static int few(const Gemm *g, const float *a, const float *b, float *c, int64_t m, int64_t n) {
    if (!is_few(g)) return 0;
    if (g->b0 == 1 && g->a1 == 1) few_by_rows(a, g->a0, b, g->b1, c, g->ldc, m, n, g->k);
    else few_by_columns(a, g->a0, g->a1, b, g->b0, c, g->ldc, m, n, g->k);
    return 1;
}
