// One SIMD register of float32, for whichever instruction set this file is compiled for.
//
// GCC's and Clang's vector extensions: arithmetic, comparison and ?: work on whole vectors, and
// a * b + c becomes a fused multiply-add where there is one. Storage may be float32, bfloat16 or
// uint8; arithmetic is float32 always.
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
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

struct bf16 {
  uint16_t bits;
};

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

template <class V, class T>
inline V read(const T* at) {
  V v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

template <class T, class V>
inline void write(T* at, V v) {
  std::memcpy(at, &v, sizeof v);
}

inline Vec splat(float x) { return Vec{} + x; }

// Written out where GCC (12) makes several instructions of a conversion there is one for.
inline Words extend(Halves h) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepu16_epi32((__m256i)h);
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu16_epi32((__m128i)h);
#else
  return __builtin_convertvector(h, Words);
#endif
}
inline Halves low_halves(Words w) {
#if defined(__AVX512F__)
  return (Halves)_mm512_cvtepi32_epi16((__m512i)w);
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32((__m256i)w, (__m256i)w);
  return (Halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 8));
#else
  return __builtin_convertvector(w, Halves);
#endif
}
inline Words extend(Bytes b) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepu8_epi32((__m128i)b);
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)b));
#else
  return __builtin_convertvector(b, Words);
#endif
}

inline Vec widen(Halves h) { return (Vec)(extend(h) << 16); }

// Rounds to nearest, ties to even; what is not a number stays none.
inline Halves narrow(Vec x) {
#ifdef __AVX512BF16__
  return (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
  Words w = (Words)x;
  Words rounded = (w + 0x7FFF + ((w >> 16) & 1)) >> 16;
  return low_halves(x == x ? rounded : Words{} + 0x7FC0);
#endif
}

inline Vec load(const float* at) { return read<Vec>(at); }
inline Vec load(const bf16* at) { return widen(read<Halves>(at)); }
inline Vec load(const uint8_t* at) {
  return __builtin_convertvector((Ints)extend(read<Bytes>(at)), Vec);
}
inline void store(float* at, Vec x) { write(at, x); }
inline void store(bf16* at, Vec x) { write(at, narrow(x)); }

// The first n values at most; the others are read as zero and not written.
template <class T>
inline Vec load(const T* at, int64_t n) {
  if (n >= kLanes) return load(at);
  if (n <= 0) return Vec{};
  T some[kLanes] = {};
  std::memcpy(some, at, n * sizeof(T));
  return load(some);
}
template <class T>
inline void store(T* at, Vec x, int64_t n) {
  if (n >= kLanes) return store(at, x);
  if (n <= 0) return;
  T some[kLanes];
  store(some, x);
  std::memcpy(at, some, n * sizeof(T));
}

// f(c, n) for every register of a row of cols values: from c on, n values, which is kLanes as a
// constant for all but the last.
template <class F>
inline void registers(int64_t cols, const F& f) {
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) f(c, std::integral_constant<int64_t, kLanes>{});
  if (c < cols) f(c, cols - c);
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The lanes 0, 1, 2, ...
inline Ints lanes() {
  Ints index;
  for (int i = 0; i < kLanes; ++i) index[i] = i;
  return index;
}
inline Vec keep_first(Vec x, int64_t n, float other = 0) {
  return lanes() < int32_t(n) ? x : splat(other);
}

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec abs(Vec x) { return (Vec)((Words)x & 0x7FFFFFFF); }

// 1 / x, to 14 bits.
inline Vec about_inverse(Vec x) {
#ifdef __AVX512F__
  return (Vec)_mm512_rcp14_ps((__m512)x);
#else
  return 1.0f / x;
#endif
}

inline float sum(Vec x) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
#endif
}
// 2^x with kTerms terms of a polynomial: relative error 3e-6 with 4, 1e-7 with 6.
// Not a number stays none; where 2^x leaves float32 at the low end, a value as small.
template <int kTerms = 6>
inline Vec exp2(Vec x) {
#ifdef __AVX512F__
  const Vec n = (Vec)_mm512_roundscale_ps((__m512)x, 8);
#else
  x = -126.0f > x ? splat(-126.0f) : x;
  const float magic = 0x1.8p23f;  // adding it rounds to whole numbers, kept in the low bits
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
  return x == x ? (Vec)((Ints)p + ((Ints)shifted << 23)) : x;
#endif
}

}  // namespace ivcl
