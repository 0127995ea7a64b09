// linear_gradients: the gradients of a linear layer's weight and bias, in one pass over tokens.
//
// dweight = dy^T x is a product over tokens of two matrices that both have to be repacked. Of a
// block of tokens, x is packed once, and dy in blocks of outputs that stay in cache while they are
// multiplied. A thread owns some columns of x and of dweight and goes over all tokens, so partial
// sums are not needed.
// Faster than the library on AMX (a tiny step takes 96 ms instead of 105), slower without tiles.
#include "matmul.h"
#include "op.h"
#include "pack.h"

namespace ivcl {
namespace {

constexpr int64_t kBlockTokens = 512;  // dweight, often larger than a cache, is updated for each
constexpr int64_t kBlockOutputs = 512;
constexpr int64_t kTaskColumns = 64;  // columns of x that are worth a thread

// A factor of ones: its product with dy is the sum of dy over tokens.
template <class Op>
void fill_ones(typename Op::Packed* dst, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (Op::kPack == 2) dst[i] = 0x3F803F80;  // two ones in bfloat16
    else dst[i] = 1;
  }
}

template <class T>
void gradients(const T* dy, const T* x, int64_t tokens, int64_t outputs, int64_t inputs,
               float* dweight, float* dbias) {
  using Op = MatmulOp<T>;
  using Packed = typename Op::Packed;
  const int64_t padded_outputs = round_up(outputs, kLanes);
  // One task even without inputs: the first also sums up the bias's gradient.
  const int64_t tasks = ceil_div(std::max<int64_t>(inputs, 1), kTaskColumns);
  const double task_ns = 2e-3 * tokens * outputs * kTaskColumns;
  parallel_for(tasks, task_ns, [&](int64_t begin, int64_t end) {
    const int64_t first_column = begin * kTaskColumns;
    const int64_t columns = std::min(end * kTaskColumns, inputs) - first_column;
    const int64_t stride = round_up(columns, kLanes);
    Scratch scratch;
    const int64_t depth = round_up(ceil_div(std::min(kBlockTokens, tokens), Op::kPack), kLanes);
    Packed* x_b = scratch.alloc<Packed>(depth * stride);
    Packed* ones = scratch.alloc<Packed>(depth * kLanes);
    fill_ones<Op>(ones, depth * kLanes);
    Packed* dy_buffer = scratch.alloc<Packed>(depth * std::min(kBlockOutputs, padded_outputs));
    for (int64_t first = 0; first < tokens; first += kBlockTokens) {
      const int64_t count = std::min(kBlockTokens, tokens - first);
      const KExtent<Op> k(count);
      const MatmulScope<Op> scope(k, k);
      pack_b(x + first * inputs + first_column, inputs, count, columns, x_b, stride);
      for (int64_t output = 0; output < outputs; output += kBlockOutputs) {
        const int64_t rows = std::min(kBlockOutputs, outputs - output);
        const OperandA<Op> dy_t =
            operand_a_transposed<Op>(dy + first * outputs + output, outputs, count, rows,
                                     dy_buffer);
        float* const sums = dweight + output * inputs + first_column;
        if (first == 0)
          matmul<Op>(rows, columns, k, dy_t, {x_b, stride}, store_to(sums, inputs, columns));
        else
          matmul<Op>(rows, columns, k, dy_t, {x_b, stride}, AddTo{sums, inputs, columns});
        if (begin == 0)
          matmul<Op>(rows, kLanes, k, dy_t, {ones, kLanes},
                     [=](int64_t row, int64_t, auto& acc) { dbias[output + row] += acc[0][0]; });
      }
    }
  });
}

std::tuple<Tensor, Tensor> linear_gradients(const Tensor& dy_in, const Tensor& x_in,
                                            ScalarType dtype) {
  check_float("dtype", dtype);
  check_rows("x", x_in);
  if (dy_in.dim() != x_in.dim()) fail("dy: ", dy_in.dim(), " dimensions are not x's ", x_in.dim());
  std::vector<int64_t> shape(x_in.sizes().begin(), x_in.sizes().end());
  shape.back() = kAny;
  check_dtype("dy", dy_in, x_in.scalar_type());
  check_shape("dy", dy_in, shape);
  const Tensor x = as_contiguous(x_in), dy = as_contiguous(dy_in);
  const int64_t outputs = dy.size(-1), inputs = x.size(-1);
  const int64_t tokens = inputs ? x.numel() / inputs : outputs ? dy.numel() / outputs : 0;
  Tensor dweight = empty_tensor({outputs, inputs}, dtype), dbias = empty_tensor({outputs}, dtype);
  // A weight may be as large as a cache: its float32 gradient is summed in place, never filled.
  const bool in_place = dtype == ScalarType::Float && tokens > 0;
  std::vector<float> weight_sums(in_place ? 0 : outputs * inputs), bias_sums(outputs);
  float* const sums = in_place ? mutable_data<float>(dweight) : weight_sums.data();
  dispatch_float(x.scalar_type(), [&](auto t) {
    using T = decltype(t);
    if (outputs > 0)
      gradients(const_data<T>(dy), const_data<T>(x), tokens, outputs, inputs, sums,
                bias_sums.data());
  });
  if (!in_place) reduce_partials(weight_sums, weight_sums.size(), dweight);
  reduce_partials(bias_sums, outputs, dbias);
  return {dweight, dbias};
}

IVCL_OP(linear_gradients)

}  // namespace
}  // namespace ivcl
