// LayerNorm of rows, and its gradients.
//
// Rows stay in the first-level cache between their statistics (float32) and their normalisation.
// Four are processed side by side: the sum across a row is a chain of dependent instructions, and
// one row waits while others work.
#pragma once

#include "vec.h"

namespace ivcl {

constexpr int kGroupRows = 4;

// Calls f(row, count) for the rows begin..end: kGroupRows rows at a time, and those that remain one
// by one. The compiler may round one row differently from four, so the grouping must not depend on
// the number of threads.
template <class F>
inline void for_each_group(int64_t begin, int64_t end, const F& f) {
  int64_t row = begin;
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

// Loads kRows rows to `rows`, which are `stride` apart, and returns their statistics. load_at(r, c,
// n) returns the first n values of a row from column c on.
template <int kRows, class Load>
inline Statistics<kRows> statistics(int64_t cols, float eps, float* rows, int64_t stride,
                                    const Load& load_at) {
  Vec sums[kRows] = {};
  for_each_vec(cols, [&](int64_t c, auto n) {
    IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
      const Vec x = load_at(r, c, n);
      store(rows + r * stride + c, x);
      sums[r] += x;
    }
  });
  return {rows, stride, sums, cols, eps};
}

// Normalises kRows rows: calls put(c, n, z) with n columns from c on of all of them.
template <int kRows, class Load, class Put>
inline void normalise(int64_t cols, float eps, float* rows, int64_t stride, const Load& load_at,
                      const Put& put) {
  const Statistics<kRows> s = statistics<kRows>(cols, eps, rows, stride, load_at);
  for_each_vec(cols, [&](int64_t c, auto n) {
    Vec z[kRows];
    IVCL_UNROLL for (int r = 0; r < kRows; ++r)
      z[r] = (load(rows + r * stride + c) - s.mean[r]) * s.rstd[r];
    put(c, n, z);
  });
}

// The gradients of kRows rows: calls put(r, c, n, d) with each of them, and adds those of the
// parameters to dweight and dbias. grad_at(r, c, n) returns gradients of the normalised rows; `rows`
// and `grads` are memory for kRows rows.
template <int kRows, class Load, class Grad, class Put>
inline void normalise_backward(int64_t cols, float eps, const float* weight, float* dweight,
                               float* dbias, float* rows, float* grads, int64_t stride,
                               const Load& load_at, const Grad& grad_at, const Put& put) {
  const Statistics<kRows> s = statistics<kRows>(cols, eps, rows, stride, load_at);
  Vec g_acc[kRows] = {}, gz_acc[kRows] = {};
  for_each_vec(cols, [&](int64_t c, auto n) {
    Vec dweight_acc = load(dweight + c, n), dbias_acc = load(dbias + c, n);
    const Vec scale = load(weight + c, n);
    IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
      const Vec z = (load(rows + r * stride + c) - s.mean[r]) * s.rstd[r];
      const Vec dy = grad_at(r, c, n), scaled = dy * scale;
      store(rows + r * stride + c, z);
      store(grads + r * stride + c, scaled);
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
      const int64_t at = r * stride + c;
      put(r, c, n, (load(grads + at) - g_mean[r] - load(rows + at) * gz_mean[r]) * s.rstd[r]);
    }
  });
}

}  // namespace ivcl
