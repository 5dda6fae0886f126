/* What a Llama does between its matrix products, each in one pass over memory.
   Compiled by apr.models.native; REAL is float or double. */

#include "exp2.h"

#define SERIAL 8192 /* numbers that are done sooner than threads are woken */

/* x (n, width) -> out: each row divided by its root mean square, times weight (width). */
void rms_norm(int64_t n, int64_t width, const REAL *x, const REAL *weight, double eps, REAL *out)
{
#pragma omp parallel for if (n * width > SERIAL)
    for (int64_t i = 0; i < n; i++) {
        const REAL *from = x + i * width;
        REAL *to = out + i * width, sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++)
            sum += from[j] * from[j];
        REAL scale = 1 / sqrt(sum / width + (REAL)eps);
        for (int64_t j = 0; j < width; j++)
            to[j] = from[j] * scale * weight[j];
    }
}

/* x (n, heads, d) with stride numbers from one token to the next, cos and sin (n, d) -> out. */
void rotate(int64_t n, int64_t heads, int64_t d, int64_t stride, const REAL *x, const REAL *cos,
            const REAL *sin, REAL *out)
{
    int64_t half = d / 2;
#pragma omp parallel for if (n * heads * d > SERIAL)
    for (int64_t i = 0; i < n; i++) {
        const REAL *c = cos + i * d, *s = sin + i * d;
        for (int64_t h = 0; h < heads; h++) {
            const REAL *from = x + i * stride + h * d;
            REAL *to = out + (i * heads + h) * d;
            for (int64_t j = 0; j < half; j++) {
                to[j] = from[j] * c[j] - from[j + half] * s[j];
                to[j + half] = from[j + half] * c[j + half] + from[j] * s[j + half];
            }
        }
    }
}

/* gate_up (n, 2 width) -> out (n, width): silu of the first half times the second. */
void silu_mul(int64_t n, int64_t width, const REAL *gate_up, REAL *out)
{
#pragma omp parallel for if (n * width > SERIAL)
    for (int64_t i = 0; i < n; i++) {
        const REAL *gate = gate_up + 2 * i * width, *up = gate + width;
        REAL *to = out + i * width;
#pragma omp simd
        for (int64_t j = 0; j < width; j++)
            to[j] = gate[j] / (1 + power_of_two(gate[j] * (REAL)-1.4426950408889634)) * up[j];
    }
}
