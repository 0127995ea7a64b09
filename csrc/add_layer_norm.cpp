// add_layer_norm and layer_norm.
//
// LayerNorm, with or without a residual sum before it, and its gradients: one pass each.
//
// The maths is in kernels/add_layer_norm.py, the loops over a row in norm.h. At most a tenth faster
// than eager PyTorch; it exists so that a block's sum and norm stay one pass.
#include "norm.h"
#include "op.h"

namespace ivcl {
namespace {

constexpr double kVecNs = 0.6;  // rough cost of a register of values
static_assert(kPartialRows % kGroupRows == 0);

struct Affine {
  std::vector<float> weight, bias;
};

// Normalises the rows of x or, with a residual, of x + residual, which is stored in `total`.
template <class X, class Sum, class Normed>
void forward(const X* x, const Sum* residual, Sum* total, Normed* normed, int64_t rows,
             const Affine& affine, float eps) {
  const int64_t cols = affine.weight.size(), stride = round_up(cols, kLanes);
  const float *weight = affine.weight.data(), *bias = affine.bias.data();
  const double partial_ns = kVecNs * kPartialRows * (cols / kLanes + 10);
  parallel_for(ceil_div(rows, kPartialRows), partial_ns, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* sums = scratch.alloc<float>(kGroupRows * stride);
    const int64_t last = std::min(end * kPartialRows, rows);
    for_each_group(begin * kPartialRows, last, [&](int64_t row, auto group) {
      const int64_t start = row * cols;
      const auto sum_at = [&](int r, int64_t c, auto n) {
        const int64_t at = start + r * cols + c;
        Vec sum = load(x + at, n);
        if (residual) {
          sum += load(residual + at, n);
          // Statistics are those of the sum as it is stored: backward sees no other.
          if constexpr (sizeof(Sum) < sizeof(float)) sum = from_bf16(to_bf16(sum));
          store(total + at, sum, n);
        }
        return sum;
      };
      normalise<group>(cols, eps, sums, stride, sum_at, [&](int64_t c, auto n, auto& z) {
        const Vec scale = load(weight + c, n), shift = load(bias + c, n);
        constexpr int kRows = group;
        IVCL_UNROLL for (int r = 0; r < kRows; ++r)
          store(normed + start + r * cols + c, z[r] * scale + shift, n);
      });
    });
  });
}

// `partials` is [count][2][cols]: partial sums of the gradients of weight and bias.
template <class Sum, class Normed, class X>
void backward(const Sum* dsum, const Normed* dnormed, const Sum* total, Sum* d, X* dx, int64_t rows,
              const std::vector<float>& weight, float eps, std::vector<float>& partials) {
  const int64_t cols = weight.size(), stride = round_up(cols, kLanes);
  const int64_t count = ceil_div(rows, kPartialRows);
  const double partial_ns = 2 * kVecNs * kPartialRows * (cols / kLanes + 10);
  parallel_for(count, partial_ns, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* sums = scratch.alloc<float>(kGroupRows * stride);
    float* g = scratch.alloc<float>(kGroupRows * stride);
    const int64_t last = std::min(end * kPartialRows, rows);
    for_each_group(begin * kPartialRows, last, [&](int64_t row, auto group) {
      const int64_t start = row * cols;
      float* dweight = &partials[row / kPartialRows * 2 * cols];
      normalise_backward<group>(
          cols, eps, weight.data(), dweight, dweight + cols, sums, g, stride,
          [&](int r, int64_t c, auto n) { return load(total + start + r * cols + c, n); },
          [&](int r, int64_t c, auto n) { return load(dnormed + start + r * cols + c, n); },
          [&](int r, int64_t c, auto n, Vec grad) {
            const int64_t at = start + r * cols + c;
            if (dsum) grad += load(dsum + at, n);
            store(d + at, grad, n);
            if (dx) store(dx + at, grad, n);
          });
    });
  });
}

// The parameters of a norm over `cols` columns, checked.
inline Affine affine(int64_t cols, const Tensor& weight, const Tensor& bias) {
  check_float("weight", weight, {cols});
  check_float("bias", bias, {cols});
  return {to_vector<float>(weight), to_vector<float>(bias)};
}

std::tuple<Tensor, Tensor> add_layer_norm(const Tensor& x_in, const Tensor& residual_in,
                                          const Tensor& weight, const Tensor& bias, double eps) {
  const int64_t cols = check_rows("x", x_in);
  check_float("residual", residual_in.scalar_type());
  check_shape("residual", residual_in, x_in.sizes());
  const Affine parameters = affine(cols, weight, bias);
  const Tensor x = as_contiguous(x_in), residual = as_contiguous(residual_in);
  Tensor total = empty_tensor_like(residual), normed = empty_tensor_like(x);
  const int64_t rows = cols ? x.numel() / cols : 0;
  dispatch_float(x.scalar_type(), [&](auto x_type) {
    dispatch_float(residual.scalar_type(), [&](auto sum_type) {
      using X = decltype(x_type);
      using Sum = decltype(sum_type);
      forward(const_data<X>(x), const_data<Sum>(residual), mutable_data<Sum>(total),
                        mutable_data<X>(normed), rows, parameters, float(eps));
    });
  });
  return {total, normed};
}

Tensor layer_norm(const Tensor& x_in, const Tensor& weight, const Tensor& bias, double eps,
                  ScalarType dtype) {
  const int64_t cols = check_rows("x", x_in);
  const Affine parameters = affine(cols, weight, bias);
  check_float("dtype", dtype);
  const Tensor x = as_contiguous(x_in);
  Tensor normed = empty_tensor_like(x, dtype);
  const int64_t rows = cols ? x.numel() / cols : 0;
  dispatch_float(x.scalar_type(), [&](auto x_type) {
    dispatch_float(dtype, [&](auto normed_type) {
      using X = decltype(x_type);
      forward<X, X>(const_data<X>(x), nullptr, nullptr,
                              mutable_data<decltype(normed_type)>(normed), rows, parameters,
                              float(eps));
    });
  });
  return normed;
}

std::tuple<Tensor, Tensor, Tensor> add_layer_norm_backward(
    const std::optional<Tensor>& dsum_in, const Tensor& dnormed_in, const Tensor& total_in,
    const Tensor& weight_in, double eps, ScalarType x_dtype) {
  check_float("weight", weight_in, {check_rows("sum", total_in)});
  check_float("dnormed", dnormed_in.scalar_type());
  check_shape("dnormed", dnormed_in, total_in.sizes());
  if (dsum_in) check_like("dsum", *dsum_in, total_in);
  check_float("x_dtype", x_dtype);
  const Tensor total = as_contiguous(total_in), dnormed = as_contiguous(dnormed_in);
  const Tensor dsum = dsum_in ? as_contiguous(*dsum_in) : total;
  const std::vector<float> weight = to_vector<float>(weight_in);
  const int64_t cols = weight.size(), rows = cols ? total.numel() / cols : 0;
  const bool same_dtype = x_dtype == total.scalar_type();
  Tensor d = empty_tensor_like(total);
  Tensor dx = same_dtype ? empty_tensor({0}, x_dtype) : empty_tensor_like(total, x_dtype);
  std::vector<float> partials(ceil_div(rows, kPartialRows) * 2 * cols);
  dispatch_float(total.scalar_type(), [&](auto sum_type) {
    dispatch_float(dnormed.scalar_type(), [&](auto normed_type) {
      dispatch_float(x_dtype, [&](auto x_type) {
        using Sum = decltype(sum_type);
        using X = decltype(x_type);
        backward(dsum_in ? const_data<Sum>(dsum) : nullptr,
                 const_data<decltype(normed_type)>(dnormed), const_data<Sum>(total),
                 mutable_data<Sum>(d), same_dtype ? nullptr : mutable_data<X>(dx), rows, weight,
                 float(eps), partials);
      });
    });
  });
  Tensor dparameters = empty_tensor({2, cols}, weight_in.scalar_type());
  reduce_partials(partials, 2 * cols, dparameters);
  return {d, dx, dparameters};
}

IVCL_OP(add_layer_norm)
IVCL_OP(add_layer_norm_backward)
IVCL_OP(layer_norm)

}  // namespace
}  // namespace ivcl
