// One SIMD register of float32 values, for whichever instruction set this file is compiled for.
//
// Built on the vector extensions of GCC and Clang: arithmetic, comparisons and ?: work on whole
// vectors, and a * b + c becomes a fused multiply-add where the CPU has one. Memory may hold
// float32, bfloat16 or uint8; arithmetic is always float32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define IVCL_UNROLL _Pragma("GCC unroll 16")

namespace ivcl {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t VecI32 __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VecU32 __attribute__((vector_size(4 * kLanes)));
typedef uint16_t VecU16 __attribute__((vector_size(2 * kLanes)));
typedef uint8_t VecU8 __attribute__((vector_size(kLanes)));

struct bf16 {
  uint16_t bits;
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

// --- Loads, stores and conversions ---------------------------------------------------------------

template <class V, class T>
inline V loadu(const T* src) {
  V v;
  std::memcpy(&v, src, sizeof v);
  return v;
}

template <class T, class V>
inline void storeu(T* dst, V v) {
  std::memcpy(dst, &v, sizeof v);
}

inline Vec splat(float x) { return Vec{} + x; }

// GCC 12 compiles __builtin_convertvector to several instructions where the CPU has one for the
// conversion, hence the intrinsics.
inline VecU32 zero_extend(VecU16 x) {
#if defined(__AVX512F__)
  return (VecU32)_mm512_cvtepu16_epi32((__m256i)x);
#elif defined(__AVX2__)
  return (VecU32)_mm256_cvtepu16_epi32((__m128i)x);
#else
  return __builtin_convertvector(x, VecU32);
#endif
}
inline VecU32 zero_extend(VecU8 x) {
#if defined(__AVX512F__)
  return (VecU32)_mm512_cvtepu8_epi32((__m128i)x);
#elif defined(__AVX2__)
  return (VecU32)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)x));
#else
  return __builtin_convertvector(x, VecU32);
#endif
}
inline VecU16 truncate(VecU32 x) {
#if defined(__AVX512F__)
  return (VecU16)_mm512_cvtepi32_epi16((__m512i)x);
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32((__m256i)x, (__m256i)x);
  return (VecU16)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 8));
#else
  return __builtin_convertvector(x, VecU16);
#endif
}

inline Vec from_bf16(VecU16 bits) { return (Vec)(zero_extend(bits) << 16); }

// Rounds to nearest, ties to even. NaN stays NaN.
inline VecU16 to_bf16(Vec x) {
#ifdef __AVX512BF16__
  return (VecU16)_mm512_cvtneps_pbh((__m512)x);
#else
  VecU32 w = (VecU32)x;
  VecU32 rounded = (w + 0x7FFF + ((w >> 16) & 1)) >> 16;
  return truncate(x == x ? rounded : VecU32{} + 0x7FC0);
#endif
}

inline Vec load(const float* src) { return loadu<Vec>(src); }
inline Vec load(const bf16* src) { return from_bf16(loadu<VecU16>(src)); }
inline Vec load(const uint8_t* src) {
  return __builtin_convertvector((VecI32)zero_extend(loadu<VecU8>(src)), Vec);
}
inline void store(bf16* dst, Vec x) { storeu(dst, to_bf16(x)); }
// Stores floats instead of bytes, unlike storeu: such a store cannot alias pointers and sizes, so
// loops keep these in registers. LayerNorm takes 17 % less time with AVX2 (7 % in bfloat16). Stores
// of bfloat16 remain byte stores, because pairs of values are read as 32 bits.
inline void store(float* dst, Vec x) {
  typedef float Unaligned __attribute__((vector_size(4 * kLanes), aligned(4)));
  *reinterpret_cast<Unaligned*>(dst) = x;
}

// As above for the first n lanes at most: the others are read as zero and are not written.
template <class T>
inline Vec load(const T* src, int64_t n) {
  if (n >= kLanes) return load(src);
  if (n <= 0) return Vec{};
  T buffer[kLanes] = {};
  std::memcpy(buffer, src, n * sizeof(T));
  return load(buffer);
}
template <class T>
inline void store(T* dst, Vec x, int64_t n) {
  if (n >= kLanes) return store(dst, x);
  if (n <= 0) return;
  T buffer[kLanes];
  store(buffer, x);
  std::memcpy(dst, buffer, n * sizeof(T));
}

// Calls f(col, n) for every register of a row of `cols` values: the register starts at `col` and
// holds n of them. For all but the last, n is kLanes as a compile-time constant, so that load and
// store need no branch.
template <class F>
inline void for_each_vec(int64_t cols, const F& f) {
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) f(c, std::integral_constant<int64_t, kLanes>{});
  if (c < cols) f(c, cols - c);
}

// --- Arithmetic ----------------------------------------------------------------------------------

// The lanes 0, 1, 2, ...
inline VecI32 iota() {
  VecI32 index;
  for (int i = 0; i < kLanes; ++i) index[i] = i;
  return index;
}
// The first n lanes of x, and zero in the others.
inline Vec mask_tail(Vec x, int64_t n) { return iota() < int32_t(n) ? x : Vec{}; }

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec abs(Vec x) { return (Vec)((VecU32)x & 0x7FFFFFFF); }

// 1 / x, to 14 bits of precision with AVX-512 and correctly rounded without.
inline Vec rcp_approx(Vec x) {
#ifdef __AVX512F__
  return (Vec)_mm512_rcp14_ps((__m512)x);
#else
  return 1.0f / x;
#endif
}

inline float reduce_sum(Vec x) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
#endif
}

constexpr float kLog2e = 1.44269504f;

// 2^x by a polynomial of kTerms terms: the relative error is 3e-6 with 4 and 1e-7 with 6.
// NaN stays NaN. Where 2^x is below the smallest normal float32, the result is about as small: of
// -infinity it is not NaN, and no product takes the time of a denormal.
template <int kTerms = 6>
inline Vec exp2(Vec x) {
  x = -126.0f > x ? splat(-126.0f) : x;
#ifdef __AVX512F__
  const Vec n = (Vec)_mm512_roundscale_ps((__m512)x, 8);
#else
  const float magic = 0x1.8p23f;  // adding it rounds x to an integer, which the low bits then hold
  const Vec shifted = x + magic, n = shifted - magic;
#endif
  const Vec r = x - n;  // -1/2 .. 1/2
  Vec p;
  if constexpr (kTerms == 6) {
    p = r * 1.5353362e-4f + 1.3398875e-3f;
    p = p * r + 9.6184369e-3f;
    p = p * r + 5.5503324e-2f;
    p = p * r + 2.4022648e-1f;
    p = p * r + 6.9314718e-1f;
  } else {
    p = r * 0.0095828532f + 0.055906426f;
    p = p * r + 0.24024099f;
    p = p * r + 0.69312419f;
  }
  p = p * r + 1.0f;
#ifdef __AVX512F__
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return x == x ? (Vec)((VecI32)p + ((VecI32)shifted << 23)) : x;
#endif
}

}  // namespace ivcl
