/* Attention over pages: keys and values are written to their pages and read straight from them.

   Compiled by apr.models.native for one type of numbers, one width of a head and one page size:
     REAL      float or double
     HEAD_DIM  numbers of one head
     PAGE      tokens of one page
     COMMON    a power of two that divides HEAD_DIM and PAGE: no vector has more numbers
     STORED    what a key or value is stored as: 0 REAL, 1 bfloat16, 2 int8

   A tile is some rows (queries) whose sequences begin with the same pages. Each such page is read
   once for all of them; then each row goes on through pages of its own. So siblings share the
   reading of their prefix, and so do the tokens of a prompt. A row meets its pages in order, one at
   a time, with a running softmax (Milakov and Gimelshein, 1805.02867): what comes out of it does
   not depend on the tile. */

#include "vectors.h"
#include <omp.h>
#if defined __AVX2__
#include <immintrin.h>
#endif

enum { CHAINS = HEAD_DIM % 4 ? 2 : 4 }; /* sums that grow side by side: one alone waits for itself */

/* Vectors of sums that grow at a time: half of the registers; all with AVX-512, which adds from memory. */
#if defined __AVX512F__
#define SUMS REGISTERS
#else
#define SUMS (REGISTERS / 2)
#endif
#define ROWS 16 /* most tokens of a tile */
#define TOGETHER (SUMS == 8 && STORED == 0 ? 2 : 4) /* rows that share what is in registers */
#define AHEAD 2 /* blocks from the one that is read to the one that is asked for */
#define INTO (STORED == 2 ? 3 : 2) /* the first cache; the second takes more requests at a time */

typedef int16_t vec_short VECTOR(int16_t);

#if STORED == 0
typedef REAL stored;
#elif STORED == 1
typedef uint16_t stored;
#else
typedef int8_t stored;
#endif
typedef stored vec_stored VECTOR(stored);

/* Keys and values of one page and one head. Keys are transposed: the scores of a page are one
   vector each time, with no sum across its lanes. */
typedef struct {
    stored k[HEAD_DIM][PAGE];
    stored v[PAGE][HEAD_DIM];
#if STORED == 2
    REAL k_scale[PAGE], v_scale[PAGE];
#endif
} block;

/* One step of the engine. Chunks are runs of tokens of one sequence each. */
typedef struct {
    int32_t num_tokens, num_chunks, num_heads, num_kv_heads;
    int32_t *chunks;       /* for each: its first token, the position of that, where its pages begin;
                              advance writes them anew */
    const int32_t *pages;  /* of all sequences, one after another */
    int32_t *tokens;       /* for each: position, where its pages begin */
    int32_t *tiles;        /* for each: first token, pages shared; the last ends with num_tokens */
    int32_t num_tiles;
} step;

typedef struct {
    REAL q[HEAD_DIM];
    vec out[HEAD_DIM / LANES];
    vec sum;
    REAL max;
} row;

int64_t block_bytes(void) { return sizeof(block); }

INLINE vec load(const stored *from)
{
#if STORED == 0
    return *(const vec *)from;
#elif STORED == 1
    vec_bits bits = __builtin_convertvector(*(const vec_stored *)from, vec_bits) << 16;
    return __builtin_convertvector((vec_float)bits, vec);
#else
#if defined __AVX2__
    if (sizeof(vec_int) == WIDEST) { /* one instruction, which gcc 12 does not find */
#if defined __AVX512F__
        __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from));
#else
        __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from));
#endif
        vec_int numbers;
        memcpy(&numbers, &wide, sizeof numbers);
        return __builtin_convertvector(numbers, vec);
    }
#endif
    /* Twice as wide each time: gcc 12 has one instruction for each of these, and none for more. */
    vec_short twice = __builtin_convertvector(*(const vec_stored *)from, vec_short);
    return __builtin_convertvector(__builtin_convertvector(twice, vec_int), vec);
#endif
}

/* The other end of load. */
INLINE stored store(REAL x)
{
#if STORED == 0
    return x;
#elif STORED == 1
    float f = x;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#else
    return (stored)lrint(x);
#endif
}

#if STORED == 2
static REAL int8_scale(const REAL *x)
{
    REAL most = 1e-20, odd = 0; /* which is no number where one of x is not finite */
    for (int i = 0; i < HEAD_DIM; i++) {
        most = fabs(x[i]) > most ? fabs(x[i]) : most;
        odd += x[i] - x[i];
    }
    return most / 127 + odd;
}
#endif

static void put(block *b, int place, const REAL *k, const REAL *v)
{
    REAL per_k = 1, per_v = 1;
#if STORED == 2
    b->k_scale[place] = int8_scale(k), b->v_scale[place] = int8_scale(v);
    per_k = 1 / b->k_scale[place], per_v = 1 / b->v_scale[place];
#endif
    for (int i = 0; i < HEAD_DIM; i++)
        b->k[i][place] = store(k[i] * per_k);
    for (int i = 0; i < HEAD_DIM; i++)
        b->v[place][i] = store(v[i] * per_v);
}

/* How many of so many sums grow at the same time, if each takes so many vectors; a divisor of all. */
INLINE int at_a_time(int each, int all)
{
    int fit = SUMS / each, even = all & -all; /* the largest power of two that divides it */
    return fit >= all ? all : fit < 1 ? 1 : fit < even ? fit : even;
}

/* Whether a line of memory begins so many numbers behind one that does. */
INLINE int begins_line(int numbers) { return numbers * sizeof(stored) % 64 == 0; }

/* Adds what n rows score with the tokens of a page. The order of each sum does not depend on n. */
INLINE void score(const row *rows, int n, const block *b, const block *next, vec scores[][PAGE / LANES])
{
    enum { VECTORS = PAGE / LANES };
    int some = at_a_time(n * VECTORS, CHAINS);
    for (int first = 0; first < CHAINS; first += some) {
        vec sum[TOGETHER][VECTORS][CHAINS] = {0};
        for (int i = first; i < HEAD_DIM; i += CHAINS)
            for (int j = 0; j < VECTORS; j++)
                for (int c = 0; c < some; c++) {
                    vec k = load(&b->k[i + c][j * LANES]);
                    if (begins_line(c * PAGE + j * LANES))
                        __builtin_prefetch(&next->k[i + c][j * LANES], 0, INTO);
                    KEEP(k);
                    for (int r = 0; r < n; r++)
                        sum[r][j][c] += rows[r].q[i + c] * k;
                }
        for (int r = 0; r < n; r++)
            for (int j = 0; j < VECTORS; j++)
                for (int c = 0; c < some; c++)
                    scores[r][j] += sum[r][j][c];
    }
}

/* Adds the first count values of a page to the outputs of n rows, given the weights p of its tokens:
   those of even tokens have one sum, and those of odd ones another. */
INLINE void mix(row *rows, int n, const block *b, const block *next, int count, vec p[][PAGE / LANES])
{
    enum { WIDTH = HEAD_DIM / LANES };
    int both = n == 1 || 2 * n * WIDTH <= SUMS ? 2 : 1, wide = at_a_time(both * n, WIDTH);
    for (int first = 0; first < WIDTH; first += wide) {
        vec sum[TOGETHER][WIDTH][2] = {0};
        for (int odd = 0; odd < 2; odd += both) {
            vec out[TOGETHER][WIDTH][2] = {0};
            int t = odd;
            for (; t + both <= count; t += 2)
                for (int u = 0; u < both; u++)
                    for (int c = 0; c < wide; c++) {
                        vec v = load(&b->v[t + u][(first + c) * LANES]);
                        if (begins_line(c * LANES))
                            __builtin_prefetch(&next->v[t + u][(first + c) * LANES], 0, INTO);
                        KEEP(v);
                        for (int r = 0; r < n; r++)
                            out[r][c][u] += ((REAL *)p[r])[t + u] * v;
                    }
            for (int c = 0; t < count && c < wide; c++) {
                vec v = load(&b->v[t][(first + c) * LANES]);
                for (int r = 0; r < n; r++)
                    out[r][c][0] += ((REAL *)p[r])[t] * v;
            }
            for (int r = 0; r < n; r++)
                for (int c = 0; c < wide; c++)
                    for (int u = 0; u < both; u++)
                        sum[r][c][odd + u] = out[r][c][u];
        }
        for (int r = 0; r < n; r++)
            for (int c = 0; c < wide; c++)
                rows[r].out[first + c] += sum[r][c][0] + sum[r][c][1];
    }
}

/* n rows meet the first count tokens of a page; n is known when this is compiled. What is
   read next is asked for meanwhile: pages lie anywhere, so no processor guesses where that is. */
INLINE void meet_some(row *rows, int n, const block *b, const block *next, int count)
{
    enum { VECTORS = PAGE / LANES };
    vec p[TOGETHER][VECTORS] = {0};
    score(rows, n, b, next, p);
    for (int r = 0; r < n; r++) {
        REAL *scores = (REAL *)p[r];
#if STORED == 2
        for (int j = 0; j < VECTORS; j++)
            p[r][j] *= *(const vec *)&b->k_scale[j * LANES];
#endif
        for (int t = count; t < PAGE; t++)
            scores[t] = -1e30;
        vec most = p[r][0];
        for (int j = 1; j < VECTORS; j++)
            most = larger(most, p[r][j]);
        REAL max = largest(most);
        if (max > rows[r].max) {
            REAL shrink = weight_of(rows[r].max - max);
            rows[r].max = max;
            rows[r].sum *= shrink;
            for (int c = 0; c < HEAD_DIM / LANES; c++)
                rows[r].out[c] *= shrink;
        }
        for (int j = 0; j < VECTORS; j++)
            p[r][j] = weights_of(p[r][j] - rows[r].max);
        for (int t = count; t < PAGE; t++)
            scores[t] = 0;
        for (int j = 0; j < VECTORS; j++)
            rows[r].sum += p[r][j];
#if STORED == 2
        for (int j = 0; j < VECTORS; j++)
            p[r][j] *= *(const vec *)&b->v_scale[j * LANES];
#endif
    }
    mix(rows, n, b, next, count, p);
}

static void meet(row *rows, int n, const block *b, const block *next, int count)
{
    int r = 0;
    for (; r + TOGETHER <= n; r += TOGETHER)
        meet_some(rows + r, TOGETHER, b, next, count);
    for (; r < n; r++)
        meet_some(rows + r, 1, b, next, count);
}

/* Pages that tokens a and b both see the whole of. */
static int common(const step *s, int a, int b)
{
    const int32_t *x = s->tokens + 2 * a, *y = s->tokens + 2 * b;
    int n = ((x[0] < y[0] ? x[0] : y[0]) + 1) / PAGE, i = 0;
    if (x[1] == y[1])
        return n;
    while (i < n && s->pages[x[1] + i] == s->pages[y[1] + i])
        i++;
    return i;
}

/* Lists tokens and tiles of a step. A token joins the tile before it if that shares no less for it;
   one alone does not join those who share more with the next. */
void plan(step *s)
{
    for (int c = 0; c < s->num_chunks; c++) {
        const int32_t *chunk = s->chunks + 3 * c;
        int end = c + 1 < s->num_chunks ? chunk[3] : s->num_tokens;
        for (int n = chunk[0]; n < end; n++) {
            s->tokens[2 * n] = chunk[1] + n - chunk[0];
            s->tokens[2 * n + 1] = chunk[2];
        }
    }
    int first = 0, shared = 0, next = s->num_tokens > 1 ? common(s, 0, 1) : 0;
    s->num_tiles = 0;
    for (int n = 1; n <= s->num_tokens; n++) {
        int here = next;
        next = n + 1 < s->num_tokens ? common(s, n, n + 1) : 0;
        if (n < s->num_tokens && n - first < ROWS && here > 0
            && (n - first == 1 ? here >= next : here >= shared)) {
            shared = n - first == 1 ? here : shared;
            continue;
        }
        s->tiles[2 * s->num_tiles] = first;
        s->tiles[2 * s->num_tiles++ + 1] = shared;
        first = n, shared = 0;
    }
    s->tiles[2 * s->num_tiles] = s->num_tokens;
}

/* The next step: one more token of each of the n chunks listed, in their order. */
void advance(step *s, int64_t n, const int64_t *listed)
{
    for (int i = 0; i < n; i++) {
        int c = listed[i];
        const int32_t *chunk = s->chunks + 3 * c;
        int end = c + 1 < s->num_chunks ? chunk[3] : s->num_tokens;
        int32_t next[3] = {i, chunk[1] + end - chunk[0], chunk[2]};
        memcpy(s->chunks + 3 * i, next, sizeof next);
    }
    s->num_chunks = s->num_tokens = n;
    plan(s);
}

/* Where a page begins. */
INLINE const block *at(const step *s, const block *layer, int32_t page)
{
    return layer + (int64_t)page * s->num_kv_heads;
}

/* Some key-value heads of a tile, page by page: heads of a page lie side by side. */
static void attend_tile(const step *s, const block *layer, int tile, int kv_head, int num_heads,
                        const REAL *q, int64_t q_stride, REAL *out)
{
    int repeat = s->num_heads / s->num_kv_heads;
    int first = s->tiles[2 * tile], shared = s->tiles[2 * tile + 1];
    int num_tokens = s->tiles[2 * tile + 2] - first, per_head = num_tokens * repeat;
    row rows[num_heads * per_head]; /* by head, token, query of the head */
    layer += kv_head;
    for (int r = 0; r < num_heads * per_head; r++) {
        int head = (kv_head + r / per_head) * repeat + r % repeat;
        const REAL *from = q + (first + r % per_head / repeat) * q_stride + head * HEAD_DIM;
        memset(&rows[r], 0, sizeof(row));
        rows[r].max = -1e30;
        for (int i = 0; i < HEAD_DIM; i++) /* log2(e): powers of two stand in for those of e */
            rows[r].q[i] = from[i] * (REAL)(1.4426950408889634 / sqrt(HEAD_DIM));
    }
    for (int n = -1; n < num_tokens; n++) { /* -1: all rows together, through what they share */
        const int32_t *token = s->tokens + 2 * (first + (n < 0 ? 0 : n));
        const int32_t *pages = s->pages + token[1];
        int begin = n < 0 ? 0 : shared, end = n < 0 ? shared : token[0] / PAGE + 1;
        for (int i = begin; i < end; i++) {
            int count = token[0] + 1 - i * PAGE;
            for (int h = 0; h < num_heads; h++) {
                int page = i + (h + AHEAD) / num_heads;
                const block *next = at(s, layer, pages[page < end ? page : i]) + (h + AHEAD) % num_heads;
                meet(rows + h * per_head + (n < 0 ? 0 : n * repeat), n < 0 ? per_head : repeat,
                     at(s, layer, pages[i]) + h, next, count < PAGE ? count : PAGE);
            }
        }
    }
    for (int r = 0; r < num_heads * per_head; r++) {
        int head = (kv_head + r / per_head) * repeat + r % repeat;
        int64_t token = first + r % per_head / repeat;
        REAL sum = 0, *to = out + (token * s->num_heads + head) * HEAD_DIM;
        for (int i = 0; i < LANES; i++)
            sum += rows[r].sum[i];
        for (int i = 0; i < HEAD_DIM; i++)
            to[i] = ((REAL *)rows[r].out)[i] / sum;
    }
}

/* q (N, H, d), k and v (N, KV, d), each with its numbers from one token to the next -> out (N, H, d).
   layer: blocks (page, KV). Called by every thread, and over when it is over for all. */
void attend(const step *s, block *layer, const REAL *q, int64_t q_stride, const REAL *k,
            int64_t k_stride, const REAL *v, int64_t v_stride, REAL *out)
{
    int kv_heads = s->num_kv_heads;
    /* Pages are read from end to end, unless that leaves threads without work. */
    int together = s->num_tiles >= 4 * omp_get_num_threads() ? kv_heads : 1;
    int num_items = s->num_tiles * (kv_heads / together);
#pragma omp for
    for (int n = 0; n < s->num_tokens; n++) {
        const int32_t *token = s->tokens + 2 * n;
        block *b = layer + (int64_t)s->pages[token[1] + token[0] / PAGE] * kv_heads;
        for (int h = 0; h < kv_heads; h++)
            put(b + h, token[0] % PAGE, k + n * k_stride + h * HEAD_DIM,
                v + n * v_stride + h * HEAD_DIM);
    }
#pragma omp for schedule(dynamic)
    for (int i = 0; i < num_items; i++)
        attend_tile(s, layer, i * together / kv_heads, i * together % kv_heads, together, q, q_stride,
                    out);
}

/* The same, called by one thread. */
void attend_alone(const step *s, block *layer, const REAL *q, int64_t q_stride, const REAL *k,
                  int64_t k_stride, const REAL *v, int64_t v_stride, REAL *out)
{
#pragma omp parallel
    attend(s, layer, q, q_stride, k, k_stride, v, v_stride, out);
}
