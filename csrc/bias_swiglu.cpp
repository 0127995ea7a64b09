// bias_swiglu: two biases, SiLU of the gates and their product with the values in one pass; backward
// gives the gradients of gates, values and biases in one pass as well.
#include <optional>

#include "gelu.h"
#include "op.h"

namespace ivcl {
namespace {

constexpr double kVecNs = 1.5;  // rough cost of a register of values
constexpr Logit kSiluLogit{1.0f, 0.0f};

// Checks the arguments and returns the width H of the output. Gates and values are the halves of x
// [..., 2 * H], or x and value [..., H].
int64_t check_halves(const Tensor& x, const Tensor& bias, const std::optional<Tensor>& value) {
  const int64_t both = check_rows("x", x) * (value ? 2 : 1);
  if (both % 2) fail("x: width ", both, " is odd and has no halves");
  check_float("bias", bias, {both});
  if (value) check_like("value", *value, x);
  return both / 2;
}

// The shape of x with another width.
std::vector<int64_t> shape_of(const Tensor& x, int64_t width) {
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = width;
  return shape;
}

// Gates and values with their biases, as rows of `cols` values at distances of `stride`.
template <class T>
struct Halves {
  const T *gates, *values;
  int64_t stride;
  const float *gate_bias, *value_bias;

  Halves(const Tensor& x, const std::optional<Tensor>& value, const std::vector<float>& bias,
         int64_t cols)
      : gates(const_data<T>(x)),
        values(value ? const_data<T>(*value) : gates + cols),
        stride(value ? cols : 2 * cols),
        gate_bias(bias.data()),
        value_bias(bias.data() + cols) {}

  template <class N>
  Vec gate(int64_t row, int64_t c, N n) const {
    return load(gates + row * stride + c, n) + load(gate_bias + c, n);
  }
  template <class N>
  Vec value(int64_t row, int64_t c, N n) const {
    return load(values + row * stride + c, n) + load(value_bias + c, n);
  }
};

std::optional<Tensor> as_contiguous(const std::optional<Tensor>& x) {
  return x ? std::optional<Tensor>(ivcl::as_contiguous(*x)) : std::nullopt;
}

Tensor bias_swiglu(const Tensor& x_in, const Tensor& bias_in,
                   const std::optional<Tensor>& value_in) {
  const int64_t cols = check_halves(x_in, bias_in, value_in);
  const Tensor x = ivcl::as_contiguous(x_in);
  const std::optional<Tensor> value = as_contiguous(value_in);
  const std::vector<float> bias = to_vector<float>(bias_in);
  Tensor y = empty_tensor(shape_of(x, cols), x.scalar_type());
  const int64_t rows = cols ? y.numel() / cols : 0;
  dispatch_float(x.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const Halves<T> in(x, value, bias, cols);
    T* dst = mutable_data<T>(y);
    parallel_for(rows, kVecNs * (cols / kLanes + 1), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for_each_vec(cols, [&](int64_t c, auto n) {
          const Vec u = in.gate(row, c, n);
          const Vec silu = u * logistic<T, kSiluLogit>(u).value;
          store(dst + row * cols + c, silu * in.value(row, c, n), n);
        });
    });
  });
  return y;
}

// The last of the three is empty without `value`.
std::tuple<Tensor, Tensor, Tensor> bias_swiglu_backward(const Tensor& dy_in, const Tensor& x_in,
                                                        const Tensor& bias_in,
                                                        const std::optional<Tensor>& value_in) {
  const int64_t cols = check_halves(x_in, bias_in, value_in);
  check_dtype("dy", dy_in, x_in.scalar_type());
  check_shape("dy", dy_in, shape_of(x_in, cols));
  const Tensor x = ivcl::as_contiguous(x_in), dy = ivcl::as_contiguous(dy_in);
  const std::optional<Tensor> value = as_contiguous(value_in);
  const std::vector<float> bias = to_vector<float>(bias_in);
  Tensor dx = empty_tensor_like(x), dbias = empty_tensor_like(bias_in);
  Tensor dvalue = value ? empty_tensor_like(*value) : empty_tensor({0}, x.scalar_type());
  const int64_t rows = cols ? dy.numel() / cols : 0;
  const int64_t num_partials = ceil_div(rows, kPartialRows);
  std::vector<float> partials(num_partials * 2 * cols);
  dispatch_float(x.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const Halves<T> in(x, value, bias, cols);
    const T* grad = const_data<T>(dy);
    T* dgates = mutable_data<T>(dx);
    T* dvalues = value ? mutable_data<T>(dvalue) : dgates + cols;
    const double partial_ns = 2 * kVecNs * kPartialRows * (cols / kLanes + 1);
    parallel_for(num_partials, partial_ns, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin * kPartialRows; row < std::min(end * kPartialRows, rows); ++row) {
        float* gate_partial = &partials[row / kPartialRows * 2 * cols];
        float* value_partial = gate_partial + cols;
        for_each_vec(cols, [&](int64_t c, auto n) {
          const Vec u = in.gate(row, c, n), d = load(grad + row * cols + c, n);
          const Gate g = logistic<T, kSiluLogit>(u);
          const Vec du = d * in.value(row, c, n) * (g.value + u * g.slope), dw = d * u * g.value;
          store(dgates + row * in.stride + c, du, n);
          store(dvalues + row * in.stride + c, dw, n);
          store(gate_partial + c, load(gate_partial + c, n) + du, n);
          store(value_partial + c, load(value_partial + c, n) + dw, n);
        });
      }
    });
  });
  reduce_partials(partials, 2 * cols, dbias);
  return {dx, dbias, dvalue};
}

IVCL_OP(bias_swiglu)
IVCL_OP(bias_swiglu_backward)

}  // namespace
}  // namespace ivcl
