// embed_patches: from bytes of visible patches to tokens, in one pass.
//
// Maths as in kernels/embed_patches.py. A block of visible rows becomes pixels in the first-level
// cache, is multiplied by the weight (laid out once per call) and gets bias and position on its way
// to memory. Backward turns the bytes into pixels again; a task owns some columns of the weight's
// gradient and goes over all tokens, so the sums need no shares.
// Beats eager (gather, scale, linear, add) 3x to 3.7x, forward and backward in bf16.
#include "matmul.h"
#include "op.h"

namespace ivcl {
namespace {

constexpr int64_t kRows = 48;             // tokens at once, forward
constexpr int64_t kTokens = 256;           // tokens at once, backward
constexpr int64_t kColumns = 2 * kLanes;  // pixels of a task, backward

struct Patches {
  const uint8_t* bytes;
  const int64_t* ids;
  int64_t patches, pixels, visible;
  float scale, shift;

  // The normalised pixels first..first+count of the patch of a token.
  template <class T>
  void pixels_of(int64_t token, int64_t first, int64_t count, T* to) const {
    const uint8_t* row = bytes + (token / visible * patches + ids[token]) * pixels + first;
    for (int64_t c = 0; c < count; c += kLanes)
      store(to + c, keep_first(load(row + c, count - c) * scale + shift, count - c));
  }
};

template <class T>
void forward(const Patches& p, int64_t tokens, const Tensor& weight, const Tensor& bias,
             const Tensor& pos, T* y) {
  using Op = typename Operand<T>::type;
  using Unit = typename Op::Unit;
  const int64_t dim = weight.size(0), wide_dim = round_up(dim, kLanes);
  const Depth<Op> deep(p.pixels);
  const int64_t wide = round_up(Op::kGroup * deep.units, 2 * kLanes);
  const std::vector<T> values = as_type<T>(weight);
  const std::vector<float> offset = as_floats(bias), shift = as_floats(pos);
  Scratch shared;
  Unit* across = shared.take<Unit>(round_up(deep.units, kLanes) * wide_dim);
  pack_across(values.data(), p.pixels, dim, p.pixels, across, wide_dim);

  parallel((tokens + kRows - 1) / kRows, 5e-3 * kRows * p.pixels * dim, [&](int64_t begin, int64_t end) {
    const Products<Op> products(deep, deep);
    Scratch scratch;
    T* x = scratch.take<T>(kRows * wide);
    Unit* rows = scratch.take<Unit>(kRows * wide);
    for (int64_t first = begin * kRows; first < std::min(end * kRows, tokens); first += kRows) {
      const int64_t count = std::min(kRows, tokens - first);
      for (int64_t r = 0; r < count; ++r) p.pixels_of(first + r, 0, p.pixels, x + r * wide);
      const A<Op> left = rows_of<Op>(x, wide, count, kRows, p.pixels, rows);
      const auto add = [=, ids = p.ids + first, offset = offset.data(), shift = shift.data(),
                        to = y + first * dim](int64_t row, int64_t col, auto& x) {
        int64_t c = col;
        for (Vec& sum : x) {
          sum += load(offset + c, dim - c) + load(shift + ids[row] * dim + c, dim - c);
          c += kLanes;
        }
        store(to + row * dim + col, x, dim - col);
      };
      matmul<Op>(count, dim, deep, left, {across, wide_dim}, add);
    }
  });
}

template <class T>
void backward(const Patches& p, int64_t tokens, const T* dy, int64_t dim,
              std::vector<float>& dweight, std::vector<float>& dpos) {
  using Op = typename Operand<T>::type;
  using Unit = typename Op::Unit;
  const int64_t wide_dim = round_up(dim, kLanes);
  parallel((p.pixels + kColumns - 1) / kColumns, 5e-3 * tokens * dim * kColumns,
           [&](int64_t begin, int64_t end) {
    Scratch scratch;
    T* x = scratch.take<T>(kTokens * kColumns);
    Unit* down_x = scratch.take<Unit>(kTokens * kColumns);
    Unit* turned = scratch.take<Unit>(kTokens * wide_dim);
    for (int64_t first = 0; first < tokens; first += kTokens) {
      const int64_t count = std::min(kTokens, tokens - first);
      const Depth<Op> depth(count);
      const Products<Op> products(depth, depth);
      const A<Op> left = columns_of<Op>(dy + first * dim, dim, count, dim, turned);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t column = task * kColumns, columns = std::min(kColumns, p.pixels - column);
        for (int64_t r = 0; r < count; ++r)
          p.pixels_of(first + r, column, columns, x + r * kColumns);
        pack_down(x, kColumns, count, columns, down_x, kColumns);
        matmul<Op>(dim, columns, depth, left, {down_x, kColumns},
                   [=, to = &dweight[column], pixels = p.pixels](int64_t d, int64_t c, auto& x) {
                     for (Vec& sum : x) {
                       float* at = to + d * pixels + c;
                       store(at, load(at, columns - c) + sum, columns - c);
                       c += kLanes;
                     }
                   });
      }
    }
  });
  parallel((dim + kColumns - 1) / kColumns, 2.0 * tokens, [&](int64_t begin, int64_t end) {
    for (int64_t token = 0; token < tokens; ++token) {
      float* to = &dpos[p.ids[token] * dim];
      for (int64_t c = begin * kColumns; c < std::min(end * kColumns, dim); c += kLanes) {
        const int64_t n = std::min(end * kColumns, dim) - c;
        store(to + c, load(to + c, n) + load(dy + token * dim + c, n), n);
      }
    }
  });
}

Patches patches_of(const Tensor& rows, const Tensor& ids, double mean, double std) {
  check_ids(in<int64_t>(ids), ids.numel(), rows.size(1));
  return {in<uint8_t>(rows), in<int64_t>(ids), rows.size(1), rows.size(2), ids.size(1),
          float(1 / (255 * std)), float(-mean / std)};
}

Tensor embed_patches(const Tensor& rows, const Tensor& ids, const Tensor& weight,
                     const Tensor& bias, const Tensor& pos, double mean, double std,
                     ScalarType dtype) {
  const Tensor whole = dense(rows), whole_ids = dense(ids);
  const Patches p = patches_of(whole, whole_ids, mean, std);
  Tensor y = make({ids.size(0), ids.size(1), weight.size(0)}, dtype);
  with_float(dtype, [&](auto t) {
    using T = decltype(t);
    forward<T>(p, ids.numel(), weight, bias, pos, out<T>(y));
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> embed_patches_backward(const Tensor& dy, const Tensor& rows,
                                                          const Tensor& ids, const Tensor& weight,
                                                          const Tensor& bias, const Tensor& pos,
                                                          double mean, double std) {
  const Tensor whole = dense(rows), whole_ids = dense(ids), whole_dy = dense(dy);
  const Patches p = patches_of(whole, whole_ids, mean, std);
  const int64_t dim = weight.size(0);
  std::vector<float> sums(weight.numel()), pos_sums(pos.numel());
  with_float(whole_dy.scalar_type(), [&](auto t) {
    using T = decltype(t);
    backward<T>(p, ids.numel(), in<T>(whole_dy), dim, sums, pos_sums);
  });
  Tensor dweight = make({dim, p.pixels}, weight.scalar_type()), dbias = make_like(bias);
  Tensor dpos = make({p.patches, dim}, pos.scalar_type());
  add_shares(sums, sums.size(), dweight);
  add_shares(pos_sums, pos_sums.size(), dpos);
  add_shares(pos_sums, dim, dbias);
  return {dweight, dbias, dpos};
}

IVCL_OP(embed_patches)
IVCL_OP(embed_patches_backward)

}  // namespace
}  // namespace ivcl
