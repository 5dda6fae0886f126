/* What all that is written in C here is made of. */

#include <stdint.h>
#include <string.h>
#include <tgmath.h>

#if defined __AVX512F__
#define WIDEST 64 /* bytes; gcc makes poor code of vectors that the processor has not got */
#elif defined __AVX__
#define WIDEST 32
#else
#define WIDEST 16
#endif
#if defined __AVX512F__ || defined __aarch64__
#define REGISTERS 32 /* for vectors */
#else
#define REGISTERS 16
#endif
#define INLINE static inline __attribute__((always_inline))

/* gcc reads a vector from memory again for each use, which processors of 16 registers are slow at. */
#if defined __x86_64__ && REGISTERS == 16
#define KEEP(vector)                                                                               \
    if (sizeof(vector) >= 16)                                                                      \
    asm("" : "+x"(vector))
#else
#define KEEP(vector)
#endif

/* Taylor series of 2^f, |f| <= 1/2. */
#define SERIES(f)                                                                                  \
    ((((((f * 1.5403530e-4f + 1.3333558e-3f) * f + 9.6181291e-3f) * f + 5.5504109e-2f) * f         \
       + 2.4022651e-1f) * f + 6.9314718e-1f) * f + 1.0f)

/* A power of two that a compiler can turn into vector instructions, as it cannot a call of libm.
   2^x to 2e-7 of itself, for |x| up to 126 and as at that bound beyond it; exact in doubles. */
INLINE REAL power_of_two(REAL x)
{
    if (sizeof(REAL) == 8)
        return exp2(x);
    float y = x < -126 ? -126 : x > 126 ? 126 : x;
    float whole = rintf(y), f = y - whole, p = SERIES(f);
    int32_t bits;
    memcpy(&bits, &p, 4);
    bits += (int32_t)whole * (1 << 23);
    memcpy(&p, &bits, 4);
    return p;
}

/* The same for the weights of attention, of which the largest is 1; 0 below 2^-64. What is made of
   smaller ones would be subnormal, and some processors take a hundred times as long over that. */
INLINE REAL weight_of(REAL x) { return x < -64 ? 0 : power_of_two(x); }

#ifdef COMMON /* a power of two that divides what is taken in vectors: none has more numbers */
enum { FIT = WIDEST / sizeof(REAL), LANES = COMMON < FIT ? COMMON : FIT };
#define VECTOR(type) __attribute__((vector_size(LANES * sizeof(type)), aligned(sizeof(type)), may_alias))
typedef REAL vec VECTOR(REAL);
typedef float vec_float VECTOR(float);
typedef uint32_t vec_bits VECTOR(uint32_t);
typedef int32_t vec_int VECTOR(int32_t);

INLINE vec larger(vec a, vec b)
{
    __typeof__(a > b) mask = a > b;
    return (vec)(((__typeof__(mask))a & mask) | ((__typeof__(mask))b & ~mask));
}

INLINE REAL largest(vec x)
{
    REAL lanes[LANES];
    memcpy(lanes, &x, sizeof x);
#pragma GCC unroll 8
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    return lanes[0];
}

/* weight_of each, to the same bits, for x up to 0. */
INLINE vec weights_of(vec x)
{
    if (sizeof(REAL) == 8) {
        REAL lanes[LANES];
        memcpy(lanes, &x, sizeof x);
        for (int i = 0; i < LANES; i++)
            lanes[i] = weight_of(lanes[i]);
        memcpy(&x, lanes, sizeof x);
        return x;
    }
    vec_float y = __builtin_convertvector(larger((vec){0} - 64, x), vec_float);
    vec_float whole = y + 12582912.0f - 12582912.0f; /* 3 * 2^22, beside which only whole numbers are */
    vec_float f = y - whole, p = SERIES(f);
    vec_bits bits = (vec_bits)p + ((vec_bits)__builtin_convertvector(whole, vec_int) << 23);
    __typeof__(x < x) dead = x < -64;
    vec weights = __builtin_convertvector((vec_float)bits, vec);
    return (vec)((__typeof__(dead))weights & ~dead);
}
#endif
