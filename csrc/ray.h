// Packets of rays: one ray in each lane of a register. The maths is that of
// ivcl_fast/data/synthetic/ray_casting.py, whose names these are.
#pragma once

#include "vec.h"

namespace ivcl {

struct Vec3 {
  Vec x, y, z;
};

inline Vec3 operator+(Vec3 a, Vec3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
inline Vec3 operator-(Vec3 a, Vec3 b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
inline Vec3 operator*(Vec s, Vec3 a) { return {s * a.x, s * a.y, s * a.z}; }
inline Vec3 operator*(float s, Vec3 a) { return {s * a.x, s * a.y, s * a.z}; }
inline Vec3 operator*(Vec3 a, Vec3 b) { return {a.x * b.x, a.y * b.y, a.z * b.z}; }
inline Vec3 abs(Vec3 a) { return {abs(a.x), abs(a.y), abs(a.z)}; }
inline Vec dot(Vec3 a, Vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }

inline Vec3 splat3(const float* v) { return {splat(v[0]), splat(v[1]), splat(v[2])}; }

inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec clamp(Vec x, float low, float high) { return min(max(x, splat(low)), splat(high)); }
inline Vec select(VecI32 mask, Vec a, Vec b) { return mask ? a : b; }
inline Vec3 select(VecI32 mask, Vec3 a, Vec3 b) {
  return {mask ? a.x : b.x, mask ? a.y : b.y, mask ? a.z : b.z};
}

inline Vec3 lerp(Vec3 a, Vec3 b, Vec share) { return a + share * (b - a); }

inline Vec sqrt(Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}
inline Vec hypot(Vec a, Vec b) { return sqrt(a * a + b * b); }
inline Vec3 unit(Vec3 a) { return (1.0f / sqrt(max(dot(a, a), splat(1e-20f)))) * a; }
// Rounds towards zero.
inline VecI32 to_int(Vec x) { return __builtin_convertvector(x, VecI32); }
inline Vec to_float(VecI32 x) { return __builtin_convertvector(x, Vec); }
inline Vec floor(Vec x) {
  const Vec whole = to_float(to_int(x));
  return whole > x ? whole - 1.0f : whole;
}

inline bool any(VecI32 mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  int32_t set = 0;
  for (int i = 0; i < kLanes; ++i) set |= mask[i];
  return set != 0;
#endif
}

inline Vec gather(const float* table, VecI32 index) {
#ifdef __AVX512F__
  return (Vec)_mm512_i32gather_ps((__m512i)index, table, 4);
#endif
  Vec values;
  for (int i = 0; i < kLanes; ++i) values[i] = table[index[i]];
  return values;
}

constexpr float kInfinity = __builtin_inff();

}  // namespace ivcl
