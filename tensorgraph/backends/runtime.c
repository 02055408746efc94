/* One thread pool that owns all cores, and matrix products cut over it, each part a call of a one-thread BLAS.
   How work is cut depends on sizes alone, never on the number of threads, so that any number of them gives the same bits;
   only fast mode cuts large products by it. */
#define _GNU_SOURCE
#include "runtime.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif
enum { SPIN = 4000, LINGER = 16000 }; /* turns of waiting: for the others of a job; for the next job, some 0.4 ms */
typedef void (*gemm64)(int, int, int, int64_t, int64_t, int64_t, float, const float *, int64_t, const float *, int64_t, float, float *, int64_t);
typedef void (*gemm32)(int, int, int, int, int, int, float, const float *, int, const float *, int, float, float *, int);
typedef void (*dgemm64)(int, int, int, int64_t, int64_t, int64_t, double, const double *, int64_t, const double *, int64_t, double, double *, int64_t);
typedef void (*dgemm32)(int, int, int, int, int, int, double, const double *, int, const double *, int, double, double *, int);

static struct { Call *call; Fn fn; void *const *a; int64_t n, parts, unit, threads; } job;
static atomic_uint_least64_t turn;   /* generation << 32 | next part */
static atomic_int_least64_t done;
static atomic_int sleepers, busy;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static int64_t made = 1; /* threads, the caller's among them */
static void *sgemm, *dgemm;
static void (*blas_set)(int);
static int (*blas_get)(void);
static int wide_ints;
Rt tg_rt;

static void part(Call *c, Fn fn, void *const *a, int64_t n, int64_t parts, int64_t unit, int64_t i, int64_t id) {
    int64_t units = (n + unit - 1) / unit, lo = units * i / parts * unit, hi = units * (i + 1) / parts * unit;
    fn(c, a, lo, hi < n ? hi : n, i, c->w + id * c->room);
}
/* A part is claimed only in the generation that is under way: whoever comes late claims nothing and runs no job. */
static void work(uint32_t generation, int64_t id) {
    for (;;) {
        uint64_t t = atomic_load(&turn);
        if ((uint32_t)(t >> 32) != generation) return;
        int64_t i = (int64_t)(uint32_t)t;
        if (i >= job.parts || id >= job.threads) return;
        if (!atomic_compare_exchange_weak(&turn, &t, t + 1)) continue;
        part(job.call, job.fn, job.a, job.n, job.parts, job.unit, i, id);
        atomic_fetch_add(&done, 1);
    }
}
static void *worker(void *arg) {
    int64_t id = (int64_t)(intptr_t)arg;
    uint32_t seen = 0;
    for (;;) {
        uint32_t now = 0;
        for (int i = 0; i < LINGER; i++) {
            now = (uint32_t)(atomic_load(&turn) >> 32);
            if (now != seen) break;
            PAUSE();
        }
        if (now == seen) {
            pthread_mutex_lock(&lock);
            atomic_fetch_add(&sleepers, 1);
            while ((now = (uint32_t)(atomic_load(&turn) >> 32)) == seen) pthread_cond_wait(&wake, &lock);
            atomic_fetch_sub(&sleepers, 1);
            pthread_mutex_unlock(&lock);
        }
        seen = now;
        work(now, id);
    }
    return 0;
}
static void more(int64_t threads) {
    for (; made < threads; made++) {
        pthread_t t;
        if (pthread_create(&t, 0, worker, (void *)(intptr_t)made)) return;
        pthread_detach(t);
    }
}
static void alone(void) { made = 1; atomic_store(&sleepers, 0); atomic_store(&busy, 0); pthread_mutex_init(&lock, 0); pthread_cond_init(&wake, 0); }
static void run(Call *c, Fn fn, void *const *a, int64_t n, int64_t parts, int64_t unit) {
    if (c->threads < 2 || parts < 2 || atomic_exchange(&busy, 1)) {
        for (int64_t i = 0; i < parts; i++) part(c, fn, a, n, parts, unit, i, 0);
        return;
    }
    if (made < c->threads) more(c->threads);
    job.threads = c->threads;
    job.call = c; job.fn = fn; job.a = a; job.n = n; job.parts = parts; job.unit = unit;
    atomic_store(&done, 0);
    uint32_t generation = (uint32_t)(atomic_load(&turn) >> 32) + 1;
    atomic_store(&turn, (uint64_t)generation << 32);
    if (atomic_load(&sleepers)) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&lock);
    }
    work(generation, 0);
    for (int spin = 0; atomic_load(&done) < parts; spin++) { if (spin < SPIN) PAUSE(); else sched_yield(); }
    atomic_store(&turn, ((uint64_t)generation << 32) | 0xffffffffu);
    atomic_store(&busy, 0);
}

static void plain(const Gemm *g, const void *a, const void *b, void *c, int64_t m, int64_t n) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            if (g->wide) {
                double t = g->add ? ((double *)c)[i * g->ldc + j] : 0;
                for (int64_t p = 0; p < g->k; p++) t += ((const double *)a)[i * g->a0 + p * g->a1] * ((const double *)b)[p * g->b0 + j * g->b1];
                ((double *)c)[i * g->ldc + j] = t;
            } else {
                float t = g->add ? ((float *)c)[i * g->ldc + j] : 0;
                for (int64_t p = 0; p < g->k; p++) t += ((const float *)a)[i * g->a0 + p * g->a1] * ((const float *)b)[p * g->b0 + j * g->b1];
                ((float *)c)[i * g->ldc + j] = t;
            }
        }
}
#include "matvec.c"
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static void product(const Gemm *g, const void *a, const void *b, void *c, int64_t m, int64_t n) {
    if (m <= 0 || n <= 0) return;
    if (g->k * m * n < 512) { plain(g, a, b, c, m, n); return; }
    int ta = g->a1 == 1 || g->k == 1 ? 111 : 112, tb = g->b1 == 1 || g->n == 1 ? 111 : 112;
    if (g->k == 1 && g->a1 != 1 && g->a0 == 1) ta = 112;
    if (g->n == 1 && g->b1 != 1 && g->b0 == 1) tb = 112;
    int64_t lda = ta == 111 ? most(g->m == 1 ? g->k : g->a0, g->k) : most(g->k == 1 ? g->m : g->a1, m);
    int64_t ldb = tb == 111 ? most(g->k == 1 ? g->n : g->b0, n) : most(g->n == 1 ? g->k : g->b1, g->k);
    int add = g->add != 0;
    if (g->wide) {
        if (wide_ints) ((dgemm64)dgemm)(101, ta, tb, m, n, g->k, 1, a, lda, b, ldb, add, c, g->ldc);
        else ((dgemm32)dgemm)(101, ta, tb, (int)m, (int)n, (int)g->k, 1, a, (int)lda, b, (int)ldb, add, c, (int)g->ldc);
    } else {
        if (wide_ints) ((gemm64)sgemm)(101, ta, tb, m, n, g->k, 1, a, lda, b, ldb, add, c, g->ldc);
        else ((gemm32)sgemm)(101, ta, tb, (int)m, (int)n, (int)g->k, 1, a, (int)lda, b, (int)ldb, add, c, (int)g->ldc);
    }
}
/* a[0]: the product; a[1]: how it is cut: 0 by batch, 1 by rows, 2 by columns */
static void gemm_part(Call *call, void *const *args, int64_t lo, int64_t hi, int64_t block, char *w) {
    const Gemm *g = args[0];
    int64_t e = g->wide ? 8 : 4, how = (int64_t)(intptr_t)args[1];
    (void)call; (void)block; (void)w;
    if (how == 0) {
        for (int64_t i = g->first + lo; i < g->first + hi; i++) {
            int64_t i2 = i % g->batch[2], i1 = i / g->batch[2] % g->batch[1], i0 = i / (g->batch[2] * g->batch[1]);
            product(g, (const char *)g->a + e * (i0 * g->as[0] + i1 * g->as[1] + i2 * g->as[2]), (const char *)g->b + e * (i0 * g->bs[0] + i1 * g->bs[1] + i2 * g->bs[2]),
                    (char *)g->c + e * (i0 * g->cs[0] + i1 * g->cs[1] + i2 * g->cs[2]), g->m, g->n);
        }
    } else if (how == 1) {
        product(g, (const char *)g->a + e * lo * g->a0, g->b, (char *)g->c + e * lo * g->ldc, hi - lo, g->n);
    } else {
        product(g, g->a, (const char *)g->b + e * lo * g->b1, (char *)g->c + e * lo, g->m, hi - lo);
    }
}
static void gemm(Call *c, const Gemm *g) {
    int64_t count = g->count ? g->count : entries(g);
    double flops = 2.0 * (double)g->m * (double)g->n * (double)g->k;
    void *args[2] = {(void *)(intptr_t)g, 0};
    if (is_few(g)) { gemm_few(c, g); return; }
    int threads = blas_get ? blas_get() : 1;
    if (threads != 1 && blas_set) blas_set(1);
    if (count > 1) {
        int64_t parts = (int64_t)(flops * (double)count / 1e6);
        parts = parts < 1 ? 1 : parts > count ? count : parts;
        run(c, gemm_part, args, count, parts > 32 ? 32 : parts, 1);
    } else if (flops < 2e6) {
        product(g, g->a, g->b, g->c, g->m, g->n);
    } else {
        /* BLAS packs both factors anew in every part: as few parts as keep all threads busy, and of columns unless there
           are few. An element is summed in the order of k whatever the part, but BLAS does not promise it. */
        int64_t parts = flops < 1.6e7 ? 2 : g->fixed ? 4 : c->threads;
        int rows = g->m >= 4 * g->n || (g->n / 64 < parts && g->m > g->n);
        int64_t n = rows ? g->m : g->n, most = n / 64 > 1 ? n / 64 : 1;
        args[1] = (void *)(intptr_t)(rows ? 1 : 2);
        run(c, gemm_part, args, n, parts > most ? most : parts, 16);
    }
    if (threads != 1 && blas_set) blas_set(threads);
}
int tg_init(void *s, void *d, void *set, void *get, int wide) {
    tg_rt.run = run; tg_rt.gemm = gemm; tg_rt.packed = packed;
    sgemm = s; dgemm = d; blas_set = (void (*)(int))set; blas_get = (int (*)(void))get; wide_ints = wide;
    pthread_atfork(0, 0, alone);
    return 0;
}
/* a whole program: 2 if an index given from outside leaves its range, else what the program says */
int tg_step(Call *c, int (*f)(Call *), const Range *r, int64_t count) {
    for (int64_t i = 0; i < count; i++, r++)
        for (int64_t j = 0; j < r->n; j++) {
            const int64_t v = r->size == 4 ? ((const int32_t *)r->p)[j] : r->size == 8 ? ((const int64_t *)r->p)[j]
                : r->size == 1 ? ((const int8_t *)r->p)[j] : ((const uint8_t *)r->p)[j];
            if ((v < r->low || v >= r->high) && !(r->ignores && v == r->ignored)) return 2;
        }
    c->bad = 0;
    return f(c);
}
#include "differences.c"
