// short_attention: attention of one head over one short sequence, all of it in cache.
//
// Maths as in kernels/short_attention.py. A head's q, k and v are read in place from packed qkv and
// laid out once for the products that follow; scores and softmax never leave the core's own cache,
// and nothing is permuted in memory. Scores are kept as [key][query], so that no sum of a softmax
// runs across a register. Backward computes them again.
// Beats PyTorch's SDPA 7x to 23x and a softmax written out 1.7x to 3.4x (12 to 160 tokens, bf16,
// forward and backward, AVX-512; docs/performance.md).
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
  int64_t wide_dim() const { return round_up(dim, kLanes); }
  // Tokens from the first of sequence i to the last there is.
  int64_t behind(int64_t i) const { return (frames - i / heads) * tokens; }
  float scale() const { return 1 / std::sqrt(float(dim)); }
  double cost() const { return 300 + 0.03 * tokens * tokens * dim; }

  // Where sequence i, one head of one frame, starts in qkv (parts = 3) or in the output (1).
  int64_t start(int64_t i, int parts) const {
    return (i / heads * tokens * parts * heads + i % heads) * dim;
  }
};

// weights[key][query] as the left factor of two products: a sum over keys, and one over queries.
// Where float32 is multiplied the same numbers serve both.
template <class Op>
struct Factors {
  using Value = std::conditional_t<Op::kGroup == 2, bf16, float>;
  typename Op::Unit* by_pairs;  // [pair of keys][query]
  Value* by_rows;               // [key][query]
  typename Op::Unit* turned;    // [query][pair of keys], where it is wanted so
  Depth<Op> keys;
  int64_t queries;

  // The weights of the keys 2 * pair and 2 * pair + 1 for a register of queries.
  template <bool kOverKeys, bool kOverQueries>
  void put(int64_t pair, int64_t query, Vec first, Vec second) const {
    Value* at = by_rows + 2 * pair * queries + query;
    if constexpr (Op::kGroup == 2) {
      const Halves low = narrow(first), high = narrow(second);
      if constexpr (kOverKeys) write(by_pairs + pair * queries + query, Op::of(low, high));
      if constexpr (!kOverQueries) return;
      write(at, low);
      write(at + queries, high);
    } else {
      store(at, first);
      store(at + queries, second);
    }
  }

  A<Op> over_keys() const {
    if constexpr (Op::kGroup == 2) return columns_of<Op>(by_pairs, keys, queries, turned);
    else return {reinterpret_cast<const typename Op::Unit*>(by_rows), 1, queries};
  }
  A<Op> over_queries() const {
    const auto* units = reinterpret_cast<const typename Op::Unit*>(by_rows);
    return {units, queries / Op::kGroup, 1};
  }
};

// What the scores of a query must be multiplied with and lessened by before exp2.
struct Shift {
  float scale;
  Vec most;

  Shift(const float* scores, int64_t tokens, int64_t queries, float scale) : scale(scale * kLog2e) {
    // The keys two by two; what is behind the last of an odd number is its equal here.
    Vec even = load(scores), odd = even;
    for (int64_t key = 1; key < tokens; key += 2) {
      even = max(even, load(scores + key * queries));
      odd = max(odd, load(scores + (key + (key + 1 < tokens)) * queries));
    }
    most = max(even, odd) * this->scale;
  }
  template <class T>
  Vec weight(const float* score) const {
    return exp2<(sizeof(T) == 4 ? 6 : 4)>(load(score) * scale - most);
  }
};

// f(pair, key, both?) for every two keys; the last of an odd number comes alone.
template <class F>
inline void key_pairs(int64_t tokens, const F& f) {
  for (int64_t pair = 0; pair < tokens / 2; ++pair) f(pair, std::true_type{});
  if (tokens % 2) f(tokens / 2, std::false_type{});
}

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
  const Depth<Op> over_dim(s.dim), over_tokens(s.tokens, true);
  const int64_t rows = round_up(s.tokens, kLanes), wide_dim = s.wide_dim(), stride = 3 * s.width();
  const int64_t wide = std::max(rows, round_up(over_tokens.units * Op::kGroup, kLanes));
  const T* qkv_start = in<T>(qkv);
  T* out_start = out<T>(out_tensor);

  parallel(s.sequences(), s.cost(), [&](int64_t begin, int64_t end) {
    const Products<Op> products(over_dim, over_tokens);
    Scratch scratch;
    Unit* across_q = scratch.take<Unit>(over_dim.units * wide);
    Unit* rows_k = scratch.take<Unit>(rows * wide_dim);
    Unit* down_v = scratch.take<Unit>(over_tokens.units * wide_dim);
    float* scores = scratch.take<float>(rows * wide);
    float* inverse = scratch.take<float>(wide);
    Unit* pairs = scratch.take<Unit>(over_tokens.units * wide);
    Unit* turned = scratch.take<Unit>(wide * round_up(over_tokens.units, kLanes));
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
      const A<Op> keys = rows_of<Op>(k, stride, s.tokens, s.behind(i), s.dim, rows_k);
      auto* in_place = reinterpret_cast<typename Factors<Op>::Value*>(scores);
      const Factors<Op> weights{pairs, in_place, turned, over_tokens, wide};
      matmul<Op>(s.tokens, wide, over_dim, keys, {across_q, wide},
                 [=](int64_t key, int64_t query, auto& x) {
                   store(scores + key * wide + query, x, wide - query);
                 });
      for (int64_t query = 0; query < wide; query += kLanes) {
        const Shift shift(scores + query, s.tokens, wide, s.scale());
        Vec total{};
        key_pairs(s.tokens, [&](int64_t pair, auto both) {
          const float* at = scores + 2 * pair * wide + query;
          const Vec one = shift.weight<T>(at), two = both ? shift.weight<T>(at + wide) : Vec{};
          total += one + two;
          weights.template put<true, false>(pair, query, one, two);
        });
        store(inverse + query, 1.0f / total);
      }
      matmul<Op>(s.tokens, s.dim, over_tokens, weights.over_keys(), {down_v, wide_dim},
                 [=, width = s.width(), dim = s.dim](int64_t query, int64_t col, auto& x) {
                   for (Vec& some : x) some *= inverse[query];
                   store(result + query * width + col, x, dim - col);
                 });
    }
  });
}

template <class T>
void backward(const Tensor& dout, const Tensor& qkv, Tensor& dqkv, const Shape& s) {
  using Op = typename Operand<T>::type;
  using Unit = typename Op::Unit;
  const Depth<Op> over_dim(s.dim), over_tokens(s.tokens, true);
  const int64_t rows = round_up(s.tokens, kLanes), wide_dim = s.wide_dim(), stride = 3 * s.width();
  const int64_t wide = std::max(rows, round_up(over_tokens.units * Op::kGroup, kLanes));
  const T *qkv_start = in<T>(qkv), *dout_start = in<T>(dout);
  T* dqkv_start = out<T>(dqkv);

  parallel(s.sequences(), 2.5 * s.cost(), [&](int64_t begin, int64_t end) {
    const Products<Op> products(over_dim, over_tokens);
    Scratch scratch;
    Unit* across_q = scratch.take<Unit>(over_dim.units * wide);
    Unit* across_dout = scratch.take<Unit>(over_dim.units * wide);
    Unit* rows_k = scratch.take<Unit>(rows * wide_dim);
    Unit* rows_v = scratch.take<Unit>(rows * wide_dim);
    Unit* down_q = scratch.take<Unit>(over_tokens.units * wide_dim);
    Unit* down_k = scratch.take<Unit>(over_tokens.units * wide_dim);
    Unit* down_dout = scratch.take<Unit>(over_tokens.units * wide_dim);
    float* p = scratch.take<float>(rows * wide);
    float* dp = scratch.take<float>(rows * wide);
    Unit* pairs = scratch.take<Unit>(over_tokens.units * wide);
    Unit* turned = scratch.take<Unit>(wide * round_up(over_tokens.units, kLanes));
    // Factors in bfloat16 lie beside the float32 values they are made of, others in their place.
    const auto factors = [&](float* values) {
      using Value = typename Factors<Op>::Value;
      if constexpr (Op::kGroup == 2) return scratch.take<Value>(rows * wide);
      else return values;
    };
    auto *p_rows = factors(p), *ds_rows = factors(dp);
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
      const A<Op> keys = rows_of<Op>(k, stride, s.tokens, s.behind(i), s.dim, rows_k);
      const A<Op> values = rows_of<Op>(v, stride, s.tokens, s.behind(i), s.dim, rows_v);
      const Factors<Op> weights{nullptr, p_rows, nullptr, over_tokens, wide};
      const Factors<Op> ds{pairs, ds_rows, turned, over_tokens, wide};
      const auto to = [wide](float* rows) {
        return [=](int64_t key, int64_t query, auto& x) {
          store(rows + key * wide + query, x, wide - query);
        };
      };
      matmul<Op>(s.tokens, wide, over_dim, keys, {across_q, wide}, to(p));
      matmul<Op>(s.tokens, wide, over_dim, values, {across_dout, wide}, to(dp));
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
        const Vec inverse_scaled = inverse * s.scale();
        const auto grad = [&](int64_t at) {
          return load(p + at) * inverse_scaled * (load(dp + at) - along);
        };
        key_pairs(s.tokens, [&](int64_t pair, auto both) {
          const int64_t at = 2 * pair * wide + query, next = at + wide;
          const Vec one = load(p + at) * inverse, two = both ? load(p + next) * inverse : Vec{};
          ds.template put<true, true>(pair, query, grad(at), both ? grad(next) : Vec{});
          weights.template put<false, true>(pair, query, one, two);
        });
      }
      const auto gradient = [stride, dim = s.dim](T* rows) {
        return [=](int64_t row, int64_t col, auto& x) {
          store(rows + row * stride + col, x, dim - col);
        };
      };
      matmul<Op>(s.tokens, s.dim, over_tokens, ds.over_keys(), {down_k, wide_dim}, gradient(dq));
      matmul<Op>(s.tokens, s.dim, over_tokens, ds.over_queries(), {down_q, wide_dim}, gradient(dk));
      matmul<Op>(s.tokens, s.dim, over_tokens, weights.over_queries(), {down_dout, wide_dim},
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
