// embed_patches: from the bytes of visible patches to tokens, in one pass.
//
// The maths is in kernels/embed_patches.py. A block of visible patches is converted to pixels in
// the first-level cache and multiplied by the weight, which is packed once per call; the epilogue
// adds bias and position on the way to memory. Backward converts the bytes again; a task owns some
// columns of the weight's gradient and goes over all tokens, so no partial sums are needed.
// In bf16, 3x to 3.7x as fast as eager PyTorch (gather, scale, linear, add), forward and backward.
#include "matmul.h"
#include "op.h"
#include "pack.h"

namespace ivcl {
namespace {

constexpr int64_t kForwardTokens = 48;       // tokens in a block, forward
constexpr int64_t kBackwardTokens = 256;     // tokens in a block, backward
constexpr int64_t kTaskPixels = 2 * kLanes;  // columns of a task, backward

struct Patches {
  const uint8_t* bytes;
  const int64_t* ids;
  int64_t patches, pixels, visible;
  float scale, shift;

  // Writes the normalised pixels first..first+count of a token's patch, padded with zeros.
  template <class T>
  void load_pixels(int64_t token, int64_t first, int64_t count, T* dst) const {
    const uint8_t* row = bytes + (token / visible * patches + ids[token]) * pixels + first;
    for (int64_t c = 0; c < count; c += kLanes)
      store(dst + c, mask_tail(load(row + c, count - c) * scale + shift, count - c));
  }
};

template <class T>
void forward(const Patches& p, int64_t tokens, const Tensor& weight_in, const Tensor& bias_in,
             const Tensor& pos_in, T* y) {
  using Op = MatmulOp<T>;
  using Packed = typename Op::Packed;
  const int64_t dim = weight_in.size(0), padded_dim = round_up(dim, kLanes);
  const KExtent<Op> k(p.pixels);
  const int64_t stride = round_up(Op::kPack * k.packed, 2 * kLanes);
  const std::vector<T> weight = to_vector<T>(weight_in);
  const std::vector<float> bias = to_vector<float>(bias_in), pos = to_vector<float>(pos_in);
  Scratch shared;
  Packed* weight_b = shared.alloc<Packed>(round_up(k.packed, kLanes) * padded_dim);
  pack_b_transposed(weight.data(), p.pixels, dim, p.pixels, weight_b, padded_dim);

  const double block_ns = 5e-3 * kForwardTokens * p.pixels * dim;
  parallel_for(ceil_div(tokens, kForwardTokens), block_ns, [&](int64_t begin, int64_t end) {
    const MatmulScope<Op> scope(k, k);
    Scratch scratch;
    T* x = scratch.alloc<T>(kForwardTokens * stride);
    Packed* x_buffer = scratch.alloc<Packed>(kForwardTokens * stride);
    for (int64_t first = begin * kForwardTokens; first < std::min(end * kForwardTokens, tokens);
         first += kForwardTokens) {
      const int64_t count = std::min(kForwardTokens, tokens - first);
      for (int64_t r = 0; r < count; ++r) p.load_pixels(first + r, 0, p.pixels, x + r * stride);
      const OperandA<Op> x_a =
          operand_a<Op>(x, stride, count, kForwardTokens, p.pixels, x_buffer);
      const auto add_bias_and_pos = [=, ids = p.ids + first, bias = bias.data(), pos = pos.data(),
                                     dst = y + first * dim](int64_t row, int64_t col, auto& acc) {
        int64_t c = col;
        for (Vec& vec : acc) {
          vec += load(bias + c, dim - c) + load(pos + ids[row] * dim + c, dim - c);
          c += kLanes;
        }
        store(dst + row * dim + col, acc, dim - col);
      };
      matmul<Op>(count, dim, k, x_a, {weight_b, padded_dim}, add_bias_and_pos);
    }
  });
}

template <class T>
void backward(const Patches& p, int64_t tokens, const T* dy, int64_t dim,
              std::vector<float>& dweight, std::vector<float>& dpos) {
  using Op = MatmulOp<T>;
  using Packed = typename Op::Packed;
  const int64_t padded_dim = round_up(dim, kLanes);
  const double weight_ns = 5e-3 * tokens * dim * kTaskPixels;
  parallel_for(ceil_div(p.pixels, kTaskPixels), weight_ns, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    T* x = scratch.alloc<T>(kBackwardTokens * kTaskPixels);
    Packed* x_b = scratch.alloc<Packed>(kBackwardTokens * kTaskPixels);
    Packed* dy_buffer = scratch.alloc<Packed>(kBackwardTokens * padded_dim);
    for (int64_t first = 0; first < tokens; first += kBackwardTokens) {
      const int64_t count = std::min(kBackwardTokens, tokens - first);
      const KExtent<Op> k(count);
      const MatmulScope<Op> scope(k, k);
      const OperandA<Op> dy_t =
          operand_a_transposed<Op>(dy + first * dim, dim, count, dim, dy_buffer);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first_pixel = task * kTaskPixels;
        const int64_t columns = std::min(kTaskPixels, p.pixels - first_pixel);
        for (int64_t r = 0; r < count; ++r)
          p.load_pixels(first + r, first_pixel, columns, x + r * kTaskPixels);
        pack_b(x, kTaskPixels, count, columns, x_b, kTaskPixels);
        matmul<Op>(dim, columns, k, dy_t, {x_b, kTaskPixels},
                   AddTo{&dweight[first_pixel], p.pixels, columns});
      }
    }
  });
  // A task owns some columns of dpos. The gradient of the bias is the sum of dpos over patches.
  parallel_for(ceil_div(dim, kTaskPixels), 2.0 * tokens, [&](int64_t begin, int64_t end) {
    const int64_t end_col = std::min(end * kTaskPixels, dim);
    for (int64_t token = 0; token < tokens; ++token) {
      float* dst = &dpos[p.ids[token] * dim];
      for (int64_t c = begin * kTaskPixels; c < end_col; c += kLanes) {
        const int64_t n = end_col - c;
        store(dst + c, load(dst + c, n) + load(dy + token * dim + c, n), n);
      }
    }
  });
}

void check_arguments(const Tensor& rows, const Tensor& ids, const Tensor& weight,
                     const Tensor& bias, const Tensor& pos, double std) {
  check_dtype("rows", rows, ScalarType::Byte);
  check_shape("rows", rows, {kAny, kAny, kAny});
  if (rows.size(2) == 0) fail("rows: patches of no bytes");
  check_dtype("ids", ids, ScalarType::Long);
  check_shape("ids", ids, {rows.size(0), kAny});
  check_float("weight", weight, {kAny, rows.size(2)});
  check_float("bias", bias, {weight.size(0)});
  check_float("pos", pos, {rows.size(1), weight.size(0)});
  check_pixel_std(std);
}

Patches make_patches(const Tensor& rows, const Tensor& ids, double mean, double std) {
  check_ids("ids", const_data<int64_t>(ids), ids.numel(), rows.size(1));
  return {const_data<uint8_t>(rows), const_data<int64_t>(ids), rows.size(1), rows.size(2),
          ids.size(1), float(1 / (255 * std)), float(-mean / std)};
}

Tensor embed_patches(const Tensor& rows_in, const Tensor& ids_in, const Tensor& weight,
                     const Tensor& bias, const Tensor& pos, double mean, double std,
                     ScalarType dtype) {
  check_arguments(rows_in, ids_in, weight, bias, pos, std);
  check_float("dtype", dtype);
  const Tensor rows = as_contiguous(rows_in), ids = as_contiguous(ids_in);
  const Patches p = make_patches(rows, ids, mean, std);
  Tensor y = empty_tensor({ids.size(0), ids.size(1), weight.size(0)}, dtype);
  dispatch_float(dtype, [&](auto t) {
    using T = decltype(t);
    forward<T>(p, ids.numel(), weight, bias, pos, mutable_data<T>(y));
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> embed_patches_backward(const Tensor& dy_in,
                                                          const Tensor& rows_in,
                                                          const Tensor& ids_in,
                                                          const Tensor& weight, const Tensor& bias,
                                                          const Tensor& pos, double mean,
                                                          double std) {
  check_arguments(rows_in, ids_in, weight, bias, pos, std);
  check_float("dy", dy_in, {ids_in.size(0), ids_in.size(1), weight.size(0)});
  const Tensor rows = as_contiguous(rows_in), ids = as_contiguous(ids_in);
  const Tensor dy = as_contiguous(dy_in);
  const Patches p = make_patches(rows, ids, mean, std);
  const int64_t dim = weight.size(0);
  std::vector<float> weight_sums(weight.numel()), pos_sums(pos.numel());
  dispatch_float(dy.scalar_type(), [&](auto t) {
    using T = decltype(t);
    if (dim > 0) backward<T>(p, ids.numel(), const_data<T>(dy), dim, weight_sums, pos_sums);
  });
  Tensor dweight = empty_tensor({dim, p.pixels}, weight.scalar_type());
  Tensor dbias = empty_tensor_like(bias);
  Tensor dpos = empty_tensor({p.patches, dim}, pos.scalar_type());
  reduce_partials(weight_sums, weight_sums.size(), dweight);
  reduce_partials(pos_sums, pos_sums.size(), dpos);
  reduce_partials(pos_sums, dim, dbias);
  return {dweight, dbias, dpos};
}

IVCL_OP(embed_patches)
IVCL_OP(embed_patches_backward)

}  // namespace
}  // namespace ivcl
