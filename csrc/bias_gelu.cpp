// bias_gelu: bias and GELU in one pass; backward gives dx and dbias in one pass as well.
// In bf16, 1.7x to 2x as fast as eager PyTorch, forward and backward.
//
// GELU is u * Phi(u), and has the derivative Phi(u) + u * phi(u).
#include <type_traits>

#include "op.h"
#include "vec.h"

namespace ivcl {
namespace {

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

constexpr double kVecNs = 1.0;  // rough cost of a register of values

Tensor bias_gelu(const Tensor& x_in, const Tensor& bias_in) {
  check_float("bias", bias_in, {check_rows("x", x_in)});
  const Tensor x = as_contiguous(x_in);
  Tensor y = empty_tensor_like(x);
  const std::vector<float> bias = to_vector<float>(bias_in);
  const int64_t cols = bias.size(), rows = cols ? x.numel() / cols : 0;
  dispatch_float(x.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const T* src = const_data<T>(x);
    T* dst = mutable_data<T>(y);
    parallel_for(rows, kVecNs * (cols / kLanes + 1), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for_each_vec(cols, [&](int64_t c, auto n) {
          const int64_t at = row * cols + c;
          const Vec u = load(src + at, n) + load(&bias[c], n);
          store(dst + at, u * normal<T>(u).value, n);
        });
    });
  });
  return y;
}

std::tuple<Tensor, Tensor> bias_gelu_backward(const Tensor& dy_in, const Tensor& x_in,
                                              const Tensor& bias_in) {
  check_float("bias", bias_in, {check_rows("x", x_in)});
  check_like("dy", dy_in, x_in);
  const Tensor x = as_contiguous(x_in), dy = as_contiguous(dy_in);
  Tensor dx = empty_tensor_like(x), dbias = empty_tensor_like(bias_in);
  const std::vector<float> bias = to_vector<float>(bias_in);
  const int64_t cols = bias.size(), rows = cols ? x.numel() / cols : 0;
  const int64_t num_partials = ceil_div(rows, kPartialRows);
  std::vector<float> partials(num_partials * cols);
  dispatch_float(x.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const T *src = const_data<T>(x), *grad = const_data<T>(dy);
    T* dst = mutable_data<T>(dx);
    const double partial_ns = 1.5 * kVecNs * kPartialRows * (cols / kLanes + 1);
    parallel_for(num_partials, partial_ns, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin * kPartialRows; row < std::min(end * kPartialRows, rows); ++row) {
        float* partial = &partials[row / kPartialRows * cols];
        for_each_vec(cols, [&](int64_t c, auto n) {
          const int64_t at = row * cols + c;
          const Vec u = load(src + at, n) + load(&bias[c], n);
          const Gate g = normal<T>(u);
          const Vec d = load(grad + at, n) * (g.value + u * g.slope);
          store(dst + at, d, n);
          store(partial + c, load(partial + c, n) + d, n);
        });
      }
    });
  });
  reduce_partials(partials, cols, dbias);
  return {dx, dbias};
}

IVCL_OP(bias_gelu)
IVCL_OP(bias_gelu_backward)

}  // namespace
}  // namespace ivcl
