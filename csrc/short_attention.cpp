// short_attention: attention of one head over one short sequence, all of it in cache.
//
// Maths as in kernels/short_attention.py. A head's q, k and v are read in place from packed qkv and
// laid out once for the products that follow; scores and softmax never leave the core's own cache,
// and nothing is permuted in memory. Scores are kept as [key][query], so that no sum of a softmax
// runs across a register. Backward computes them again.
#include "matmul.h"
#include "op.h"

namespace ivcl {
namespace {

constexpr float kLog2e = 1.44269504f;

struct Shape {
  int64_t frames, tokens, heads, dim;

  Shape(const Tensor& qkv, int64_t heads)
      : frames(qkv.size(0)), tokens(qkv.size(1)), heads(heads), dim(qkv.size(2) / (3 * heads)) {}

  int64_t sequences() const { return frames * heads; }
  int64_t width() const { return heads * dim; }
  int64_t wide_tokens() const { return round_up(tokens, kLanes); }
  int64_t wide_dim() const { return round_up(dim, kLanes); }
  float scale() const { return 1 / std::sqrt(float(dim)); }
  double cost() const { return 300 + 0.03 * tokens * tokens * dim; }

  // Where sequence i, one head of one frame, starts in qkv (parts = 3) or in the output (1).
  int64_t start(int64_t i, int parts) const {
    return (i / heads * tokens * parts * heads + i % heads) * dim;
  }
};

// Writes weights[key][query] as the left factor of two products: at `rows` for a sum over queries,
// at `joined` for a sum over keys. Either may be null; for float32 both are the weights themselves.
template <class Op, class T>
struct Factors {
  typename Op::Unit* joined;
  T* rows;
  int64_t queries;

  // The weights of two neighbouring keys for a register of queries.
  void put(int64_t key, int64_t query, Vec first, Vec second) const {
    if constexpr (Op::kGroup == 2) {
      const Halves low = narrow(first), high = narrow(second);
      if (joined) write(joined + key / 2 * queries + query, join(low, high));
      if (!rows) return;
      write(rows + key * queries + query, low);
      write(rows + (key + 1) * queries + query, high);
    } else {
      store(rows + key * queries + query, first);
      store(rows + (key + 1) * queries + query, second);
    }
  }

  A<Op> over_keys() const {
    if constexpr (Op::kGroup == 2) return {joined, 1, queries};
    else return {reinterpret_cast<const typename Op::Unit*>(rows), 1, queries};
  }
  A<Op> over_queries() const {
    const auto* units = reinterpret_cast<const typename Op::Unit*>(rows);
    return {units, queries / Op::kGroup, 1};
  }
};

// What the scores of a query must be multiplied with and lessened by before exp2.
struct Shift {
  float scale;
  Vec most;

  Shift(const float* scores, int64_t tokens, int64_t queries, float scale) : scale(scale * kLog2e) {
    most = load(scores);
    for (int64_t key = 1; key < tokens; ++key) most = max(most, load(scores + key * queries));
    most *= this->scale;
  }
  template <class T>
  Vec weight(const float* score) const {
    return exp2<(sizeof(T) == 4 ? 6 : 4)>(load(score) * scale - most);
  }
};

// Asks for the rows of a sequence to be worked on soon: what lies between two of them hides the
// pattern from the hardware.
template <int kWrite, class T>
inline void prefetch(const T* x, int64_t distance, const Shape& s) {
  for (int64_t row = 0; row < s.tokens; ++row)
    for (int64_t col = 0; col < s.dim; col += 64 / sizeof(T))
      __builtin_prefetch(x + row * distance + col, kWrite, 2);
}

template <class T>
void forward(const Tensor& qkv, Tensor& out_tensor, const Shape& s) {
  using Op = typename Operand<T>::type;
  using Unit = typename Op::Unit;
  const int64_t wide = s.wide_tokens(), wide_dim = s.wide_dim(), stride = 3 * s.width();
  const int64_t deep = units<Op>(s.dim), half = units<Op>(s.tokens);
  const T* qkv_start = in<T>(qkv);
  T* out_start = out<T>(out_tensor);

  parallel(s.sequences(), s.cost(), [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Unit* across_q = scratch.take<Unit>(deep * wide);
    Unit* rows_k = scratch.take<Unit>(s.tokens * wide_dim);
    Unit* down_v = scratch.take<Unit>(half * wide_dim);
    float* scores = scratch.take<float>((s.tokens + 1) * wide);
    float* inverse = scratch.take<float>(wide);
    Unit* joined = scratch.take<Unit>(half * wide);
    for (int64_t i = begin; i < end; ++i) {
      const T *q = qkv_start + s.start(i, 3), *k = q + s.width(), *v = k + s.width();
      T* result = out_start + s.start(i, 1);
      if (i + 1 < end) {
        for (int part = 0; part < 3; ++part)
          prefetch<0>(qkv_start + s.start(i + 1, 3) + part * s.width(), stride, s);
        prefetch<1>(out_start + s.start(i + 1, 1), s.width(), s);
      }
      pack_across(q, stride, s.tokens, s.dim, across_q, wide);
      pack_down(v, stride, s.tokens, s.dim, down_v, wide_dim);
      const A<Op> keys = rows_of<Op>(k, stride, s.tokens, s.dim, rows_k);
      T* rows = Op::kGroup == 2 ? nullptr : reinterpret_cast<T*>(scores);
      const Factors<Op, T> weights{joined, rows, wide};
      matmul<Op>(s.tokens, wide, deep, keys, {across_q, wide},
                 [&](int64_t key, int64_t query, Vec x) { store(scores + key * wide + query, x); });
      for (int64_t query = 0; query < wide; query += kLanes) {
        const Shift shift(scores + query, s.tokens, wide, s.scale());
        Vec total{};
        for (int64_t key = 0; key < s.tokens; key += 2) {
          const float* at = scores + key * wide + query;
          const Vec one = shift.weight<T>(at);
          const Vec two = key + 1 < s.tokens ? shift.weight<T>(at + wide) : Vec{};
          total += one + two;
          weights.put(key, query, one, two);
        }
        store(inverse + query, 1.0f / total);
      }
      matmul<Op>(s.tokens, s.dim, half, weights.over_keys(), {down_v, wide_dim},
                 [&](int64_t query, int64_t col, Vec x) {
                   store(result + query * s.width() + col, x * inverse[query], s.dim - col);
                 });
    }
  });
}

template <class T>
void backward(const Tensor& dout, const Tensor& qkv, Tensor& dqkv, const Shape& s) {
  using Op = typename Operand<T>::type;
  using Unit = typename Op::Unit;
  const int64_t wide = s.wide_tokens(), wide_dim = s.wide_dim(), stride = 3 * s.width();
  const int64_t deep = units<Op>(s.dim), half = units<Op>(s.tokens);
  const T *qkv_start = in<T>(qkv), *dout_start = in<T>(dout);
  T* dqkv_start = out<T>(dqkv);

  parallel(s.sequences(), 2.5 * s.cost(), [&](int64_t begin, int64_t end) {
    Scratch scratch;
    Unit* across_q = scratch.take<Unit>(deep * wide);
    Unit* across_dout = scratch.take<Unit>(deep * wide);
    Unit* rows_k = scratch.take<Unit>(s.tokens * wide_dim);
    Unit* rows_v = scratch.take<Unit>(s.tokens * wide_dim);
    Unit* down_q = scratch.take<Unit>(half * wide_dim);
    Unit* down_k = scratch.take<Unit>(half * wide_dim);
    Unit* down_dout = scratch.take<Unit>(half * wide_dim);
    float* p = scratch.take<float>((s.tokens + 1) * wide);
    float* dp = scratch.take<float>((s.tokens + 1) * wide);
    Unit* joined = scratch.take<Unit>(half * wide);
    // bfloat16 has its factors beside the float32 values they are made of, float32 in their place.
    const bool beside = Op::kGroup == 2;
    T* p_rows = beside ? scratch.take<T>((s.tokens + 1) * wide) : reinterpret_cast<T*>(p);
    T* ds_rows = beside ? scratch.take<T>((s.tokens + 1) * wide) : reinterpret_cast<T*>(dp);
    for (int64_t i = begin; i < end; ++i) {
      const T *q = qkv_start + s.start(i, 3), *k = q + s.width(), *v = k + s.width();
      const T* dout_rows = dout_start + s.start(i, 1);
      T *dq = dqkv_start + s.start(i, 3), *dk = dq + s.width(), *dv = dk + s.width();
      if (i + 1 < end) {
        const T* next = qkv_start + s.start(i + 1, 3);
        T* next_grad = dqkv_start + s.start(i + 1, 3);
        for (int part = 0; part < 3; ++part) {
          prefetch<0>(next + part * s.width(), stride, s);
          prefetch<1>(next_grad + part * s.width(), stride, s);
        }
        prefetch<0>(dout_start + s.start(i + 1, 1), s.width(), s);
      }
      pack_across(q, stride, s.tokens, s.dim, across_q, wide);
      pack_across(dout_rows, s.width(), s.tokens, s.dim, across_dout, wide);
      pack_down(q, stride, s.tokens, s.dim, down_q, wide_dim);
      pack_down(k, stride, s.tokens, s.dim, down_k, wide_dim);
      pack_down(dout_rows, s.width(), s.tokens, s.dim, down_dout, wide_dim);
      const A<Op> keys = rows_of<Op>(k, stride, s.tokens, s.dim, rows_k);
      const A<Op> values = rows_of<Op>(v, stride, s.tokens, s.dim, rows_v);
      const Factors<Op, T> weights{nullptr, p_rows, wide}, ds{joined, ds_rows, wide};
      const auto to = [wide](float* rows) {
        return [=](int64_t key, int64_t query, Vec x) { store(rows + key * wide + query, x); };
      };
      matmul<Op>(s.tokens, wide, deep, keys, {across_q, wide}, to(p));
      matmul<Op>(s.tokens, wide, deep, values, {across_dout, wide}, to(dp));
      for (int64_t query = 0; query < wide; query += kLanes) {
        const Shift shift(p + query, s.tokens, wide, s.scale());
        Vec total{}, along{};  // sums over keys of exp2 and of exp2 * dP
        for (int64_t at = query; at < s.tokens * wide; at += wide) {
          const Vec weight = shift.weight<T>(p + at);
          store(p + at, weight);
          total += weight;
          along += weight * load(dp + at);
        }
        const Vec inverse = 1.0f / total;
        along *= inverse;
        const auto weight = [&](int64_t at) { return load(p + at) * inverse; };
        const auto grad = [&](int64_t at, Vec weight) {
          return weight * (load(dp + at) - along) * s.scale();
        };
        for (int64_t key = 0; key < s.tokens; key += 2) {
          const int64_t at = key * wide + query, next = at + wide;
          const bool both = key + 1 < s.tokens;
          const Vec one = weight(at), two = both ? weight(next) : Vec{};
          ds.put(key, query, grad(at, one), both ? grad(next, two) : Vec{});
          weights.put(key, query, one, two);
        }
      }
      const auto gradient = [&](T* rows) {
        return [&, rows](int64_t row, int64_t col, Vec x) {
          store(rows + row * stride + col, x, s.dim - col);
        };
      };
      matmul<Op>(s.tokens, s.dim, half, ds.over_keys(), {down_k, wide_dim}, gradient(dq));
      matmul<Op>(s.tokens, s.dim, half, ds.over_queries(), {down_q, wide_dim}, gradient(dk));
      matmul<Op>(s.tokens, s.dim, half, weights.over_queries(), {down_dout, wide_dim},
                 gradient(dv));
    }
  });
}

Tensor short_attention(const Tensor& qkv, int64_t heads) {
  const Tensor whole = dense(qkv);
  const Shape s(whole, heads);
  Tensor result = make({s.frames, s.tokens, s.width()}, whole.scalar_type());
  with_float(whole.scalar_type(), [&](auto t) { forward<decltype(t)>(whole, result, s); });
  return result;
}

Tensor short_attention_backward(const Tensor& dout, const Tensor& qkv, int64_t heads) {
  const Tensor whole = dense(qkv), whole_dout = dense(dout);
  Tensor result = make_like(whole);
  with_float(whole.scalar_type(), [&](auto t) {
    backward<decltype(t)>(whole_dout, whole, result, Shape(whole, heads));
  });
  return result;
}

IVCL_OP(short_attention)
IVCL_OP(short_attention_backward)

}  // namespace
}  // namespace ivcl
