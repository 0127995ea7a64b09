// GELU is u * Phi(u), and has the derivative Phi(u) + u * phi(u).
#pragma once

#include <type_traits>

#include "vec.h"

namespace ivcl {

struct Gate {
  Vec value, slope;  // Phi and phi
};

// Phi and phi, the distribution function and the density of the normal distribution.
//
// Phi(-a) = exp(-a^2 / 2) * P(t) with t = 1 / (1 + c a), where the polynomial P is fitted for the
// smallest relative error over 0 <= a <= 13 (beyond, Phi underflows float32). The error is 1e-7
// where results are stored as float32, and 1e-4 for bfloat16, which rounds twenty times coarser.
template <class T>
inline Gate normal(Vec u) {
  Vec gauss, p;
  if constexpr (std::is_same_v<T, float>) {
    gauss = exp2<6>(u * u * -0.72134752f);
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
    gauss = exp2<4>(u * u * -0.72134752f);
    const Vec t = rcp_approx(abs(u) * 0.25f + 1.0f);
    p = t * 0.24199637f - 0.10484754f;
    p = p * t + 0.18122971f;
    p = p * t + 0.080217229f;
    p = p * t + 0.10138668f;
    p = p * t;
  }
  const Vec tail = gauss * p;
  return {u > 0 ? 1.0f - tail : tail, gauss * 0.39894228f};
}

}  // namespace ivcl
