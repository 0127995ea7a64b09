// Attention of one head over one short sequence, all of it in cache, and its gradients.
//
// A head's q, k and v are read in place from packed qkv and packed once for the products that
// follow; scores and softmax never leave the core's own cache. Scores are stored as [key][query],
// so that the sums of a softmax never run across a register. Backward recomputes them.
#pragma once

#include "matmul.h"
#include "op.h"
#include "pack.h"
#include "random.h"

namespace ivcl {

constexpr int64_t kMaxHeadTokens = 4096;  // a core's buffers grow with their square

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

// The extents of a head, and of the products over them.
template <class Op>
struct HeadExtents {
  int64_t tokens, dim;
  KExtent<Op> k_dim{dim}, k_tokens{tokens, true};
  int64_t padded_tokens = round_up(tokens, kLanes), padded_dim = round_up(dim, kLanes);
  // The stride of scores: whole registers of queries, and all keys where queries are summed over.
  int64_t queries = std::max(padded_tokens, round_up(k_tokens.packed * Op::kPack, kLanes));
  float scale = 1 / std::sqrt(float(dim));
};

// Exists while a thread computes heads of this size.
template <class Op>
struct HeadScope : MatmulScope<Op> {
  HeadScope(int64_t tokens, int64_t dim)
      : MatmulScope<Op>(KExtent<Op>(dim), KExtent<Op>(tokens, true)) {}
};

// Sequence `index` of all heads and frames, whose q, k and v have rows `stride` apart, of which
// `readable` follow from the first on.
template <class T>
struct Head {
  const T *q, *k, *v;
  int64_t stride, readable, index;
};

// Computes heads of one size, with a thread's buffers.
template <class T, bool kDrops>
class HeadForward {
  using Op = MatmulOp<T>;
  using Packed = typename Op::Packed;
  const HeadExtents<Op> e;
  const Dropout& dropout;
  Packed *q_b, *k_buffer, *v_b, *key_pairs, *p_buffer;
  float *scores, *inverse_sum;
  uint32_t* hashes;

 public:
  HeadForward(int64_t tokens, int64_t dim, const Dropout& dropout, Scratch& scratch)
      : e{tokens, dim}, dropout(dropout) {
    q_b = scratch.alloc<Packed>(e.k_dim.packed * e.queries);
    k_buffer = scratch.alloc<Packed>(e.padded_tokens * e.padded_dim);
    v_b = scratch.alloc<Packed>(e.k_tokens.packed * e.padded_dim);
    scores = scratch.alloc<float>(e.padded_tokens * e.queries);
    inverse_sum = scratch.alloc<float>(e.queries);
    key_pairs = scratch.alloc<Packed>(e.k_tokens.packed * e.queries);
    p_buffer = scratch.alloc<Packed>(e.queries * round_up(e.k_tokens.packed, kLanes));
    hashes = scratch.alloc<uint32_t>(kDrops ? tokens : 0);
  }

  // Writes the rows of `out`, which are `out_stride` apart.
  void operator()(const Head<T>& head, T* out, int64_t out_stride) const {
    const int64_t queries = e.queries;
    pack_b_transposed(head.q, head.stride, e.tokens, e.dim, q_b, queries);
    pack_b(head.v, head.stride, e.tokens, e.dim, v_b, e.padded_dim);
    const OperandA<Op> k_a =
        operand_a<Op>(head.k, head.stride, e.tokens, head.readable, e.dim, k_buffer);
    auto* in_place = reinterpret_cast<typename KeyQueryMatrix<Op>::Value*>(scores);
    const KeyQueryMatrix<Op> p{key_pairs, in_place, p_buffer, e.k_tokens, queries};
    matmul<Op>(e.tokens, queries, e.k_dim, k_a, {q_b, queries}, store_to(scores, queries, queries));
    if constexpr (kDrops) dropout.hash_keys(head.index, e.tokens, hashes);
    for (int64_t query = 0; query < queries; query += kLanes) {
      const SoftmaxExp exp(scores + query, e.tokens, queries, e.scale);
      Vec total{};
      for_each_key_pair(e.tokens, [&](int64_t pair, auto has_odd) {
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
    matmul<Op>(e.tokens, e.dim, e.k_tokens, p.sum_over_keys(), {v_b, e.padded_dim},
               [=, dim = e.dim, inverse_sum = inverse_sum](int64_t query, int64_t col, auto& acc) {
                 for (Vec& vec : acc) vec *= inverse_sum[query];
                 store(out + query * out_stride + col, acc, dim - col);
               });
  }
};

// Computes the gradients of heads of one size, with a thread's buffers.
template <class T, bool kDrops>
class HeadBackward {
  using Op = MatmulOp<T>;
  using Packed = typename Op::Packed;
  using Value = typename KeyQueryMatrix<Op>::Value;
  const HeadExtents<Op> e;
  const Dropout& dropout;
  Packed *q_b_transposed, *dout_b_transposed, *k_buffer, *v_buffer, *q_b, *k_b, *dout_b;
  Packed *key_pairs, *ds_buffer;
  float *p, *dp;
  Value *p_rows, *ds_rows;
  uint32_t* hashes;

 public:
  HeadBackward(int64_t tokens, int64_t dim, const Dropout& dropout, Scratch& scratch)
      : e{tokens, dim}, dropout(dropout) {
    q_b_transposed = scratch.alloc<Packed>(e.k_dim.packed * e.queries);
    dout_b_transposed = scratch.alloc<Packed>(e.k_dim.packed * e.queries);
    k_buffer = scratch.alloc<Packed>(e.padded_tokens * e.padded_dim);
    v_buffer = scratch.alloc<Packed>(e.padded_tokens * e.padded_dim);
    q_b = scratch.alloc<Packed>(e.k_tokens.packed * e.padded_dim);
    k_b = scratch.alloc<Packed>(e.k_tokens.packed * e.padded_dim);
    dout_b = scratch.alloc<Packed>(e.k_tokens.packed * e.padded_dim);
    p = scratch.alloc<float>(e.padded_tokens * e.queries);
    dp = scratch.alloc<float>(e.padded_tokens * e.queries);
    key_pairs = scratch.alloc<Packed>(e.k_tokens.packed * e.queries);
    ds_buffer = scratch.alloc<Packed>(e.queries * round_up(e.k_tokens.packed, kLanes));
    // As operands, bfloat16 values need memory of their own; float32 values are used in place.
    const auto operand_rows = [&](float* values) {
      if constexpr (Op::kPack == 2) return scratch.alloc<Value>(e.padded_tokens * e.queries);
      else return values;
    };
    p_rows = operand_rows(p);
    ds_rows = operand_rows(dp);
    hashes = scratch.alloc<uint32_t>(kDrops ? tokens : 0);
  }

  // `dout` has rows `dout_stride` apart, and the gradients of q, k and v rows `grad_stride` apart.
  void operator()(const Head<T>& head, const T* dout, int64_t dout_stride, T* dq, T* dk, T* dv,
                  int64_t grad_stride) const {
    const int64_t queries = e.queries, stride = head.stride, dim = e.dim;
    pack_b_transposed(head.q, stride, e.tokens, dim, q_b_transposed, queries);
    pack_b_transposed(dout, dout_stride, e.tokens, dim, dout_b_transposed, queries);
    pack_b(head.q, stride, e.tokens, dim, q_b, e.padded_dim);
    pack_b(head.k, stride, e.tokens, dim, k_b, e.padded_dim);
    pack_b(dout, dout_stride, e.tokens, dim, dout_b, e.padded_dim);
    const OperandA<Op> k_a = operand_a<Op>(head.k, stride, e.tokens, head.readable, dim, k_buffer);
    const OperandA<Op> v_a = operand_a<Op>(head.v, stride, e.tokens, head.readable, dim, v_buffer);
    const KeyQueryMatrix<Op> p_matrix{nullptr, p_rows, nullptr, e.k_tokens, queries};
    const KeyQueryMatrix<Op> ds_matrix{key_pairs, ds_rows, ds_buffer, e.k_tokens, queries};
    matmul<Op>(e.tokens, queries, e.k_dim, k_a, {q_b_transposed, queries},
               store_to(p, queries, queries));
    matmul<Op>(e.tokens, queries, e.k_dim, v_a, {dout_b_transposed, queries},
               store_to(dp, queries, queries));
    if constexpr (kDrops) dropout.hash_keys(head.index, e.tokens, hashes);
    for (int64_t query = 0; query < queries; query += kLanes) {
      const SoftmaxExp exp(p + query, e.tokens, queries, e.scale);
      Vec total{}, p_dp{};  // sums over keys of the exponentials, and of their products with dP
      for (int64_t key = 0; key < e.tokens; ++key) {
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
      const Vec inverse_scaled = inverse * e.scale, inverse_kept = inverse * dropout.scale;
      const auto ds = [&](int64_t at) {
        return load(p + at) * inverse_scaled * (load(dp + at) - p_dp);
      };
      for_each_key_pair(e.tokens, [&](int64_t pair, auto has_odd) {
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
    matmul<Op>(e.tokens, dim, e.k_tokens, ds_matrix.sum_over_keys(), {k_b, e.padded_dim},
               store_to(dq, grad_stride, dim));
    matmul<Op>(e.tokens, dim, e.k_tokens, ds_matrix.sum_over_queries(), {q_b, e.padded_dim},
               store_to(dk, grad_stride, dim));
    matmul<Op>(e.tokens, dim, e.k_tokens, p_matrix.sum_over_queries(), {dout_b, e.padded_dim},
               store_to(dv, grad_stride, dim));
  }
};

}  // namespace ivcl
