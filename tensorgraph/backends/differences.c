/* Central differences of a whole program's scalar y, for every element of x: no step back to the caller between them. */
int tg_differences(Call *c, int (*f)(Call *), double *x, int64_t n, double h, const double *y, double *out) {
    for (int64_t i = 0; i < n; i++) {
        const double at = x[i];
        c->bad = 0;
        x[i] = at + h;
        int bad = f(c);
        const double above = *y;
        x[i] = at - h;
        bad |= f(c);
        out[i] = (above - *y) / (2 * h);
        x[i] = at;
        if (bad) return 1;
    }
    return 0;
}
