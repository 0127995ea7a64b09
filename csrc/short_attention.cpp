// short_attention: attention of one head over one short sequence, all of it in cache.
//
// The maths is in kernels/short_attention.py, one head in attention_head.h. Nothing is permuted in
// memory.
// In bf16 with AVX-512, 7x to 23x as fast as PyTorch's SDPA and 1.7x to 3.4x as fast as an explicit
// softmax (12 to 160 tokens, forward and backward; docs/performance.md).
#include "attention_head.h"

namespace ivcl {
namespace {

struct Shape {
  int64_t frames, tokens, heads, dim;

  Shape(const Tensor& qkv, int64_t heads)
      : frames(qkv.size(0)), tokens(qkv.size(1)), heads(heads), dim(qkv.size(2) / (3 * heads)) {}

  int64_t sequences() const { return frames * heads; }
  int64_t width() const { return heads * dim; }
  // Tokens from the first of sequence i to the end of the tensor.
  int64_t readable_tokens(int64_t i) const { return (frames - i / heads) * tokens; }
  double sequence_ns() const { return 300 + 0.03 * tokens * tokens * dim; }

  // Offset of sequence i, one head of one frame, in qkv (parts = 3) or in the output (parts = 1).
  int64_t offset(int64_t i, int parts) const {
    return (i / heads * tokens * parts * heads + i % heads) * dim;
  }
};

// Prefetches the rows of the next sequence: their stride hides the pattern from the hardware.
template <int kWrite, class T>
inline void prefetch(const T* x, int64_t stride, const Shape& s) {
  for (int64_t row = 0; row < s.tokens; ++row)
    for (int64_t col = 0; col < s.dim; col += 64 / sizeof(T))
      __builtin_prefetch(x + row * stride + col, kWrite, 2);
}

template <class T>
Head<T> head_of(const T* qkv, const Shape& s, int64_t i) {
  const T* q = qkv + s.offset(i, 3);
  return {q, q + s.width(), q + 2 * s.width(), 3 * s.width(), s.readable_tokens(i), i};
}

template <class T, bool kDrops>
void forward(const Tensor& qkv, Tensor& out, const Shape& s, const Dropout& dropout) {
  const T* qkv_data = const_data<T>(qkv);
  T* out_data = mutable_data<T>(out);
  parallel_for(s.sequences(), s.sequence_ns(), [&](int64_t begin, int64_t end) {
    const HeadScope<MatmulOp<T>> scope(s.tokens, s.dim);
    Scratch scratch;
    const HeadForward<T, kDrops> compute(s.tokens, s.dim, dropout, scratch);
    for (int64_t i = begin; i < end; ++i) {
      if (i + 1 < end) {
        for (int part = 0; part < 3; ++part)
          prefetch<0>(qkv_data + s.offset(i + 1, 3) + part * s.width(), 3 * s.width(), s);
        prefetch<1>(out_data + s.offset(i + 1, 1), s.width(), s);
      }
      compute(head_of(qkv_data, s, i), out_data + s.offset(i, 1), s.width());
    }
  });
}

template <class T, bool kDrops>
void backward(const Tensor& dout, const Tensor& qkv, Tensor& dqkv, const Shape& s,
              const Dropout& dropout) {
  const T *qkv_data = const_data<T>(qkv), *dout_data = const_data<T>(dout);
  T* dqkv_data = mutable_data<T>(dqkv);
  const int64_t width = s.width(), stride = 3 * width;
  parallel_for(s.sequences(), 2.5 * s.sequence_ns(), [&](int64_t begin, int64_t end) {
    const HeadScope<MatmulOp<T>> scope(s.tokens, s.dim);
    Scratch scratch;
    const HeadBackward<T, kDrops> compute(s.tokens, s.dim, dropout, scratch);
    for (int64_t i = begin; i < end; ++i) {
      if (i + 1 < end) {
        for (int part = 0; part < 3; ++part) {
          prefetch<0>(qkv_data + s.offset(i + 1, 3) + part * width, stride, s);
          prefetch<1>(dqkv_data + s.offset(i + 1, 3) + part * width, stride, s);
        }
        prefetch<0>(dout_data + s.offset(i + 1, 1), width, s);
      }
      T* dq = dqkv_data + s.offset(i, 3);
      compute(head_of(qkv_data, s, i), dout_data + s.offset(i, 1), width, dq, dq + width,
              dq + 2 * width, stride);
    }
  });
}


void check_qkv(const Tensor& qkv, int64_t heads) {
  check_float("qkv", qkv, {kAny, kAny, kAny});
  const int64_t width = qkv.size(2);
  if (heads < 1 || heads > width / 3 || width % (3 * heads))
    fail("num_heads: ", heads, " does not divide qkv's width ", width, " in 3 parts");
  if (qkv.size(1) > kMaxHeadTokens) fail("qkv: more than ", kMaxHeadTokens, " tokens: ", qkv.size(1));
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
