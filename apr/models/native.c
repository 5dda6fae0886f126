/* A Llama in C, for inference: every product, and the whole network around an attention that the
   caller hands in. Compiled by apr.models.native:
     REAL      float or double
     ROUNDED   what products round both sides to: 0 nothing, 1 bfloat16, 2 int8, with a scale for each row
               of x and of a matrix; 1 and 2 with floats alone
     AMX       whether to multiply those in tiles of 16 rows, which some processors have registers for;
               by default where this one has

   Each number of a product is a sum in one fixed order, however many rows there are: what a token
   gives does not depend, not by one bit, on what else is in the batch. */

#include "vectors.h"
#include <omp.h>
#include <stdlib.h>
#if ROUNDED && defined __AVX2__
#include <immintrin.h>
#endif
#if defined AMX
#elif ROUNDED == 1 && defined __AMX_BF16__ || ROUNDED == 2 && defined __AMX_INT8__
#define AMX 1
#else
#define AMX 0
#endif
#if AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* A tile is some rows by VECTORS vectors of sums: ROWS where there are many, and up to MOST where that
   makes it one tile, which reads the weights once. So many sums fit 32 registers, or 16. */
#if REGISTERS == 32
#define ROWS 8
#define MOST 12
#define FEW 8 /* rows beside which the processor asks for what lies ahead by itself */
#else
#define ROWS 6
#define MOST 6
#define FEW 0
#endif
#define VECTORS 2
#define BLOCK 256 /* rows that a thread takes at a time */
#define SERIAL (1 << 16) /* multiplications that are done sooner than threads are woken */
#define MANY 500000       /* the same for a whole network */
#define NEAR 2048         /* factors that a tile alone asks for before they are multiplied */

enum { LANES = WIDEST / sizeof(REAL), PANEL = VECTORS * LANES };
#define VECTOR(type) __attribute__((vector_size(WIDEST), aligned(sizeof(type)), may_alias))
typedef REAL vec VECTOR(REAL);

/* What is multiplied at a time: NUMBERS of a row of x with as many of each of the columns of a vector. */
#if ROUNDED
typedef uint32_t factor; /* the first of its numbers in its lowest bits */
#else
typedef REAL factor;
#endif
typedef factor factors VECTOR(factor);

/* Behind the factors of a row of int8 its scale and its sum; behind those of a panel, those of each of
   its columns. */
enum { NUMBERS = ROUNDED ? 2 * ROUNDED : 1, TAIL = ROUNDED == 2 ? 2 : 0, DEEP = AMX ? 16 : 1 };

/* A factor is multiplied whole where an instruction does that; else in two halves, its even numbers and its
   odd ones, and those of x lie side by side. */
#if ROUNDED == 0 || ROUNDED == 1 && defined __AVX512BF16__ || ROUNDED == 2 && defined __AVX512VNNI__
#define PARTS 1
#else
#define PARTS 2
#endif

enum { LINE = 64 / sizeof(REAL) }; /* factors that memory gives at a time */

/* Factors of a row of k numbers, and of a panel of so many columns: in whole tiles, with zeros behind. */
INLINE int64_t depth_of(int64_t k)
{
    int64_t deep = DEEP * NUMBERS;
    return (k + deep - 1) / deep * DEEP + TAIL;
}

#if ROUNDED == 0
typedef vec sums, part;
INLINE part part_of(factors weights, int p) { return weights; }
INLINE sums multiply_add(sums sum, REAL x, part weights) { return sum + x * weights; }
INLINE void factorize(const REAL *row, int64_t k, factor *to) { memcpy(to, row, k * sizeof *row); }

#elif ROUNDED == 1
typedef vec sums, part;
typedef uint32_t bits VECTOR(uint32_t);
typedef uint16_t half __attribute__((vector_size(WIDEST / 2), aligned(sizeof(uint16_t)), may_alias));

/* To the nearest, ties to even. */
INLINE half rounded(vec x)
{
#if defined __AVX512BF16__
    return (half)_mm512_cvtneps_pbh((__m512)x);
#else
    bits b = (bits)x;
    return __builtin_convertvector((b + 0x7fff + (b >> 16 & 1)) >> 16, half);
#endif
}

/* The factors of a row of k numbers, of which the last may have nothing beside it. */
static void factorize(const REAL *row, int64_t k, factor *to)
{
    int64_t whole = k - k % LANES;
    memset(to + whole / 2, 0, (depth_of(k) - whole / 2) * sizeof *to);
    for (int64_t j = 0; j < whole; j += LANES)
        *(half *)(to + j / 2) = rounded(*(const vec *)(row + j));
    if (whole < k) {
        vec x = {0};
        memcpy(&x, row + whole, (k - whole) * sizeof *row);
        *(half *)(to + whole / 2) = rounded(x);
    }
}

#if PARTS == 1
INLINE part part_of(factors weights, int p) { return (part)weights; }
#else
INLINE uint32_t half_of(uint32_t x, int p) { return p ? x & 0xffff0000 : x << 16; }
INLINE part part_of(factors weights, int p)
{
    return p ? (part)(weights & 0xffff0000) : (part)(weights << 16);
}
#endif

INLINE sums multiply_add(sums sum, uint32_t x, part weights)
{
#if PARTS == 1
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(x), (__m512bh)weights);
#else
    float number;
    memcpy(&number, &x, sizeof x);
    return sum + number * weights;
#endif
}

#else
enum { ZERO = 128 };
typedef int32_t sums VECTOR(int32_t), part VECTOR(int32_t);
typedef int16_t words VECTOR(int16_t);

/* The factors of a row of k numbers: each is its scale times an integer from -127 to 127, to which
   ZERO is added, since processors multiply unsigned bytes by signed ones. Of a row that is not finite
   the scale is no number, and so is all that it gives. */
static void factorize(const REAL *row, int64_t k, factor *to)
{
    int64_t depth = depth_of(k) - TAIL;
    uint8_t *bytes = (uint8_t *)to;
    REAL most = 1e-20, odd = 0;
    int32_t sum = 0;
#pragma omp simd reduction(max : most) reduction(+ : odd)
    for (int64_t j = 0; j < k; j++) {
        most = fabs(row[j]) > most ? fabs(row[j]) : most;
        odd += row[j] - row[j];
    }
    REAL scale = most / 127 + odd, per = 1 / scale;
#pragma omp simd
    for (int64_t j = 0; j < k; j++)
        bytes[j] = (uint8_t)((int32_t)rint(row[j] * per) + ZERO);
    memset(bytes + k, ZERO, depth * NUMBERS - k);
    for (int64_t j = 0; j < k; j++)
        sum += bytes[j] - ZERO;
    memcpy(to + depth, &scale, sizeof scale);
    memcpy(to + depth + 1, &sum, sizeof sum);
}

/* x: unsigned bytes, and signed ones of weights. Its halves are two words each. */
#if PARTS == 1
INLINE part part_of(factors weights, int p) { return (part)weights; }
INLINE sums multiply_add(sums sum, uint32_t x, part weights)
{
    return (sums)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(x), (__m512i)weights);
}
#else
INLINE uint32_t half_of(uint32_t x, int p) { return (p ? x >> 8 : x) & 0xff00ff; }
INLINE part part_of(factors weights, int p) { return (part)((words)(p ? weights : weights << 8) >> 8); }
INLINE sums multiply_add(sums sum, uint32_t x, part weights)
{
    part factor = (int32_t)x - (part){0};
#if defined __AVX512BW__
    return sum + (sums)_mm512_madd_epi16((__m512i)factor, (__m512i)weights);
#elif defined __AVX2__ && !defined __AVX512F__
    return sum + (sums)_mm256_madd_epi16((__m256i)factor, (__m256i)weights);
#else
    return sum + (factor << 16 >> 16) * (weights << 16 >> 16) + (factor >> 16) * (weights >> 16);
#endif
}
#endif

/* What a sum of products is, given the tails of a row and of the columns of a vector. */
INLINE vec finish(sums sum, const factor *row, const factor *columns)
{
    REAL scale;
    memcpy(&scale, row, sizeof scale);
    sums exact = sum - ZERO * *(const sums *)(columns + PANEL);
    return scale * *(const vec *)columns * __builtin_convertvector(exact, vec);
}
#endif

#if ROUNDED != 2
INLINE vec finish(sums sum, const factor *row, const factor *columns) { return sum; }
#endif

#if ROUNDED
/* The factors of a row of x, as tiles read them. */
static void factorize_x(const REAL *row, int64_t k, factor *to)
{
#if PARTS == 1
    factorize(row, k, to);
#else
    int64_t depth = depth_of(k), whole = depth - TAIL;
    factor all[depth + LANES];
    factorize(row, k, all);
    for (int64_t j = 0; j < whole; j++)
        for (int p = 0; p < PARTS; p++)
            to[j * PARTS + p] = half_of(all[j], p);
    memcpy(to + whole * PARTS, all + whole, TAIL * sizeof *to);
#endif
}
#endif

/* Factors of a packed matrix (n, k). */
int64_t packed_size(int64_t n, int64_t k) { return (n + PANEL - 1) / PANEL * PANEL * depth_of(k); }

/* A matrix (n, k) in panels: PANEL of its rows, lying so that their numbers of one k are side by side;
   zeros where the last panel has no row. */
void pack(int64_t n, int64_t k, const REAL *matrix, factor *packed)
{
    int64_t depth = depth_of(k);
#pragma omp parallel for
    for (int64_t i = 0; i < n + PANEL - 1 - (n - 1) % PANEL; i++) {
        factor row[depth + LANES], *to = packed + i / PANEL * depth * PANEL + i % PANEL;
        if (i < n)
            factorize(matrix + i * k, k, row);
        for (int64_t j = 0; j < depth; j++)
            to[j * PANEL] = i < n ? row[j] : 0;
#if ROUNDED == 2
        for (int64_t j = 0; j < depth - TAIL && i < n; j++)
            to[j * PANEL] ^= 0x80808080; /* less ZERO: signed bytes */
#endif
    }
}

/* Sums of one row and one panel, given their tails, to out or added to what is there. */
INLINE void put(const sums sum[VECTORS], const factor *row_tail, const factor *tails, int64_t columns,
                REAL *out, int add)
{
    vec all[VECTORS];
    for (int c = 0; c < VECTORS; c++)
        all[c] = finish(sum[c], row_tail, tails + c * LANES);
    const REAL *from = (const REAL *)all;
    for (int64_t c = 0; c < columns; c++)
        out[c] = add ? out[c] + from[c] : from[c];
}

/* What to ask of memory meanwhile, into the second cache: so many factors at each of the panel, one behind
   the other, the first of them this far on. */
typedef struct {
    int64_t far, each;
} ahead;

/* A few rows of x, which are so far apart, times one panel; rows is known when this is compiled. */
INLINE void tile(int rows, int64_t depth, int64_t n, int64_t columns, const factor *x, int64_t apart,
                 const factor *panel, REAL *out, int add, ahead ask)
{
    sums sum[MOST][VECTORS] = {0};
    for (int64_t j = 0; j < depth - TAIL; j++) {
        for (int64_t line = 0; line < ask.each; line += LINE)
            __builtin_prefetch(panel + ask.far + j * ask.each + line, 0, 2);
        for (int p = 0; p < PARTS; p++) {
            part weights[VECTORS];
            for (int c = 0; c < VECTORS; c++) {
                weights[c] = part_of(((const factors *)(panel + j * PANEL))[c], p);
                KEEP(weights[c]);
            }
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < VECTORS; c++)
                    sum[r][c] = multiply_add(sum[r][c], x[r * apart + j * PARTS + p], weights[c]);
        }
    }
    for (int r = 0; r < rows; r++)
        put(sum[r], x + r * apart + (depth - TAIL) * PARTS, panel + (depth - TAIL) * PANEL, columns,
            out + r * n, add);
}

#if AMX
static int amx;

/* The kernel gives the registers to those who ask, once for a process. */
__attribute__((constructor)) static void ask_for_amx(void)
{
    enum { REQUEST = 0x1023, TILE_DATA = 18 };
    amx = !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
}

/* Sums in tiles 0 and 1 of the upper rows by VECTORS vectors, 2 and 3 of the lower; 4 and 5 hold their
   factors, 6 and 7 those of the panel. */
INLINE void shape_tiles(int upper, int lower)
{
    int spare = lower ? lower : 1; /* a tile has a row at least */
    struct {
        uint8_t palette, start, unused[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {1, .rows = {upper, upper, spare, spare, upper, spare, DEEP, DEEP}};
    for (int i = 0; i < 8; i++)
        shape.bytes[i] = WIDEST;
    _tile_loadconfig(&shape);
}

#if ROUNDED == 1
#define MULTIPLY_TILES _tile_dpbf16ps
#else
#define MULTIPLY_TILES _tile_dpbusd
#endif

/* As tiles below, up to 32 rows at a time: two tiles of rows share what is read of the panel. */
static void amx_tiles(int64_t rows, int64_t depth, int64_t n, int64_t columns, const factor *x,
                      int64_t apart, const factor *panel, REAL *out, int add)
{
    int64_t num = (rows + 31) / 32, some = (rows + num - 1) / num; /* all of one shape: */
    int upper = some > 16 ? (some + 1) / 2 : some, lower = some - upper;
    sums sum[32][VECTORS];
    shape_tiles(upper, lower);
    for (int64_t i = 0; i < num; i++) {
        int64_t next = i * some, first = next + some > rows ? rows - some : next; /* some rows again */
        const factor *high = x + first * apart, *low = high + upper * apart;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t j = 0; j < depth - TAIL; j += DEEP) {
            const factor *weights = panel + j * PANEL;
            for (int c = 0; !i && c < DEEP * VECTORS; c++)
                __builtin_prefetch(weights + NEAR + c * LANES, 0, 2);
            _tile_loadd(6, weights, PANEL * sizeof(factor));
            _tile_loadd(7, weights + LANES, PANEL * sizeof(factor));
            _tile_loadd(4, high + j, apart * sizeof(factor));
            MULTIPLY_TILES(0, 4, 6);
            MULTIPLY_TILES(1, 4, 7);
            if (lower) {
                _tile_loadd(5, low + j, apart * sizeof(factor));
                MULTIPLY_TILES(2, 5, 6);
                MULTIPLY_TILES(3, 5, 7);
            }
        }
        _tile_stored(0, sum[0], sizeof sum[0]);
        _tile_stored(1, sum[0] + 1, sizeof sum[0]);
        if (lower) {
            _tile_stored(2, sum[upper], sizeof sum[0]);
            _tile_stored(3, sum[upper] + 1, sizeof sum[0]);
        }
        for (int64_t r = next; r < first + some; r++)
            put(sum[r - first], x + r * apart + depth - TAIL, panel + (depth - TAIL) * PANEL, columns,
                out + r * n, add);
    }
}
#endif

static void tiles(int64_t rows, int64_t depth, int64_t n, int64_t columns, const factor *x,
                  int64_t apart, const factor *panel, REAL *out, int add)
{
#if AMX
    if (amx)
        return amx_tiles(rows, depth, n, columns, x, apart, panel, out, add);
#endif
    int64_t num = rows <= MOST ? 1 : (rows + ROWS - 1) / ROWS;
    /* All but the first find the panel in a cache: each asks for its share of the next one. */
    ahead ask = {num == 1 ? NEAR : depth * PANEL, num == 1 && rows <= FEW ? 0 : (PANEL + num - 1) / num};
    for (int64_t i = 1, some; i <= num; i++, rows -= some, x += some * apart, out += some * n) {
        some = rows / (num - i + 1); /* all about as high as each other */
        switch (some) {
#define CASE(known)                                                                                \
    case known:                                                                                    \
        tile(known, depth, n, columns, x, apart, panel, out, add, ask);                            \
        break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if MOST > 6
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
        }
        ask.far += depth * ask.each;
    }
}

/* Factors from one row of k numbers to the next: not in the same place of every page. */
INLINE int64_t apart_of(int64_t k)
{
    if (AMX)
        return ((depth_of(k) + LANES - 1) / LANES | 1) * LANES; /* whole lines of the cache */
    return ROUNDED ? depth_of(k) * PARTS + LANES : k;
}

/* x (rows, k) times a packed matrix (n, k), to out (rows, n) or added to what is there. This and all
   up to forward is called by every thread, and over when it is over for all.
   room: for the factors of x, where those are not x itself. */
static void product(int64_t rows, int64_t k, int64_t n, const REAL *x, const factor *packed,
                    REAL *out, int add, void *room)
{
    int64_t panels = (n + PANEL - 1) / PANEL, blocks = (rows + BLOCK - 1) / BLOCK;
    int64_t depth = depth_of(k), apart = apart_of(k);
#if ROUNDED
    factor *from = room;
#pragma omp for
    for (int64_t i = 0; i < rows; i++)
        factorize_x(x + i * k, k, from + i * apart);
#else
    const factor *from = x;
#endif
#pragma omp for collapse(2)
    for (int64_t p = 0; p < panels; p++)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t first = b * BLOCK, left = rows - first, columns = n - p * PANEL;
            tiles(left < BLOCK ? left : BLOCK, depth, n, columns < PANEL ? columns : PANEL,
                  from + first * apart, apart, packed + p * depth * PANEL,
                  out + first * n + p * PANEL, add);
        }
#if AMX
    if (amx)
        _tile_release();
#endif
}

/* The same, called by one thread. */
void linear(int64_t rows, int64_t k, int64_t n, const REAL *x, const factor *packed, REAL *out)
{
    void *room = ROUNDED ? malloc(rows * apart_of(k) * sizeof(factor)) : NULL;
#pragma omp parallel if (rows * k * n > SERIAL)
    product(rows, k, n, x, packed, out, 0, room);
    free(room);
}

/* x (n, width) -> out: each row divided by its root mean square, times weight (width). */
static void rms_norm(int64_t n, int64_t width, const REAL *x, const REAL *weight, double eps, REAL *out)
{
#pragma omp for
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

/* The first heads of x (n, stride), d numbers each, turned to their positions; cos and sin (.., d). */
static void rotate(int64_t n, int64_t heads, int64_t d, int64_t stride, REAL *x,
                   const int64_t *positions, const REAL *cos, const REAL *sin)
{
    int64_t half = d / 2;
#pragma omp for
    for (int64_t i = 0; i < n; i++) {
        const REAL *c = cos + positions[i] * d, *s = sin + positions[i] * d;
        for (int64_t h = 0; h < heads; h++) {
            REAL *at = x + i * stride + h * d;
            for (int64_t j = 0; j < half; j++) {
                REAL left = at[j], right = at[j + half];
                at[j] = left * c[j] - right * s[j];
                at[j + half] = right * c[j + half] + left * s[j + half];
            }
        }
    }
}

/* gate_up (n, 2 width) -> out (n, width): silu of the first half times the second. */
static void silu_mul(int64_t n, int64_t width, const REAL *gate_up, REAL *out)
{
#pragma omp for
    for (int64_t i = 0; i < n; i++) {
        const REAL *gate = gate_up + 2 * i * width, *up = gate + width;
        REAL *to = out + i * width;
#pragma omp simd
        for (int64_t j = 0; j < width; j++)
            to[j] = gate[j] / (1 + power_of_two(gate[j] * (REAL)-1.4426950408889634)) * up[j];
    }
}

typedef struct {
    int64_t num_layers, width, inner, heads, kv_heads, d;
    double eps;
    const REAL *embed, *cos, *sin, *norm;
    const void **layers; /* for each: norm, qkv, o, norm, gate and up, down; products packed */
} network;

enum { PRODUCTS, ATTENTION, REST, SAMPLER }; /* parts of a step, to tell where the time goes */

/* Attention of one layer: of q, k and v, each with its numbers from one token to the next, to out. */
typedef void attention(const void *step, void *layer, const REAL *q, int64_t q_stride, const REAL *k,
                       int64_t k_stride, const REAL *v, int64_t v_stride, REAL *out);

/* One step. Keys and values of a layer lie kv_bytes after those of the one before. */
typedef struct {
    int64_t n;
    int64_t *ids, *positions;
    attention *attend;
    void *step;
    char *kv;
    int64_t kv_bytes;
    REAL *scratch, *out; /* out (n, width): after the final norm */
    double *seconds;     /* what each part took is added */
} tokens;

/* Numbers that the factors of a token need, whatever is multiplied. */
static int64_t room_of(const network *m)
{
    int64_t mixed = m->heads * m->d, longest = m->width > m->inner ? m->width : m->inner;
    return ROUNDED ? apart_of(longest > mixed ? longest : mixed) : 0;
}

/* Numbers that forward needs for each token beside its output. */
int64_t scratch(const network *m)
{
    int64_t mixed = m->heads * m->d, qkv = mixed + 2 * m->kv_heads * m->d;
    int64_t first = qkv + mixed, second = 3 * m->inner;
    return room_of(m) + 2 * m->width + (first > second ? first : second);
}

static void took(int part, double *since, double *seconds)
{
#pragma omp master
    {
        double now = omp_get_wtime();
        seconds[part] += now - *since;
        *since = now;
    }
}

static void layers(const network *m, const tokens *t)
{
    int64_t n = t->n, width = m->width, inner = m->inner, d = m->d;
    int64_t mixed = m->heads * d, qkv = mixed + 2 * m->kv_heads * d;
    void *room = t->scratch;
    REAL *x = t->scratch + n * room_of(m), *normed = x + n * width, *wide = normed + n * width;
    REAL *k = wide + mixed, *v = k + m->kv_heads * d, *narrow = wide + n * qkv;
    double since = omp_get_wtime();
#pragma omp for
    for (int64_t i = 0; i < n; i++)
        memcpy(x + i * width, m->embed + t->ids[i] * width, width * sizeof(REAL));
    for (int64_t l = 0; l < m->num_layers; l++) {
        const void **w = m->layers + 6 * l;
        rms_norm(n, width, x, w[0], m->eps, normed);
        took(REST, &since, t->seconds);
        product(n, width, qkv, normed, w[1], wide, 0, room);
        took(PRODUCTS, &since, t->seconds);
        rotate(n, m->heads + m->kv_heads, d, qkv, wide, t->positions, m->cos, m->sin);
        took(REST, &since, t->seconds);
        t->attend(t->step, t->kv + l * t->kv_bytes, wide, qkv, k, qkv, v, qkv, narrow);
        took(ATTENTION, &since, t->seconds);
        product(n, mixed, width, narrow, w[2], x, 1, room);
        took(PRODUCTS, &since, t->seconds);
        rms_norm(n, width, x, w[3], m->eps, normed);
        took(REST, &since, t->seconds);
        product(n, width, 2 * inner, normed, w[4], wide, 0, room);
        took(PRODUCTS, &since, t->seconds);
        silu_mul(n, inner, wide, wide + 2 * n * inner);
        took(REST, &since, t->seconds);
        product(n, inner, width, wide + 2 * n * inner, w[5], x, 1, room);
        took(PRODUCTS, &since, t->seconds);
    }
    rms_norm(n, width, x, m->norm, m->eps, t->out);
    took(REST, &since, t->seconds);
}

/* One step through the network; threads are woken once. */
static void forward(const network *m, const tokens *t)
{
    int64_t each = m->num_layers * m->width * (4 * m->heads * m->d + 3 * m->inner);
#pragma omp parallel if (t->n * each > MANY)
    layers(m, t);
}

/* Which tokens of a step are sampled from, how, and what has been: rows, up to so many ids of each. */
typedef struct {
    int64_t num_rows, most, vocab;
    int64_t patience;        /* all is over when more than one in so many rows have ended */
    const factor *head;      /* packed */
    int64_t *chunks, *last;  /* of those that go on: their chunk, and the last of its tokens */
    const double *temperatures, *top_p, *uniforms; /* 0 is greedy; (num_rows, most): in [0, 1) */
    const int64_t *top_k, *limits, *stops, *stop_ends; /* ... most ids, ids to end with and whose */
    void (*advance)(void *step, int64_t n, const int64_t *chunks);
    REAL *hidden, *logits;   /* (num_rows, width) and (num_rows, vocab), to work in */
    int64_t *rows, *ids, *counts; /* of those that go on; (num_rows, most), and how many of each */
    double *logprobs;        /* like ids; at temperature 1 */
} draws;

typedef struct {
    REAL logit;
    int64_t id;
} ranked;

static int by_rank(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

INLINE REAL weight(REAL logit, REAL max, REAL per)
{
    return logit == -(REAL)INFINITY ? 0 : power_of_two((logit - max) * per);
}

static double mass(int64_t vocab, const REAL *logits, REAL max, REAL per)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < vocab; j++)
        sum += weight(logits[j], max, per);
    return sum;
}

/* Moves the first by rank to the front, in no order (Hoare's quickselect); none is not a number. */
static void select_first(ranked *all, int64_t n, int64_t first)
{
    for (int64_t low = 0, high = n - 1; low < high;) {
        ranked pivot = all[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (by_rank(&all[i], &pivot) < 0)
                i++;
            while (by_rank(&all[j], &pivot) > 0)
                j--;
            if (i <= j) {
                ranked swapped = all[i];
                all[i++] = all[j], all[j--] = swapped;
            }
        }
        if (first <= j + 1)
            high = j;
        else if (first > i)
            low = i;
        else
            return;
    }
}

/* Leaves the top_k likeliest ids, and of those the fewest that hold top_p. */
static void keep_likeliest(int64_t vocab, REAL *logits, REAL max, REAL per, int64_t top_k, double top_p)
{
    ranked *order = malloc(vocab * sizeof *order);
    double before = 0, whole = mass(vocab, logits, max, per);
    /* Those below this hold less together than top_p leaves out: none of them is to be sorted. */
    double least = 0.999 * (1 - top_p) * whole / vocab;
    int64_t kept = 0;
    for (int64_t j = 0; j < vocab; j++) {
        if (weight(logits[j], max, per) >= least)
            order[kept++] = (ranked){logits[j], j};
        logits[j] = -(REAL)INFINITY;
    }
    if (top_k < kept) {
        select_first(order, kept, top_k);
        kept = top_k;
    }
    qsort(order, kept, sizeof *order, by_rank);
    for (int64_t rank = 0; rank < kept && before < top_p * whole; rank++) {
        logits[order[rank].id] = order[rank].logit;
        before += weight(order[rank].logit, max, per);
    }
    free(order);
}

/* One id, by the inverse of the cumulative distribution, whose sums are doubles. */
static int64_t draw(const draws *d, int64_t row, double uniform, REAL *logits, double *logprob)
{
    const REAL log2e = 1.4426950408889634;
    int64_t id = 0;
    for (int64_t j = 1; j < d->vocab; j++)
        id = logits[j] > logits[id] ? j : id;
    REAL max = logits[id], chosen = max, per = log2e / d->temperatures[row];
    *logprob = -log(mass(d->vocab, logits, max, log2e));
    if (d->temperatures[row] > 0) {
        if (d->top_k[row] < d->vocab || d->top_p[row] < 1)
            keep_likeliest(d->vocab, logits, max, per, d->top_k[row], d->top_p[row]);
        double left = uniform * mass(d->vocab, logits, max, per);
        for (int64_t j = 0; j < d->vocab && left >= 0; j++) {
            REAL p = weight(logits[j], max, per);
            id = p > 0 ? j : id;
            left -= p;
        }
        chosen = logits[id];
    }
    *logprob += chosen - max;
    return id;
}

static int ends(const draws *d, int64_t row, int64_t id)
{
    for (int64_t i = row ? d->stop_ends[row - 1] : 0; i < d->stop_ends[row]; i++)
        if (d->stops[i] == id)
            return 1;
    return d->counts[row] == d->limits[row];
}

/* Steps and samples, until every row has as many ids as may be, or too few go on. A row that ends is
   left out of the next step. Only the first step may have more tokens than rows. */
void decode(const network *m, tokens *t, draws *d)
{
    for (int64_t n = d->num_rows, step = 0;; step++) {
        forward(m, t);
        for (int64_t i = 0; i < n; i++)
            memcpy(d->hidden + i * m->width, t->out + d->last[i] * m->width, m->width * sizeof(REAL));
#pragma omp parallel if (n * m->width * d->vocab > SERIAL)
        {
            double since = omp_get_wtime();
            product(n, m->width, d->vocab, d->hidden, d->head, d->logits, 0, t->scratch);
            took(PRODUCTS, &since, t->seconds);
#pragma omp for
            for (int64_t i = 0; i < n; i++) {
                int64_t at = d->rows[i] * d->most + step;
                d->ids[at] = draw(d, d->rows[i], d->uniforms[at], d->logits + i * d->vocab,
                                  d->logprobs + at);
            }
            took(SAMPLER, &since, t->seconds);
        }
        int64_t kept = 0;
        for (int64_t i = 0; i < n; i++) {
            int64_t row = d->rows[i], id = d->ids[row * d->most + step];
            d->counts[row]++;
            if (ends(d, row, id))
                continue;
            t->ids[kept] = id;
            t->positions[kept] = t->positions[d->last[i]] + 1;
            d->rows[kept] = row, d->chunks[kept] = d->chunks[i], d->last[kept] = kept;
            kept++;
        }
        if (step + 1 == d->most || !kept || (d->num_rows - kept) * d->patience > d->num_rows)
            return;
        d->advance(t->step, kept, d->chunks);
        for (int64_t i = 0; i < kept; i++)
            d->chunks[i] = i;
        t->n = n = kept;
    }
}
