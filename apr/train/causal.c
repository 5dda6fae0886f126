/* Causal attention over sequences laid end to end, and its gradient.

   Compiled by apr.models.native for one type of numbers and one width of a head:
     REAL      float or double
     HEAD_DIM  numbers of one head
     COMMON    a power of two that divides HEAD_DIM: no vector has more numbers

   One thread takes a sequence and a key-value head, and ROWS queries at a time. Keys and values are
   transposed first, so that the scores of a query are vectors along the keys. The backward pass makes
   the weights again from the logarithm of their sum (Dao et al., 2205.14135, section 3.1). Whatever
   the number of threads, each sum has one order. */

#include "vectors.h"
#include <stdlib.h>

enum {
    VECTORS = HEAD_DIM / LANES, /* of one head */
    PAIR = VECTORS % 2 ? 1 : 2, /* vectors of a head at a time */
    ROWS = 8,                   /* queries that share what is read */
    SPAN = 2 * LANES,           /* keys that they meet at a time */
};

#define UNROLL _Pragma("GCC unroll 16")
#define LOG2_E 1.4426950408889634

/* What both passes are given. Numbers of a token lie side by side, heads within tokens. */
typedef struct {
    int64_t num_sequences, num_heads, num_kv_heads;
    const int32_t *bounds; /* of each sequence: its first token, and the one behind its last */
    const REAL *q, *k, *v; /* (N, H, d), (N, KV, d), (N, KV, d) */
    int64_t q_stride, k_stride, v_stride; /* numbers from one token to the next */
    REAL *out;  /* (N, H, d) */
    REAL *sums; /* (N, H): log2 of the sum of a query's powers of two */
} pass;

/* What the backward pass is given, and what it makes: like out, q, k and v, all without gaps. Those of
   keys and values are added to. */
typedef struct {
    const REAL *out;
    REAL *q, *k, *v;
} gradients;

/* One sequence and one key-value head: its keys and values, and room for a few rows of scores. */
typedef struct {
    int64_t start, length, wide; /* wide: the length in whole spans */
    REAL *k, *v;                 /* transposed, (d, wide); zeros behind the last */
    REAL *weights, *slopes;      /* (ROWS, wide) */
} work;

static int64_t in_spans(int64_t n) { return (n + SPAN - 1) / SPAN * SPAN; }

/* Room for the work on any of the sequences. */
static REAL *room(const pass *p)
{
    int64_t longest = 0;
    for (int64_t i = 0; i < p->num_sequences; i++) {
        int64_t length = p->bounds[2 * i + 1] - p->bounds[2 * i];
        longest = length > longest ? length : longest;
    }
    return malloc(2 * (HEAD_DIM + ROWS) * in_spans(longest) * sizeof(REAL));
}

static work begin(const pass *p, REAL *memory, int64_t sequence, int64_t kv_head)
{
    work w = {.start = p->bounds[2 * sequence]};
    w.length = p->bounds[2 * sequence + 1] - w.start;
    w.wide = in_spans(w.length);
    w.k = memory, w.v = w.k + HEAD_DIM * w.wide;
    w.weights = w.v + HEAD_DIM * w.wide, w.slopes = w.weights + ROWS * w.wide;
    const REAL *k = p->k + w.start * p->k_stride + kv_head * HEAD_DIM;
    const REAL *v = p->v + w.start * p->v_stride + kv_head * HEAD_DIM;
    for (int x = 0; x < HEAD_DIM; x++)
        for (int64_t j = 0; j < w.wide; j++) {
            w.k[x * w.wide + j] = j < w.length ? k[j * p->k_stride + x] : 0;
            w.v[x * w.wide + j] = j < w.length ? v[j * p->v_stride + x] : 0;
        }
    return w;
}

INLINE REAL total(vec x)
{
    REAL sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += x[i];
    return sum;
}

/* Scores of n keys to powers of two below the largest, those behind them up to end to zeros; the sum
   of all, and the largest score. */
INLINE REAL soften(REAL *scores, int64_t n, int64_t end, REAL *most)
{
    vec high = {0}, sum = {0}, *spans = (vec *)scores;
    int64_t wide = in_spans(end);
    high += scores[0];
    for (int64_t j = n; j < wide; j++)
        scores[j] = scores[0];
    for (int64_t j = 0; j < wide / LANES; j++)
        high = larger(high, spans[j]);
    *most = largest(high);
    for (int64_t j = 0; j < wide; j++)
        scores[j] = weight_of(scores[j] - *most);
    for (int64_t j = n; j < wide; j++)
        scores[j] = 0;
    for (int64_t j = 0; j < wide / LANES; j++)
        sum += spans[j];
    return total(sum);
}

/* to[r][j] = sum over x of rows[r][x] * columns[x][j], for ROWS rows and the first end of wide j. */
INLINE void across(REAL *to, REAL rows[ROWS][HEAD_DIM], const REAL *columns, int64_t end, int64_t wide)
{
    for (int64_t j = 0; j < end; j += SPAN) {
        vec sum[ROWS][2] = {0};
        for (int x = 0; x < HEAD_DIM; x++) {
            const vec *from = (const vec *)(columns + x * wide + j);
            UNROLL for (int r = 0; r < ROWS; r++) {
                sum[r][0] += rows[r][x] * from[0];
                sum[r][1] += rows[r][x] * from[1];
            }
        }
        UNROLL for (int r = 0; r < ROWS; r++) {
            ((vec *)(to + r * wide + j))[0] = sum[r][0];
            ((vec *)(to + r * wide + j))[1] = sum[r][1];
        }
    }
}

/* to[r][x] = sum over j of weights[r][j] * rows[j][x], for ROWS rows. */
INLINE void along(REAL to[ROWS][HEAD_DIM], const REAL *weights, const REAL *rows, int64_t stride,
                  int64_t end, int64_t wide)
{
    for (int c = 0; c < VECTORS; c += PAIR) {
        vec sum[ROWS][PAIR] = {0};
        for (int64_t j = 0; j < end; j++) {
            const vec *row = (const vec *)(rows + j * stride) + c;
            UNROLL for (int r = 0; r < ROWS; r++)
                UNROLL for (int i = 0; i < PAIR; i++)
                    sum[r][i] += weights[r * wide + j] * row[i];
        }
        UNROLL for (int r = 0; r < ROWS; r++)
            memcpy((vec *)to[r] + c, sum[r], sizeof sum[r]);
    }
}

/* to[j][x] += sum over r of weights[r][j] * rows[r][x], for ROWS rows. */
INLINE void spread(REAL *to, int64_t stride, const REAL *weights, REAL rows[ROWS][HEAD_DIM],
                   int64_t end, int64_t wide)
{
    for (int c = 0; c < VECTORS; c += PAIR) {
        vec row[ROWS][PAIR];
        UNROLL for (int r = 0; r < ROWS; r++)
            memcpy(row[r], (const vec *)rows[r] + c, sizeof row[r]);
        for (int64_t j = 0; j < end; j++) {
            vec *at = (vec *)(to + j * stride) + c, sum[PAIR];
            memcpy(sum, at, sizeof sum);
            UNROLL for (int r = 0; r < ROWS; r++)
                UNROLL for (int i = 0; i < PAIR; i++)
                    sum[i] += weights[r * wide + j] * row[r][i];
            memcpy(at, sum, sizeof sum);
        }
    }
}

/* Rows of a head from token first on, times factor; zeros behind the last of n. */
INLINE void gather(REAL to[ROWS][HEAD_DIM], const REAL *from, int64_t stride, int n, REAL factor)
{
    memset(to, 0, sizeof(REAL) * ROWS * HEAD_DIM);
    for (int r = 0; r < n; r++)
        for (int x = 0; x < HEAD_DIM; x++)
            to[r][x] = factor * from[r * stride + x];
}

static void forward_head(const pass *p, const work *w, int64_t head, int64_t kv_head)
{
    const REAL *v = p->v + w->start * p->v_stride + kv_head * HEAD_DIM;
    REAL q[ROWS][HEAD_DIM], out[ROWS][HEAD_DIM];
    for (int64_t i = 0; i < w->length; i += ROWS) {
        int n = w->length - i < ROWS ? w->length - i : ROWS;
        int64_t token = w->start + i, end = i + n;
        /* Powers of two stand in for those of e. */
        gather(q, p->q + token * p->q_stride + head * HEAD_DIM, p->q_stride, n,
               LOG2_E / sqrt((double)HEAD_DIM));
        across(w->weights, q, w->k, end, w->wide);
        REAL sums[ROWS], most;
        for (int r = 0; r < n; r++) {
            sums[r] = soften(w->weights + r * w->wide, i + r + 1, end, &most);
            p->sums[(token + r) * p->num_heads + head] = most + log2(sums[r]);
        }
        along(out, w->weights, v, p->v_stride, end, w->wide);
        for (int r = 0; r < n; r++)
            for (int x = 0; x < HEAD_DIM; x++)
                p->out[((token + r) * p->num_heads + head) * HEAD_DIM + x] = out[r][x] / sums[r];
    }
}

/* Adds to the gradients of keys and values; writes that of queries. */
static void backward_head(const pass *p, const work *w, int64_t head, int64_t kv_head, const gradients *d)
{
    int64_t stride = p->num_heads * HEAD_DIM, kv_stride = p->num_kv_heads * HEAD_DIM;
    const REAL *k = p->k + w->start * p->k_stride + kv_head * HEAD_DIM;
    REAL q[ROWS][HEAD_DIM], g[ROWS][HEAD_DIM], slope[ROWS][HEAD_DIM], factor = 1 / sqrt((REAL)HEAD_DIM);
    REAL *dk = d->k + w->start * kv_stride + kv_head * HEAD_DIM;
    REAL *dv = d->v + w->start * kv_stride + kv_head * HEAD_DIM;
    for (int64_t i = 0; i < w->length; i += ROWS) {
        int n = w->length - i < ROWS ? w->length - i : ROWS;
        int64_t token = w->start + i, end = i + n, here = token * stride + head * HEAD_DIM;
        gather(q, p->q + token * p->q_stride + head * HEAD_DIM, p->q_stride, n, factor);
        gather(g, d->out + here, stride, n, 1);
        across(w->weights, q, w->k, end, w->wide);
        across(w->slopes, g, w->v, end, w->wide);
        for (int r = 0; r < ROWS; r++) {
            REAL *restrict weights = w->weights + r * w->wide, *restrict slopes = w->slopes + r * w->wide;
            int64_t seen = r < n ? i + r + 1 : 0;
            REAL sum = r < n ? p->sums[(token + r) * p->num_heads + head] : 0;
            vec mean = {0};
            for (int c = 0; c < VECTORS && r < n; c++)
                mean += ((vec *)g[r])[c] * ((const vec *)(p->out + here + r * stride))[c];
            REAL level = total(mean);
            for (int64_t j = 0; j < seen; j++) {
                weights[j] = weight_of(weights[j] * (REAL)LOG2_E - sum);
                slopes[j] = weights[j] * (slopes[j] - level);
            }
            for (int64_t j = seen; j < end; j++)
                weights[j] = slopes[j] = 0;
        }
        along(slope, w->slopes, k, p->k_stride, end, w->wide);
        spread(dk, kv_stride, w->slopes, q, end, w->wide);
        spread(dv, kv_stride, w->weights, g, end, w->wide);
        for (int r = 0; r < n; r++)
            for (int x = 0; x < HEAD_DIM; x++)
                d->q[here + r * stride + x] = factor * slope[r][x];
    }
}

/* One pass over all sequences and heads: the backward one where gradients are asked for. */
static void run(const pass *p, const gradients *d)
{
    int64_t repeat = p->num_heads / p->num_kv_heads;
#pragma omp parallel
    {
        REAL *memory = room(p);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < p->num_sequences * p->num_kv_heads; item++) {
            int64_t kv_head = item % p->num_kv_heads;
            work w = begin(p, memory, item / p->num_kv_heads, kv_head);
            for (int64_t head = kv_head * repeat; head < (kv_head + 1) * repeat; head++)
                if (d)
                    backward_head(p, &w, head, kv_head, d);
                else
                    forward_head(p, &w, head, kv_head);
        }
        free(memory);
    }
}

void forward(const pass *p) { run(p, NULL); }

void backward(const pass *p, const REAL *grad, REAL *dq, REAL *dk, REAL *dv)
{
    gradients d = {grad, dq, dk, dv};
    run(p, &d);
}
