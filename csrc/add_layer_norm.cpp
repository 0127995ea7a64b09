// add_layer_norm and layer_norm.
//
// LayerNorm, with or without a residual sum before it, and its gradients: one pass each.
//
// The maths is in kernels/add_layer_norm.py. Rows stay in the first-level cache between their sum,
// their statistics (float32) and their normalisation. Four rows are processed side by side: the sum
// across a row is a chain of dependent instructions, and one row waits while others work. At most a
// tenth faster than eager PyTorch; it exists so that a block's sum and norm stay one pass.
#include "op.h"

namespace ivcl {
namespace {

constexpr double kVecNs = 0.6;  // rough cost of a register of values
constexpr int kGroupRows = 4;
static_assert(kPartialRows % kGroupRows == 0);

// Calls f(row, count) for all rows of the partial sums begin..end: kGroupRows rows at a time, and
// those that remain at the very end one by one. The grouping depends on the number of rows alone,
// because the compiler may round one row differently from four.
template <class F>
inline void for_each_group(int64_t begin, int64_t end, int64_t rows, const F& f) {
  int64_t row = begin * kPartialRows;
  end = std::min(end * kPartialRows, rows);
  for (; row + kGroupRows <= end; row += kGroupRows)
    f(row, std::integral_constant<int, kGroupRows>{});
  for (; row < end; ++row) f(row, std::integral_constant<int, 1>{});
}

// The mean, and 1 / the standard deviation.
template <int kRows>
struct Statistics {
  float mean[kRows], rstd[kRows];

  // Of rows[kRows][cols], `stride` apart, given the sums of each row's registers.
  Statistics(const float* rows, int64_t stride, const Vec (&sums)[kRows], int64_t cols, float eps) {
    IVCL_UNROLL for (int r = 0; r < kRows; ++r)
      mean[r] = reduce_sum(sums[r]) / cols;
    Vec squares[kRows] = {};
    for_each_vec(cols, [&](int64_t c, auto n) {
      IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
        const Vec centred = mask_tail(load(rows + r * stride + c) - mean[r], n);
        squares[r] += centred * centred;
      }
    });
    IVCL_UNROLL for (int r = 0; r < kRows; ++r)
      rstd[r] = 1 / std::sqrt(reduce_sum(squares[r]) / cols + eps);
  }
};

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
    for_each_group(begin, end, rows, [&](int64_t row, auto group) {
      constexpr int kRows = group;
      const int64_t start = row * cols;
      Vec acc[kRows] = {};
      for_each_vec(cols, [&](int64_t c, auto n) {
        IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
          const int64_t at = start + r * cols + c;
          Vec sum = load(x + at, n);
          if (residual) {
            sum += load(residual + at, n);
            // Statistics are those of the sum as it is stored: backward sees no other.
            if constexpr (sizeof(Sum) < sizeof(float)) sum = from_bf16(to_bf16(sum));
            store(total + at, sum, n);
          }
          store(sums + r * stride + c, sum);
          acc[r] += sum;
        }
      });
      const Statistics<kRows> s(sums, stride, acc, cols, eps);
      for_each_vec(cols, [&](int64_t c, auto n) {
        const Vec scale = load(weight + c, n), shift = load(bias + c, n);
        IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
          const Vec z = (load(sums + r * stride + c) - s.mean[r]) * s.rstd[r];
          store(normed + start + r * cols + c, z * scale + shift, n);
        }
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
    for_each_group(begin, end, rows, [&](int64_t row, auto group) {
      constexpr int kRows = group;
      const int64_t start = row * cols;
      float* dweight = &partials[row / kPartialRows * 2 * cols];
      float* dbias = dweight + cols;
      Vec acc[kRows] = {};
      for_each_vec(cols, [&](int64_t c, auto n) {
        IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
          const Vec sum = load(total + start + r * cols + c, n);
          store(sums + r * stride + c, sum);
          acc[r] += sum;
        }
      });
      const Statistics<kRows> s(sums, stride, acc, cols, eps);
      Vec g_acc[kRows] = {}, gz_acc[kRows] = {};
      for_each_vec(cols, [&](int64_t c, auto n) {
        Vec dweight_acc = load(dweight + c, n), dbias_acc = load(dbias + c, n);
        const Vec scale = load(&weight[c], n);
        IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
          const Vec z = (load(sums + r * stride + c) - s.mean[r]) * s.rstd[r];
          const Vec dy = load(dnormed + start + r * cols + c, n), scaled = dy * scale;
          store(sums + r * stride + c, z);
          store(g + r * stride + c, scaled);
          g_acc[r] += scaled;
          gz_acc[r] += scaled * z;
          dweight_acc += dy * z;
          dbias_acc += dy;
        }
        store(dweight + c, dweight_acc, n);
        store(dbias + c, dbias_acc, n);
      });
      float g_mean[kRows], gz_mean[kRows];
      IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
        g_mean[r] = reduce_sum(g_acc[r]) / cols;
        gz_mean[r] = reduce_sum(gz_acc[r]) / cols;
      }
      for_each_vec(cols, [&](int64_t c, auto n) {
        IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
          const int64_t at = start + r * cols + c, here = r * stride + c;
          Vec grad = (load(g + here) - g_mean[r] - load(sums + here) * gz_mean[r]) * s.rstd[r];
          if (dsum) grad += load(dsum + at, n);
          store(d + at, grad, n);
          if (dx) store(dx + at, grad, n);
        }
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
