// short_attention: attention of one head over one short sequence, all of it in cache.
//
// The maths is in kernels/short_attention.py. A head's q, k and v are read in place from packed qkv
// and packed once for the products that follow; scores and softmax never leave the core's own
// cache, and nothing is permuted in memory. Scores are stored as [key][query], so that the sums of
// a softmax never run across a register. Backward recomputes them.
// In bf16 with AVX-512, 7x to 23x as fast as PyTorch's SDPA and 1.7x to 3.4x as fast as an explicit
// softmax (12 to 160 tokens, forward and backward; docs/performance.md).
#include "matmul.h"
#include "op.h"
#include "pack.h"
#include "random.h"

namespace ivcl {
namespace {

struct Shape {
  int64_t frames, tokens, heads, dim;

  Shape(const Tensor& qkv, int64_t heads)
      : frames(qkv.size(0)), tokens(qkv.size(1)), heads(heads), dim(qkv.size(2) / (3 * heads)) {}

  int64_t sequences() const { return frames * heads; }
  int64_t width() const { return heads * dim; }
  int64_t padded_dim() const { return round_up(dim, kLanes); }
  // Tokens from the first of sequence i to the end of the tensor.
  int64_t readable_tokens(int64_t i) const { return (frames - i / heads) * tokens; }
  float scale() const { return 1 / std::sqrt(float(dim)); }
  double sequence_ns() const { return 300 + 0.03 * tokens * tokens * dim; }

  // Offset of sequence i, one head of one frame, in qkv (parts = 3) or in the output (parts = 1).
  int64_t offset(int64_t i, int parts) const {
    return (i / heads * tokens * parts * heads + i % heads) * dim;
  }
};

// A matrix m[key][query], such as the softmax's, stored to be the left operand of two products: m^T
// times a matrix (a sum over keys), and m times a matrix (a sum over queries). Where float32 is
// multiplied, one copy serves both.
template <class Op>
struct KeyQueryMatrix {
  using Value = std::conditional_t<Op::kPack == 2, bf16, float>;
  typename Op::Packed* key_pairs;  // [pair of keys][query], for the sum over keys
  Value* rows;                     // [key][query], for the sum over queries
  typename Op::Packed* buffer;     // [query][pair of keys], where AMX needs that
  KExtent<Op> keys;
  int64_t queries;

  // Stores the values of the keys 2 * pair and 2 * pair + 1 for a register of queries.
  template <bool kSumOverKeys, bool kSumOverQueries>
  void put(int64_t pair, int64_t query, Vec even, Vec odd) const {
    Value* dst = rows + 2 * pair * queries + query;
    if constexpr (Op::kPack == 2) {
      const VecU16 even_bits = to_bf16(even), odd_bits = to_bf16(odd);
      if constexpr (kSumOverKeys)
        storeu(key_pairs + pair * queries + query, Op::pack(even_bits, odd_bits));
      if constexpr (!kSumOverQueries) return;
      storeu(dst, even_bits);
      storeu(dst + queries, odd_bits);
    } else {
      store(dst, even);
      store(dst + queries, odd);
    }
  }

  OperandA<Op> sum_over_keys() const {
    if constexpr (Op::kPack == 2) return operand_a_transposed<Op>(key_pairs, keys, queries, buffer);
    else return {reinterpret_cast<const typename Op::Packed*>(rows), 1, queries};
  }
  OperandA<Op> sum_over_queries() const {
    const auto* packed = reinterpret_cast<const typename Op::Packed*>(rows);
    return {packed, queries / Op::kPack, 1};
  }
};

// The softmax's exponentials for a register of queries: 2^(score * scale - max), where max is the
// largest score of each query, scaled.
struct SoftmaxExp {
  float scale;
  Vec max_score;

  SoftmaxExp(const float* scores, int64_t tokens, int64_t queries, float scale)
      : scale(scale * kLog2e) {
    // Two maxima at a time; the last key of an odd number is compared twice.
    Vec even = load(scores), odd = even;
    for (int64_t key = 1; key < tokens; key += 2) {
      even = max(even, load(scores + key * queries));
      odd = max(odd, load(scores + (key + (key + 1 < tokens)) * queries));
    }
    max_score = max(even, odd) * this->scale;
  }
  template <class T>
  Vec of(const float* score) const {
    return exp2<(sizeof(T) == 4 ? 6 : 4)>(load(score) * scale - max_score);
  }
};

// Calls f(pair, has_odd) for every two keys; the last of an odd number comes alone.
template <class F>
inline void for_each_key_pair(int64_t tokens, const F& f) {
  for (int64_t pair = 0; pair < tokens / 2; ++pair) f(pair, std::true_type{});
  if (tokens % 2) f(tokens / 2, std::false_type{});
}

// Prefetches the rows of the next sequence: their stride hides the pattern from the hardware.
template <int kWrite, class T>
inline void prefetch(const T* x, int64_t stride, const Shape& s) {
  for (int64_t row = 0; row < s.tokens; ++row)
    for (int64_t col = 0; col < s.dim; col += 64 / sizeof(T))
      __builtin_prefetch(x + row * stride + col, kWrite, 2);
}

template <class T, bool kDrops>
void forward(const Tensor& qkv, Tensor& out, const Shape& s, const Dropout& dropout) {
  using Op = MatmulOp<T>;
  using Packed = typename Op::Packed;
  const KExtent<Op> k_dim(s.dim), k_tokens(s.tokens, true);
  const int64_t padded_tokens = round_up(s.tokens, kLanes), padded_dim = s.padded_dim();
  // The stride of scores: whole registers of queries, and all keys where queries are summed over.
  const int64_t queries = std::max(padded_tokens, round_up(k_tokens.packed * Op::kPack, kLanes));
  const int64_t qkv_stride = 3 * s.width();
  const T* qkv_data = const_data<T>(qkv);
  T* out_data = mutable_data<T>(out);

  parallel_for(s.sequences(), s.sequence_ns(), [&](int64_t begin, int64_t end) {
    const MatmulScope<Op> scope(k_dim, k_tokens);
    Scratch scratch;
    Packed* q_b = scratch.alloc<Packed>(k_dim.packed * queries);
    Packed* k_buffer = scratch.alloc<Packed>(padded_tokens * padded_dim);
    Packed* v_b = scratch.alloc<Packed>(k_tokens.packed * padded_dim);
    float* scores = scratch.alloc<float>(padded_tokens * queries);
    float* inverse_sum = scratch.alloc<float>(queries);
    Packed* key_pairs = scratch.alloc<Packed>(k_tokens.packed * queries);
    Packed* p_buffer = scratch.alloc<Packed>(queries * round_up(k_tokens.packed, kLanes));
    uint32_t* hashes = scratch.alloc<uint32_t>(kDrops ? s.tokens : 0);
    for (int64_t i = begin; i < end; ++i) {
      const T *q = qkv_data + s.offset(i, 3), *k = q + s.width(), *v = k + s.width();
      T* out_rows = out_data + s.offset(i, 1);
      if (i + 1 < end) {
        for (int part = 0; part < 3; ++part)
          prefetch<0>(qkv_data + s.offset(i + 1, 3) + part * s.width(), qkv_stride, s);
        prefetch<1>(out_data + s.offset(i + 1, 1), s.width(), s);
      }
      pack_b_transposed(q, qkv_stride, s.tokens, s.dim, q_b, queries);
      pack_b(v, qkv_stride, s.tokens, s.dim, v_b, padded_dim);
      const OperandA<Op> k_a =
          operand_a<Op>(k, qkv_stride, s.tokens, s.readable_tokens(i), s.dim, k_buffer);
      auto* in_place = reinterpret_cast<typename KeyQueryMatrix<Op>::Value*>(scores);
      const KeyQueryMatrix<Op> p{key_pairs, in_place, p_buffer, k_tokens, queries};
      matmul<Op>(s.tokens, queries, k_dim, k_a, {q_b, queries}, store_to(scores, queries, queries));
      if constexpr (kDrops) dropout.hash_keys(i, s.tokens, hashes);
      for (int64_t query = 0; query < queries; query += kLanes) {
        const SoftmaxExp exp(scores + query, s.tokens, queries, s.scale());
        Vec total{};
        for_each_key_pair(s.tokens, [&](int64_t pair, auto has_odd) {
          const float* at = scores + 2 * pair * queries + query;
          Vec even = exp.of<T>(at), odd = has_odd ? exp.of<T>(at + queries) : Vec{};
          total += even + odd;
          if constexpr (kDrops) {
            even = dropout.drop(even, hashes[2 * pair], query);
            if (has_odd) odd = dropout.drop(odd, hashes[2 * pair + 1], query);
          }
          p.template put<true, false>(pair, query, even, odd);
        });
        store(inverse_sum + query, dropout.scale / total);
      }
      matmul<Op>(s.tokens, s.dim, k_tokens, p.sum_over_keys(), {v_b, padded_dim},
                 [=, width = s.width(), dim = s.dim](int64_t query, int64_t col, auto& acc) {
                   for (Vec& vec : acc) vec *= inverse_sum[query];
                   store(out_rows + query * width + col, acc, dim - col);
                 });
    }
  });
}

template <class T, bool kDrops>
void backward(const Tensor& dout, const Tensor& qkv, Tensor& dqkv, const Shape& s,
              const Dropout& dropout) {
  using Op = MatmulOp<T>;
  using Packed = typename Op::Packed;
  const KExtent<Op> k_dim(s.dim), k_tokens(s.tokens, true);
  const int64_t padded_tokens = round_up(s.tokens, kLanes), padded_dim = s.padded_dim();
  const int64_t queries = std::max(padded_tokens, round_up(k_tokens.packed * Op::kPack, kLanes));
  const int64_t qkv_stride = 3 * s.width();
  const T *qkv_data = const_data<T>(qkv), *dout_data = const_data<T>(dout);
  T* dqkv_data = mutable_data<T>(dqkv);

  parallel_for(s.sequences(), 2.5 * s.sequence_ns(), [&](int64_t begin, int64_t end) {
    const MatmulScope<Op> scope(k_dim, k_tokens);
    Scratch scratch;
    Packed* q_b_transposed = scratch.alloc<Packed>(k_dim.packed * queries);
    Packed* dout_b_transposed = scratch.alloc<Packed>(k_dim.packed * queries);
    Packed* k_buffer = scratch.alloc<Packed>(padded_tokens * padded_dim);
    Packed* v_buffer = scratch.alloc<Packed>(padded_tokens * padded_dim);
    Packed* q_b = scratch.alloc<Packed>(k_tokens.packed * padded_dim);
    Packed* k_b = scratch.alloc<Packed>(k_tokens.packed * padded_dim);
    Packed* dout_b = scratch.alloc<Packed>(k_tokens.packed * padded_dim);
    float* p = scratch.alloc<float>(padded_tokens * queries);
    float* dp = scratch.alloc<float>(padded_tokens * queries);
    Packed* key_pairs = scratch.alloc<Packed>(k_tokens.packed * queries);
    Packed* ds_buffer = scratch.alloc<Packed>(queries * round_up(k_tokens.packed, kLanes));
    // As operands, bfloat16 values need memory of their own; float32 values are used in place.
    const auto operand_rows = [&](float* values) {
      using Value = typename KeyQueryMatrix<Op>::Value;
      if constexpr (Op::kPack == 2) return scratch.alloc<Value>(padded_tokens * queries);
      else return values;
    };
    auto *p_rows = operand_rows(p), *ds_rows = operand_rows(dp);
    uint32_t* hashes = scratch.alloc<uint32_t>(kDrops ? s.tokens : 0);
    for (int64_t i = begin; i < end; ++i) {
      const T *q = qkv_data + s.offset(i, 3), *k = q + s.width(), *v = k + s.width();
      const T* dout_rows = dout_data + s.offset(i, 1);
      T *dq = dqkv_data + s.offset(i, 3), *dk = dq + s.width(), *dv = dk + s.width();
      if (i + 1 < end) {
        const T* next = qkv_data + s.offset(i + 1, 3);
        T* next_grad = dqkv_data + s.offset(i + 1, 3);
        for (int part = 0; part < 3; ++part) {
          prefetch<0>(next + part * s.width(), qkv_stride, s);
          prefetch<1>(next_grad + part * s.width(), qkv_stride, s);
        }
        prefetch<0>(dout_data + s.offset(i + 1, 1), s.width(), s);
      }
      pack_b_transposed(q, qkv_stride, s.tokens, s.dim, q_b_transposed, queries);
      pack_b_transposed(dout_rows, s.width(), s.tokens, s.dim, dout_b_transposed, queries);
      pack_b(q, qkv_stride, s.tokens, s.dim, q_b, padded_dim);
      pack_b(k, qkv_stride, s.tokens, s.dim, k_b, padded_dim);
      pack_b(dout_rows, s.width(), s.tokens, s.dim, dout_b, padded_dim);
      const int64_t readable = s.readable_tokens(i);
      const OperandA<Op> k_a = operand_a<Op>(k, qkv_stride, s.tokens, readable, s.dim, k_buffer);
      const OperandA<Op> v_a = operand_a<Op>(v, qkv_stride, s.tokens, readable, s.dim, v_buffer);
      const KeyQueryMatrix<Op> p_matrix{nullptr, p_rows, nullptr, k_tokens, queries};
      const KeyQueryMatrix<Op> ds_matrix{key_pairs, ds_rows, ds_buffer, k_tokens, queries};
      matmul<Op>(s.tokens, queries, k_dim, k_a, {q_b_transposed, queries},
                 store_to(p, queries, queries));
      matmul<Op>(s.tokens, queries, k_dim, v_a, {dout_b_transposed, queries},
                 store_to(dp, queries, queries));
      if constexpr (kDrops) dropout.hash_keys(i, s.tokens, hashes);
      for (int64_t query = 0; query < queries; query += kLanes) {
        const SoftmaxExp exp(p + query, s.tokens, queries, s.scale());
        Vec total{}, p_dp{};  // sums over keys of the exponentials, and of their products with dP
        for (int64_t key = 0; key < s.tokens; ++key) {
          const int64_t at = key * queries + query;
          const Vec value = exp.of<T>(p + at);
          Vec grad = load(dp + at);
          if constexpr (kDrops) {
            grad = dropout.drop(grad * dropout.scale, hashes[key], query);
            store(dp + at, grad);
          }
          store(p + at, value);
          total += value;
          p_dp += value * grad;
        }
        const Vec inverse = 1.0f / total;
        p_dp *= inverse;
        const Vec inverse_scaled = inverse * s.scale(), inverse_kept = inverse * dropout.scale;
        const auto ds = [&](int64_t at) {
          return load(p + at) * inverse_scaled * (load(dp + at) - p_dp);
        };
        for_each_key_pair(s.tokens, [&](int64_t pair, auto has_odd) {
          const int64_t at = 2 * pair * queries + query, next = at + queries;
          Vec even = load(p + at) * inverse_kept;
          Vec odd = has_odd ? load(p + next) * inverse_kept : Vec{};
          if constexpr (kDrops) {
            even = dropout.drop(even, hashes[2 * pair], query);
            if (has_odd) odd = dropout.drop(odd, hashes[2 * pair + 1], query);
          }
          ds_matrix.template put<true, true>(pair, query, ds(at), has_odd ? ds(next) : Vec{});
          p_matrix.template put<false, true>(pair, query, even, odd);
        });
      }
      matmul<Op>(s.tokens, s.dim, k_tokens, ds_matrix.sum_over_keys(), {k_b, padded_dim},
                 store_to(dq, qkv_stride, s.dim));
      matmul<Op>(s.tokens, s.dim, k_tokens, ds_matrix.sum_over_queries(), {q_b, padded_dim},
                 store_to(dk, qkv_stride, s.dim));
      matmul<Op>(s.tokens, s.dim, k_tokens, p_matrix.sum_over_queries(), {dout_b, padded_dim},
                 store_to(dv, qkv_stride, s.dim));
    }
  });
}

constexpr int64_t kMaxTokens = 4096;  // a core's buffers grow with their square

void check_qkv(const Tensor& qkv, int64_t heads) {
  check_float("qkv", qkv, {kAny, kAny, kAny});
  const int64_t width = qkv.size(2);
  if (heads < 1 || heads > width / 3 || width % (3 * heads))
    fail("num_heads: ", heads, " does not divide qkv's width ", width, " in 3 parts");
  if (qkv.size(1) > kMaxTokens) fail("qkv: more than ", kMaxTokens, " tokens: ", qkv.size(1));
}

// Calls f with a value of qkv's C++ type and with whether something is dropped.
template <class F>
void dispatch(const Tensor& qkv, const Dropout& dropout, const F& f) {
  dispatch_float(qkv.scalar_type(), [&](auto t) {
    if (dropout.steps) f(t, std::true_type{});
    else f(t, std::false_type{});
  });
}

Tensor short_attention(const Tensor& qkv_in, int64_t heads, double probability,
                       const std::optional<Tensor>& seed) {
  check_qkv(qkv_in, heads);
  const Dropout dropout(probability, seed);
  const Tensor qkv = as_contiguous(qkv_in);
  const Shape s(qkv, heads);
  Tensor out = empty_tensor({s.frames, s.tokens, s.width()}, qkv.scalar_type());
  if (out.numel() == 0) return out;
  dispatch(qkv, dropout, [&](auto t, auto drops) {
    forward<decltype(t), drops>(qkv, out, s, dropout);
  });
  return out;
}

Tensor short_attention_backward(const Tensor& dout_in, const Tensor& qkv_in, int64_t heads,
                                double probability, const std::optional<Tensor>& seed) {
  check_qkv(qkv_in, heads);
  const Dropout dropout(probability, seed);
  check_dtype("dout", dout_in, qkv_in.scalar_type());
  check_shape("dout", dout_in, {qkv_in.size(0), qkv_in.size(1), qkv_in.size(2) / 3});
  const Tensor qkv = as_contiguous(qkv_in), dout = as_contiguous(dout_in);
  Tensor dqkv = empty_tensor_like(qkv);
  if (dqkv.numel() == 0) return dqkv;
  dispatch(qkv, dropout, [&](auto t, auto drops) {
    backward<decltype(t), drops>(dout, qkv, dqkv, Shape(qkv, heads), dropout);
  });
  return dqkv;
}

IVCL_OP(short_attention)
IVCL_OP(short_attention_backward)

}  // namespace
}  // namespace ivcl
