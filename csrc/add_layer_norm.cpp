// add_layer_norm: residual sum and its LayerNorm in one pass, and both gradients in one.
//
// Maths as in kernels/add_layer_norm.py. A row stays in the first-level cache between its sum, its
// statistics (centred, float32) and its normalisation.
#include "op.h"

namespace ivcl {
namespace {

constexpr double kCost = 2.0;  // nanoseconds for a register of values

struct Statistics {
  float mean, inverse;  // of the standard deviation
};

inline Statistics statistics(const float* row, int64_t cols, float eps) {
  Vec total{};
  for (int64_t c = 0; c < cols; c += kLanes) total += load(row + c, cols - c);
  const float mean = sum(total) / cols;
  Vec squares{};
  for (int64_t c = 0; c < cols; c += kLanes) {
    const Vec centred = keep_first(load(row + c, cols - c) - mean, cols - c);
    squares += centred * centred;
  }
  return {mean, 1 / std::sqrt(sum(squares) / cols + eps)};
}

struct Affine {
  std::vector<float> weight, bias;
};

// The rows of x, or of x + residual, which goes to `total`: normalised.
template <class X, class Sum, class Normed>
void forward(const X* x, const Sum* residual, Sum* total, Normed* normed, int64_t rows,
             const Affine& affine, float eps) {
  const int64_t cols = affine.weight.size();
  parallel(rows, kCost * (cols / kLanes + 10), [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* row = scratch.take<float>(round_up(cols, kLanes));
    for (int64_t at = begin * cols; at < end * cols; at += cols) {
      for (int64_t c = 0; c < cols; c += kLanes) {
        const int64_t n = cols - c;
        Vec some = load(x + at + c, n);
        if (residual) {
          some += load(residual + at + c, n);
          store(total + at + c, some, n);
          some = load(total + at + c, n);  // as it is stored: backward sees no other
        }
        store(row + c, some);
      }
      const Statistics s = statistics(row, cols, eps);
      for (int64_t c = 0; c < cols; c += kLanes) {
        const int64_t n = cols - c;
        const Vec z = (load(row + c) - s.mean) * s.inverse;
        store(normed + at + c, z * load(&affine.weight[c], n) + load(&affine.bias[c], n), n);
      }
    }
  });
}

template <class Sum, class Normed, class X>
void backward(const Sum* dsum, const Normed* dnormed, const Sum* total, Sum* d, X* dx, int64_t rows,
              const std::vector<float>& weight, float eps, std::vector<float>& sums) {
  const int64_t cols = weight.size(), shares = sums.size() / (2 * cols);
  parallel(shares, 2 * kCost * kShareRows * (cols / kLanes + 10), [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* row = scratch.take<float>(round_up(cols, kLanes));
    float* g = scratch.take<float>(round_up(cols, kLanes));
    for (int64_t r = begin * kShareRows; r < std::min(end * kShareRows, rows); ++r) {
      const int64_t at = r * cols;
      float *dweight = &sums[r / kShareRows * 2 * cols], *dbias = dweight + cols;
      for (int64_t c = 0; c < cols; c += kLanes) store(row + c, load(total + at + c, cols - c));
      const Statistics s = statistics(row, cols, eps);
      Vec along{}, along_z{};
      for (int64_t c = 0; c < cols; c += kLanes) {
        const int64_t n = cols - c;
        const Vec z = (load(row + c) - s.mean) * s.inverse, dy = load(dnormed + at + c, n);
        const Vec some = dy * load(&weight[c], n);
        store(row + c, z);
        store(g + c, some);
        along += some;
        along_z += some * z;
        store(dweight + c, load(dweight + c, n) + dy * z, n);
        store(dbias + c, load(dbias + c, n) + dy, n);
      }
      const float mean = sum(along) / cols, mean_z = sum(along_z) / cols;
      for (int64_t c = 0; c < cols; c += kLanes) {
        const int64_t n = cols - c;
        Vec some = (load(g + c) - mean - load(row + c) * mean_z) * s.inverse;
        if (dsum) some += load(dsum + at + c, n);
        store(d + at + c, some, n);
        if (dx) store(dx + at + c, some, n);
      }
    }
  });
}

std::tuple<Tensor, Tensor> add_layer_norm(const Tensor& x, const Tensor& residual,
                                          const Tensor& weight, const Tensor& bias, double eps) {
  const Tensor whole = dense(x), whole_residual = dense(residual);
  Tensor total = make_like(whole_residual), normed = make_like(whole);
  const Affine affine{as_floats(weight), as_floats(bias)};
  const int64_t rows = whole.numel() / affine.weight.size();
  with_float(whole.scalar_type(), [&](auto x_type) {
    with_float(whole_residual.scalar_type(), [&](auto sum_type) {
      using X = decltype(x_type);
      using Sum = decltype(sum_type);
      forward(in<X>(whole), in<Sum>(whole_residual), out<Sum>(total), out<X>(normed), rows, affine,
              float(eps));
    });
  });
  return {total, normed};
}

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps,
                  ScalarType dtype) {
  const Tensor whole = dense(x);
  Tensor normed = make_like(whole, dtype);
  const Affine affine{as_floats(weight), as_floats(bias)};
  const int64_t rows = whole.numel() / affine.weight.size();
  with_float(whole.scalar_type(), [&](auto x_type) {
    with_float(dtype, [&](auto normed_type) {
      using X = decltype(x_type);
      forward<X, X>(in<X>(whole), nullptr, nullptr, out<decltype(normed_type)>(normed), rows,
                    affine, float(eps));
    });
  });
  return normed;
}

std::tuple<Tensor, Tensor, Tensor> add_layer_norm_backward(
    const std::optional<Tensor>& dsum, const Tensor& dnormed, const Tensor& total,
    const Tensor& weight, double eps, ScalarType x_dtype) {
  const Tensor whole = dense(total), whole_dnormed = dense(dnormed);
  const Tensor whole_dsum = dsum ? dense(*dsum) : whole;
  const std::vector<float> scale = as_floats(weight);
  const int64_t cols = scale.size(), rows = whole.numel() / cols;
  const bool same = x_dtype == whole.scalar_type();
  Tensor d = make_like(whole), dx = same ? make({0}, x_dtype) : make_like(whole, x_dtype);
  std::vector<float> sums((rows + kShareRows - 1) / kShareRows * 2 * cols);
  with_float(whole.scalar_type(), [&](auto sum_type) {
    with_float(whole_dnormed.scalar_type(), [&](auto normed_type) {
      with_float(x_dtype, [&](auto x_type) {
        using Sum = decltype(sum_type);
        using X = decltype(x_type);
        backward(dsum ? in<Sum>(whole_dsum) : nullptr, in<decltype(normed_type)>(whole_dnormed),
                 in<Sum>(whole), out<Sum>(d), same ? nullptr : out<X>(dx), rows, scale, float(eps),
                 sums);
      });
    });
  });
  Tensor parameters = make({2, cols}, weight.scalar_type());
  add_shares(sums, 2 * cols, parameters);
  return {d, dx, parameters};
}

IVCL_OP(add_layer_norm)
IVCL_OP(add_layer_norm_backward)
IVCL_OP(layer_norm)

}  // namespace
}  // namespace ivcl
