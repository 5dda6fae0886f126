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
#define INLINE static inline __attribute__((always_inline))

/* A power of two that a compiler can turn into vector instructions, as it cannot a call of libm.
   2^x to 2e-7 of itself, for |x| up to 126 and as at that bound beyond it; exact in doubles. */
INLINE REAL power_of_two(REAL x)
{
    if (sizeof(REAL) == 8)
        return exp2(x);
    float y = x < -126 ? -126 : x > 126 ? 126 : x;
    float whole = rintf(y), f = y - whole, p; /* Taylor series of 2^f, |f| <= 1/2 */
    p = f * 1.5403530e-4f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    int32_t bits;
    memcpy(&bits, &p, 4);
    bits += (int32_t)whole * (1 << 23);
    memcpy(&p, &bits, 4);
    return p;
}

/* The same for the weights of attention, of which the largest is 1; 0 below 2^-64. What is made of
   smaller ones would be subnormal, and some processors take a hundred times as long over that. */
INLINE REAL weight_of(REAL x) { return x < -64 ? 0 : power_of_two(x); }
