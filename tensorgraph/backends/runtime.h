/* What a generated unit knows of the runtime: how it is called, and the pool and products that it may use. */
#include <stdint.h>
#include <string.h>
#include <math.h>
#define TG_FN static inline __attribute__((always_inline, unused))
#if defined(__clang__)
#define TG_PART static __attribute__((noinline, unused))
#else
#define TG_PART static __attribute__((noipa, unused)) /* called often: inlined, a long program compiles for minutes */
#endif
#ifdef TG_STRICT
#define TG_FIXED 1
#else
#define TG_FIXED 0
#endif
#define TG_COLD __attribute__((cold)) /* calls alone: not worth the optimiser's time */
typedef struct Rt Rt;
typedef struct Call { /* w: scratch, `room` bytes for each of `threads` threads */
    void *const *p; const int64_t *s; const Rt *rt; char *w; int64_t room, threads, bad;
} Call;
typedef void (*Fn)(Call *, void *const *, int64_t, int64_t, int64_t, char *);
typedef struct Gemm { /* fixed: cut alike for any number of threads */
    int64_t wide, fixed, m, n, k, batch[3], as[3], bs[3], cs[3], a0, a1, b0, b1, ldc;
    const void *a, *b; void *c;
    int64_t first, count, add; /* entries of the batch, all if count is 0; whether the result is added to what is there */
} Gemm;
typedef struct Range { const void *p; int64_t n, size, low, high, ignores, ignored; } Range; /* size -1: unsigned */
typedef struct Packed { /* y = x w' scale, w: n rows of k int8, or bfloat16 if `half`; more than a few rows of x need scratch */
    int64_t fixed, half, m, n, k;
    const float *x; const void *w; const float *scale; float *y;
} Packed;
struct Rt {
    void (*run)(Call *, Fn, void *const *, int64_t n, int64_t parts, int64_t unit);
    void (*gemm)(Call *, const Gemm *);
    void (*packed)(Call *, const Packed *);
};
