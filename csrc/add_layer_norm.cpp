// add_layer_norm: residual sum and its LayerNorm in one pass, and both gradients in one.
//
// Maths as in kernels/add_layer_norm.py. Rows stay in the first-level cache between their sum, their
// statistics (centred, float32) and their normalisation. Four go side by side: the sums across a
// row are chains of instructions that wait for each other, and one row waits while others work.
// Beats eager by at most a tenth; it is there so that a block's sum and its norm stay one pass.
#include "op.h"

namespace ivcl {
namespace {

constexpr double kCost = 0.6;  // nanoseconds for a register of values
constexpr int kTogether = 4;   // rows
static_assert(kShareRows % kTogether == 0);

// f(row, number) for the shares begin..end of all rows: kTogether rows at a time, the last alone. Which
// are alone depends on nothing else: the compiler may round one row in another way than four.
template <class F>
inline void groups(int64_t begin, int64_t end, int64_t rows, const F& f) {
  int64_t row = begin * kShareRows;
  end = std::min(end * kShareRows, rows);
  for (; row + kTogether <= end; row += kTogether) f(row, std::integral_constant<int, kTogether>{});
  for (; row < end; ++row) f(row, std::integral_constant<int, 1>{});
}

template <int kRows>
struct Statistics {
  float mean[kRows], inverse[kRows];  // of the standard deviation

  // Of rows[kRows][cols], `distance` apart, with the registers' sums.
  Statistics(const float* rows, int64_t distance, const Vec (&sums)[kRows], int64_t cols,
             float eps) {
    IVCL_UNROLL for (int r = 0; r < kRows; ++r) mean[r] = sum(sums[r]) / cols;
    Vec squares[kRows] = {};
    registers(cols, [&](int64_t c, auto n) {
      IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
        const Vec centred = keep_first(load(rows + r * distance + c) - mean[r], n);
        squares[r] += centred * centred;
      }
    });
    IVCL_UNROLL for (int r = 0; r < kRows; ++r)
      inverse[r] = 1 / std::sqrt(sum(squares[r]) / cols + eps);
  }
};

struct Affine {
  std::vector<float> weight, bias;
};

// The rows of x, or of x + residual, which goes to `total`: normalised.
template <class X, class Sum, class Normed>
void forward(const X* x, const Sum* residual, Sum* total, Normed* normed, int64_t rows,
             const Affine& affine, float eps) {
  const int64_t cols = affine.weight.size(), wide = round_up(cols, kLanes);
  const float *weight = affine.weight.data(), *bias = affine.bias.data();
  const double cost = kCost * kShareRows * (cols / kLanes + 10);
  parallel((rows + kShareRows - 1) / kShareRows, cost, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* sums = scratch.take<float>(kTogether * wide);
    groups(begin, end, rows, [&](int64_t row, auto together) {
      constexpr int kRows = together;
      const int64_t start = row * cols;
      Vec all[kRows] = {};
      registers(cols, [&](int64_t c, auto n) {
        IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
          const int64_t at = start + r * cols + c;
          Vec some = load(x + at, n);
          if (residual) {
            some += load(residual + at, n);
            if constexpr (sizeof(Sum) < sizeof(float)) some = widen(narrow(some));
            store(total + at, some, n);  // statistics are of what is stored: backward sees no other
          }
          store(sums + r * wide + c, some);
          all[r] += some;
        }
      });
      const Statistics<kRows> s(sums, wide, all, cols, eps);
      registers(cols, [&](int64_t c, auto n) {
        const Vec scale = load(weight + c, n), shift = load(bias + c, n);
        IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
          const Vec z = (load(sums + r * wide + c) - s.mean[r]) * s.inverse[r];
          store(normed + start + r * cols + c, z * scale + shift, n);
        }
      });
    });
  });
}

template <class Sum, class Normed, class X>
void backward(const Sum* dsum, const Normed* dnormed, const Sum* total, Sum* d, X* dx, int64_t rows,
              const std::vector<float>& scale, float eps, std::vector<float>& shares) {
  const int64_t cols = scale.size(), wide = round_up(cols, kLanes);
  const int64_t count = shares.size() / (2 * cols);
  parallel(count, 2 * kCost * kShareRows * (cols / kLanes + 10), [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float* sums = scratch.take<float>(kTogether * wide);
    float* g = scratch.take<float>(kTogether * wide);
    groups(begin, end, rows, [&](int64_t row, auto together) {
      constexpr int kRows = together;
      const int64_t start = row * cols;
      float *dweight = &shares[row / kShareRows * 2 * cols], *dbias = dweight + cols;
      Vec all[kRows] = {};
      registers(cols, [&](int64_t c, auto n) {
        IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
          const Vec some = load(total + start + r * cols + c, n);
          store(sums + r * wide + c, some);
          all[r] += some;
        }
      });
      const Statistics<kRows> s(sums, wide, all, cols, eps);
      Vec along[kRows] = {}, along_z[kRows] = {};
      registers(cols, [&](int64_t c, auto n) {
        Vec to_weight = load(dweight + c, n), to_bias = load(dbias + c, n);
        const Vec weight = load(&scale[c], n);
        IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
          const Vec z = (load(sums + r * wide + c) - s.mean[r]) * s.inverse[r];
          const Vec dy = load(dnormed + start + r * cols + c, n), some = dy * weight;
          store(sums + r * wide + c, z);
          store(g + r * wide + c, some);
          along[r] += some;
          along_z[r] += some * z;
          to_weight += dy * z;
          to_bias += dy;
        }
        store(dweight + c, to_weight, n);
        store(dbias + c, to_bias, n);
      });
      float mean[kRows], mean_z[kRows];
      IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
        mean[r] = sum(along[r]) / cols;
        mean_z[r] = sum(along_z[r]) / cols;
      }
      registers(cols, [&](int64_t c, auto n) {
        IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
          const int64_t at = start + r * cols + c, here = r * wide + c;
          Vec some = (load(g + here) - mean[r] - load(sums + here) * mean_z[r]) * s.inverse[r];
          if (dsum) some += load(dsum + at, n);
          store(d + at, some, n);
          if (dx) store(dx + at, some, n);
        }
      });
    });
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
