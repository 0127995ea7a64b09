// The normal distribution, as the exact GELU, u * Phi(u), and its gradient need it.
#pragma once

#include <type_traits>

#include "vec.h"

namespace ivcl {

struct Gaussian {
  Vec cdf;      // Phi(u)
  Vec density;  // its derivative
};

// Phi(-a) = exp(-a^2 / 2) * P(t) with t = 1 / (1 + c a) and a polynomial P fitted for the smallest
// relative error over 0 <= a <= 13, where Phi leaves float32: 1e-7 for values that are stored as
// float32, 1e-4 for bfloat16, whose own rounding is twenty times that.
template <class T>
inline Gaussian gaussian(Vec u) {
  Vec falling, p;
  if constexpr (std::is_same_v<T, float>) {
    falling = exp2<6>(u * u * -0.72134752f);
    const Vec t = 1.0f / (abs(u) * 0.35f + 1.0f);
    p = t * -0.029095067f + 0.143719423f;
    p = p * t - 0.255182032f;
    p = p * t + 0.158552125f;
    p = p * t - 0.0226706885f;
    p = p * t + 0.105316876f;
    p = p * t + 0.119882771f;
    p = p * t + 0.139854748f;
    p = p * t + 0.139621828f;
    p = p * t;
  } else {
    falling = exp2<4>(u * u * -0.72134752f);
    const Vec t = about_inverse(abs(u) * 0.25f + 1.0f);
    p = t * 0.24199637f - 0.10484754f;
    p = p * t + 0.18122971f;
    p = p * t + 0.080217229f;
    p = p * t + 0.10138668f;
    p = p * t;
  }
  const Vec tail = falling * p;
  return {u > 0 ? 1.0f - tail : tail, falling * 0.39894228f};
}

}  // namespace ivcl
