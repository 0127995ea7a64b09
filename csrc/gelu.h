// The kinds of GELU. Each is u * g(u), where g rises from 0 to 1, and has the derivative
// g(u) + u * g'(u).
#pragma once

#include <type_traits>

#include "check.h"
#include "vec.h"

namespace ivcl {

struct Gate {
  Vec value, slope;  // g and g'
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

// s = linear * u + cubic * u^3, of which the logistic function is taken.
struct Logit {
  float linear, cubic;
};
constexpr Logit kTanhLogit{1.5957691216f, 0.0713548163f};  // sqrt(8 / pi), and 0.044715 times that
constexpr Logit kQuickLogit{1.702f, 0.0f};

// sigmoid(s) and its derivative by u. Both come from exp(-|s|), which does not overflow, and in
// which no digits cancel.
template <class T, const Logit& logit>
inline Gate logistic(Vec u) {
  constexpr bool exact = std::is_same_v<T, float>;
  Vec exponent, rate;  // -|s| in powers of two, and the derivative of s
  if constexpr (logit.cubic == 0) {
    exponent = abs(u) * (-kLog2e * logit.linear);
    rate = splat(logit.linear);
  } else {
    Vec square = u * u;
    square = square > 400 ? splat(400) : square;  // beyond, g is 0 or 1, and g' must stay 0
    exponent = abs(u) * (square * (-kLog2e * logit.cubic) - kLog2e * logit.linear);
    rate = square * (3 * logit.cubic) + logit.linear;
  }
  const Vec decay = exp2<exact ? 6 : 4>(exponent);
  const Vec upper = exact ? 1.0f / (decay + 1.0f) : rcp_approx(decay + 1.0f);  // sigmoid(|s|)
  const Vec lower = decay * upper;
  return {u > 0 ? upper : lower, upper * lower * rate};
}

// The positions of kernels/bias_gelu.py:KINDS.
enum class Gelu { kNone, kTanh, kQuick };

// g and g' for results that are stored as T.
template <class T, Gelu kind>
inline Gate gelu_gate(Vec u) {
  if constexpr (kind == Gelu::kNone) return normal<T>(u);
  else if constexpr (kind == Gelu::kTanh) return logistic<T, kTanhLogit>(u);
  else return logistic<T, kQuickLogit>(u);
}

// Calls f with a compile-time constant for a kind.
template <class F>
void dispatch_gelu(int64_t kind, const F& f) {
  switch (kind) {
    case 0: return f(std::integral_constant<Gelu, Gelu::kNone>{});
    case 1: return f(std::integral_constant<Gelu, Gelu::kTanh>{});
    case 2: return f(std::integral_constant<Gelu, Gelu::kQuick>{});
    default: fail("kind: ", kind, " is not one of 0 to 2");
  }
}

}  // namespace ivcl
