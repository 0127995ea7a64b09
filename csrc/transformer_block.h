// Shared by both passes of transformer_block: sizes, the work of a task, weights and products.
//
// The maths is in kernels/transformer_block.py. A task is a *chunk*: a few whole sequences, whose
// values stay in a core's caches from one op of the block to the next. In this file a row is a
// token behind attention: all of them, or those that are selected.
#pragma once

#include <atomic>
#include <vector>

#include "attention_head.h"
#include "norm.h"

namespace ivcl {

// --- Sizes ---------------------------------------------------------------------------------------

// A block's parameters, in the order of the op's arguments.
enum Parameter {
  kNorm1Weight, kNorm1Bias, kQkvWeight, kQkvBias, kProjWeight, kProjBias,
  kNorm2Weight, kNorm2Bias, kFc1Weight, kFc1Bias, kFc2Weight, kFc2Bias, kParameters,
};

constexpr int64_t kChunkTokens = 72;   // of a chunk of several sequences
// Tokens whose parameters' gradients are worth a sum of their own: for work of a few cores, or of
// more. Every sum takes the memory of all parameters.
constexpr int64_t kFewGroupTokens = 128, kGroupTokens = 512;
constexpr int64_t kFewGroups = 8, kMaxGroups = 64;

// The distance between rows of `cols` values such that neither a column of them nor a register
// behind the last value causes trouble: an odd number of pairs of cache lines, so that rows do not
// share a few sets of a cache. kernels/transformer_block.py computes it as well.
constexpr int64_t row_stride(int64_t cols) { return (ceil_div(cols + 16, 32) | 1) * 32; }

struct BlockSizes {
  int64_t frames, tokens, width, heads, hidden;
  float eps;

  int64_t dim() const { return width / heads; }
  int64_t frames_per_chunk() const { return std::max<int64_t>(1, kChunkTokens / tokens); }
  int64_t chunks() const { return ceil_div(frames, frames_per_chunk()); }
  int64_t chunk_tokens() const { return std::min(frames, frames_per_chunk()) * tokens; }
  int64_t first_frame(int64_t chunk) const { return std::min(frames, chunk * frames_per_chunk()); }
  // Of qkv and the attention's output, which lie side by side.
  int64_t attended_stride() const { return row_stride(4 * width); }
  double chunk_ns() const { return 0.03 * chunk_tokens() * width * (4 * width + 2 * hidden); }

  // Gradients of parameters are sums over groups of chunks, whose number depends on sizes alone: a
  // power of two, which most numbers of threads divide.
  int64_t groups() const {
    int64_t groups = 1;
    const auto enough = [&] {
      return frames * tokens >= 2 * groups * (groups < kFewGroups ? kFewGroupTokens : kGroupTokens);
    };
    while (groups < kMaxGroups && groups < chunks() && enough()) groups *= 2;
    return groups;
  }
  int64_t count(int parameter) const {
    const int64_t counts[kParameters] = {
        width, width, 3 * width * width, 3 * width, width * width, width,
        width, width, width * hidden,    hidden,    width * hidden, width};
    return counts[parameter];
  }
  int64_t offset(int parameter) const {
    int64_t total = 0;
    for (int i = 0; i < parameter; ++i) total += count(i);
    return total;
  }
};

// The rows of every chunk: `first[chunk]` to `first[chunk + 1]`, in the order in which they are
// kept for backward. Row i is token `token[i]` of all, and row `place[i]` of the output.
struct Rows {
  bool selected;
  std::vector<int64_t> first, token, place;

  Rows(const BlockSizes& sizes, const std::optional<Tensor>& index) : selected(index.has_value()) {
    const int64_t per_chunk = sizes.frames_per_chunk() * sizes.tokens;
    const int64_t tokens = sizes.frames * sizes.tokens, chunks = sizes.chunks();
    const Tensor dense = index ? as_contiguous(*index) : Tensor();
    const int64_t* ids = index ? const_data<int64_t>(dense) : nullptr;
    const int64_t count = index ? dense.numel() : tokens;
    const auto token_of = [&](int64_t i) { return ids ? ids[i] : i; };
    first.resize(chunks + 1);
    token.resize(count);
    place.resize(count);
    for (int64_t i = 0; i < count; ++i) {
      if (token_of(i) < 0 || token_of(i) >= tokens)
        fail("index: ", token_of(i), " is out of bounds: tokens are 0 to ", tokens - 1);
      ++first[token_of(i) / per_chunk + 1];
    }
    for (int64_t chunk = 0; chunk < chunks; ++chunk) first[chunk + 1] += first[chunk];
    std::vector<int64_t> next(first);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = next[token_of(i) / per_chunk]++;
      token[row] = token_of(i);
      place[row] = i;
    }
  }
  int64_t most() const {  // of a chunk
    int64_t rows = 0;
    for (size_t i = 1; i < first.size(); ++i) rows = std::max(rows, first[i] - first[i - 1]);
    return rows;
  }
};

// The frames, tokens and rows of a chunk.
struct Chunk {
  int64_t frames, first_token, tokens, first_row, rows;
  const int64_t *token, *place;  // of its rows, as in `Rows`

  Chunk(const BlockSizes& s, const Rows& all, int64_t i)
      : frames(s.first_frame(i + 1) - s.first_frame(i)),
        first_token(s.first_frame(i) * s.tokens),
        tokens(frames * s.tokens),
        first_row(all.first[i]),
        rows(all.first[i + 1] - first_row),
        token(all.token.data() + first_row),
        place(all.place.data() + first_row) {}
  int64_t token_in_chunk(int64_t row) const { return token[row] - first_token; }
};

// --- Parameters ----------------------------------------------------------------------------------

using Parameters = std::vector<Tensor>;

// The sizes of a block, checked.
inline BlockSizes check_block(const Tensor& x, const Parameters& parameters,
                              const std::optional<Tensor>& index, int64_t heads, double eps,
                              ScalarType dtype) {
  const char* const names[kParameters] = {
      "norm1_weight", "norm1_bias", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias",
      "norm2_weight", "norm2_bias", "fc1_weight", "fc1_bias", "fc2_weight",  "fc2_bias"};
  check_float("x", x, {kAny, kAny, kAny});
  check_float("dtype", dtype);
  if (x.scalar_type() == ScalarType::BFloat16 && dtype == ScalarType::Float)
    fail("dtype: ", dtype, " has more precision than x");
  const int64_t width = x.size(2);
  if (heads < 1 || width < 1 || width % heads)
    fail("num_heads: ", heads, " does not divide the width ", width);
  if (x.size(1) < 1 || x.size(1) > kMaxHeadTokens) fail("x: ", x.size(1), " tokens");
  check_shape("fc1_weight", parameters[kFc1Weight], {kAny, width});
  const int64_t hidden = parameters[kFc1Weight].size(0);
  if (hidden < 1) fail("fc1_weight: no rows");
  const int64_t rows[kParameters] = {0, 0, 3 * width, 0, width, 0, 0, 0, hidden, 0, width, 0};
  const BlockSizes sizes{x.size(0), x.size(1), width, heads, hidden, float(eps)};
  for (int i = 0; i < kParameters; ++i) {
    check_dtype(names[i], parameters[i], parameters[0].scalar_type());
    if (rows[i]) check_float(names[i], parameters[i], {rows[i], sizes.count(i) / rows[i]});
    else check_float(names[i], parameters[i], {sizes.count(i)});
  }
  if (index) check_dtype("index", *index, ScalarType::Long);
  return sizes;
}

// Calls f with values of the C++ types of the residual stream and of products.
template <class F>
void dispatch_block(ScalarType x, ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Float) f(float{}, float{});
  else if (x == ScalarType::Float) f(float{}, bf16{});
  else f(bf16{}, bf16{});
}

// A vector of parameters as float32, with a register of zeros behind the last.
inline std::vector<float> padded_vector(const Tensor& x) {
  std::vector<float> values = to_vector<float>(x);
  values.resize(values.size() + kStrip);
  return values;
}

// A weight [rows][cols] as the right operand of a product, packed by all threads: with k down its
// columns, or along its rows (transposed).
template <class T, bool kTransposed>
class PackedWeight {
  using Op = MatmulOp<T>;
  Scratch scratch_;
  typename Op::Packed* packed_;
  int64_t k_;

 public:
  explicit PackedWeight(const Tensor& weight)
      : k_(kTransposed ? weight.size(1) : weight.size(0)) {
    const int64_t cols = kTransposed ? weight.size(0) : weight.size(1), stride = weight.size(1);
    packed_ = scratch_.alloc<typename Op::Packed>(strips_size<Op>(k_, cols));
    const bool in_place = weight.is_contiguous() &&
                          (weight.scalar_type() == ScalarType::Float) == (sizeof(T) == 4);
    const std::vector<T> copy = in_place ? std::vector<T>() : to_vector<T>(weight);
    const T* values = in_place ? const_data<T>(weight) : copy.data();
    if (k_ > 0)
      parallel_for(ceil_div(cols, kStrip), 0.3 * k_ * kStrip, [&](int64_t begin, int64_t end) {
        for (int64_t strip = begin; strip < end; ++strip)
          pack_strip<Op, kTransposed>(values, stride, k_, cols, strip, packed_);
      });
  }
  OperandB<Op> operand() const { return operand_b_of_strips<Op>(packed_, k_); }
};

// --- Products ------------------------------------------------------------------------------------

// Rows of values, `stride` apart, of which `readable` follow from the first on.
template <class T>
struct Matrix {
  T* data;
  int64_t stride, readable;
  T* row(int64_t i) const { return data + i * stride; }
};

template <class T>
Matrix<T> alloc_rows(Scratch& scratch, int64_t rows, int64_t cols) {
  rows = round_up(rows, kLanes);
  return {scratch.alloc<T>(rows * row_stride(cols)), row_stride(cols), rows};
}

// C[rows][cols] = A[rows][k] * B. `buffer` has room for A, packed.
template <class T, class Epilogue>
void product(int64_t rows, int64_t cols, int64_t k, const Matrix<T>& a, OperandB<MatmulOp<T>> b,
             typename MatmulOp<T>::Packed* buffer, const Epilogue& epilogue) {
  using Op = MatmulOp<T>;
  if (rows == 0) return;
  const KExtent<Op> extent(k);
  const MatmulScope<Op> scope(extent, extent);
  const T* data = a.data;
  matmul<Op>(rows, cols, extent, operand_a<Op>(data, a.stride, rows, a.readable, k, buffer), b,
             epilogue);
}

// Packed elements of `buffer` above.
template <class T>
int64_t product_buffer(int64_t rows, int64_t k) {
  return round_up(rows, kLanes) * round_up(KExtent<MatmulOp<T>>(k).packed, kLanes);
}

// An epilogue: f(row, col, x, n) gets every register of C, n columns from `col` on.
template <class F>
auto for_each_register(int64_t cols, F f) {
  return [=](int64_t row, int64_t col, auto& acc) {
    for (Vec& x : acc) {
      if (col + kLanes <= cols) f(row, col, x, std::integral_constant<int64_t, kLanes>{});
      else if (col < cols) f(row, col, x, cols - col);
      col += kLanes;
    }
  };
}

// --- Loops ---------------------------------------------------------------------------------------

// Calls make() in every thread, and its result once for every task 0..count-1. A thread that has
// finished a task takes the next one.
template <class Make>
void for_each_task(int64_t count, double task_ns, const Make& make) {
  std::atomic<int64_t> next{0};
  parallel_for(count, task_ns, [&](int64_t, int64_t) {
    const auto run = make();
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) run(i);
  });
}

// Calls f(row, col) for every head of a chunk's frames: the first token and column of its values.
template <class T, class F>
void for_each_head(const BlockSizes& s, const Chunk& chunk, const F& f) {
  const HeadScope<MatmulOp<T>> scope(s.tokens, s.dim());
  for (int64_t frame = 0; frame < chunk.frames; ++frame)
    for (int64_t head = 0; head < s.heads; ++head) f(frame * s.tokens, head * s.dim());
}

// Copies the rows' tokens from x, which has a row for each token of the chunk.
template <class T>
void select_rows(const Chunk& chunk, const Matrix<T>& x, int64_t cols, const Matrix<T>& out) {
  for (int64_t i = 0; i < chunk.rows; ++i)
    std::memcpy(out.row(i), x.row(chunk.token_in_chunk(i)), cols * sizeof(T));
}

// The LayerNorm of rows of x, whose addresses row_of(i) returns, in `out`. `buffer` has room for
// kGroupRows rows.
template <class X, class T, class RowOf>
void norm_rows(int64_t rows, int64_t cols, float eps, const float* weight, const float* bias,
               const RowOf& row_of, const Matrix<T>& out, float* buffer) {
  for_each_group(0, rows, [&](int64_t row, auto group) {
    constexpr int kRows = group;
    const X* x[kRows];
    for (int r = 0; r < kRows; ++r) x[r] = row_of(row + r);
    normalise<kRows>(
        cols, eps, buffer, row_stride(cols),
        [&](int r, int64_t c, auto n) { return load(x[r] + c, n); },
        [&](int64_t c, auto n, auto& z) {
          const Vec scale = load(weight + c), shift = load(bias + c);
          IVCL_UNROLL for (int r = 0; r < kRows; ++r)
            store(out.row(row + r) + c, z[r] * scale + shift, n);
        });
  });
}

}  // namespace ivcl
