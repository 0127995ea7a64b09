// transformer_block: a pre-norm ViT block, forward.
//
// The maths is in kernels/transformer_block.py, what both passes share in transformer_block.h.
#include "transformer_block.h"

#include "gelu.h"

namespace ivcl {
namespace {

// Where a block's results and, for backward, its intermediate values are; not kept: null.
template <class X, class T>
struct Outputs {
  X *y, *middle;
  T *attended, *hidden;
};

// Values behind the last column are never used, but no memory is returned as it was.
template <class T>
void clear_padding(const Matrix<T>& x, int64_t rows, int64_t cols) {
  for (int64_t i = 0; i < rows; ++i)
    std::memset(x.row(i) + cols, 0, (x.stride - cols) * sizeof(T));
}

template <class X, class T>
void forward(const BlockSizes& s, const Rows& rows, const X* x,
             const Parameters& parameters, const Outputs<X, T>& out) {
  using Packed = typename MatmulOp<T>::Packed;
  const int64_t width = s.width, hidden = s.hidden;
  const PackedWeight<T, true> qkv(parameters[kQkvWeight]), proj(parameters[kProjWeight]),
      fc1(parameters[kFc1Weight]), fc2(parameters[kFc2Weight]);
  std::vector<std::vector<float>> vectors;
  for (const Tensor& parameter : parameters)
    vectors.push_back(parameter.dim() == 1 ? padded_vector(parameter) : std::vector<float>());
  const auto vector = [&](Parameter i) -> const float* { return vectors[i].data(); };
  const bool keep = out.attended != nullptr;
  const int64_t most_rows = rows.most(), most = std::max(most_rows, s.chunk_tokens());
  const Dropout no_dropout(0, {});

  for_each_task(s.chunks(), s.chunk_ns(), [&] {
    Scratch scratch;
    const Matrix<T> normed = alloc_rows<T>(scratch, most, width);
    const Matrix<T> activated = alloc_rows<T>(scratch, most_rows, hidden);
    const Matrix<T> selected = alloc_rows<T>(scratch, rows.selected ? most_rows : 0, width);
    const Matrix<T> own_attended = alloc_rows<T>(scratch, keep ? 0 : most, 4 * width);
    const Matrix<X> own_middle = alloc_rows<X>(scratch, keep ? 0 : most_rows, width);
    Packed* buffer = scratch.alloc<Packed>(product_buffer<T>(most, std::max(width, hidden)));
    float* norm_buffer = scratch.alloc<float>(kGroupRows * row_stride(width));
    const HeadForward<T, false> head(s.tokens, s.dim(), no_dropout, scratch);

    return [=, &s, &rows, &qkv, &proj, &fc1, &fc2, scratch = std::move(scratch)](int64_t number) {
      const Chunk chunk(s, rows, number);
      const int64_t stride = s.attended_stride();
      const Matrix<T> attended =
          keep ? Matrix<T>{out.attended + chunk.first_token * stride, stride,
                           s.frames * s.tokens - chunk.first_token}
               : own_attended;
      const Matrix<X> middle =
          keep ? Matrix<X>{out.middle + chunk.first_row * width, width, chunk.rows} : own_middle;

      if (keep) clear_padding(attended, chunk.tokens, 4 * width);
      norm_rows<X>(chunk.tokens, width, s.eps, vector(kNorm1Weight), vector(kNorm1Bias),
                   [&](int64_t i) { return x + (chunk.first_token + i) * width; }, normed,
                   norm_buffer);
      product(chunk.tokens, 3 * width, width, normed, qkv.operand(), buffer,
              for_each_register(3 * width, [=, bias = vector(kQkvBias)](int64_t row, int64_t col,
                                                                        Vec acc, auto n) {
                store(attended.row(row) + col, acc + load(bias + col), n);
              }));
      for_each_head<T>(s, chunk, [&](int64_t row, int64_t col) {
        T* q = attended.row(row) + col;
        head({q, q + width, q + 2 * width, stride, attended.readable - row, 0}, q + 3 * width,
             stride);
      });
      Matrix<T> attention{attended.data + 3 * width, stride, attended.readable};
      if (rows.selected) {
        select_rows(chunk, attention, width, selected);
        attention = selected;
      }
      product(chunk.rows, width, width, attention, proj.operand(), buffer,
              for_each_register(width, [=, bias = vector(kProjBias)](int64_t row, int64_t col,
                                                                     Vec acc, auto n) {
                const Vec residual = load(x + chunk.token[row] * width + col, n);
                store(middle.row(row) + col, residual + (acc + load(bias + col)), n);
              }));
      norm_rows<X>(chunk.rows, width, s.eps, vector(kNorm2Weight), vector(kNorm2Bias),
                   [&](int64_t i) { return middle.row(i); }, normed, norm_buffer);
      const int64_t hidden_stride = row_stride(hidden);
      const Matrix<T> pre_activation =
          keep ? Matrix<T>{out.hidden + chunk.first_row * hidden_stride, hidden_stride, chunk.rows}
               : activated;
      product(chunk.rows, hidden, width, normed, fc1.operand(), buffer,
              for_each_register(hidden, [=, bias = vector(kFc1Bias)](int64_t row, int64_t col,
                                                                     Vec acc, auto) {
                store(pre_activation.row(row) + col, acc + load(bias + col));
              }));
      if (keep) clear_padding(pre_activation, chunk.rows, hidden);
      // Not in the epilogue, where GELU's constants and a product's sums need the same registers.
      for (int64_t row = 0; row < chunk.rows; ++row)
        for (int64_t col = 0; col < hidden; col += kLanes) {
          const Vec u = load(pre_activation.row(row) + col);
          store(activated.row(row) + col, u * normal<T>(u).value);
        }
      product(chunk.rows, width, hidden, activated, fc2.operand(), buffer,
              for_each_register(width, [=, y = out.y, bias = vector(kFc2Bias)](
                                           int64_t row, int64_t col, Vec acc, auto n) {
                const Vec residual = load(middle.row(row) + col, n);
                store(y + chunk.place[row] * width + col, residual + (acc + load(bias + col)), n);
              }));
    };
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> transformer_block(
    const Tensor& x_in, const Tensor& norm1_weight, const Tensor& norm1_bias,
    const Tensor& qkv_weight, const Tensor& qkv_bias, const Tensor& proj_weight,
    const Tensor& proj_bias, const Tensor& norm2_weight, const Tensor& norm2_bias,
    const Tensor& fc1_weight, const Tensor& fc1_bias, const Tensor& fc2_weight,
    const Tensor& fc2_bias, const std::optional<Tensor>& index, int64_t heads, double eps,
    ScalarType dtype, bool keep) {
  const Parameters parameters{norm1_weight, norm1_bias, qkv_weight, qkv_bias, proj_weight,
                              proj_bias,    norm2_weight, norm2_bias, fc1_weight, fc1_bias,
                              fc2_weight,   fc2_bias};
  const BlockSizes s = check_block(x_in, parameters, index, heads, eps, dtype);
  const Rows rows(s, index);
  const int64_t count = rows.token.size(), tokens = s.frames * s.tokens;
  const Tensor x = as_contiguous(x_in);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  if (index) {
    shape.assign(index->sizes().begin(), index->sizes().end());
    shape.push_back(s.width);
  }
  Tensor y = empty_tensor(shape, x.scalar_type());
  Tensor middle = empty_tensor({keep ? count : 0, s.width}, x.scalar_type());
  Tensor attended = empty_tensor({keep ? tokens : 0, s.attended_stride()}, dtype);
  Tensor hidden = empty_tensor({keep ? count : 0, row_stride(s.hidden)}, dtype);
  dispatch_block(x.scalar_type(), dtype, [&](auto x_type, auto t) {
    using X = decltype(x_type);
    using T = decltype(t);
    if (tokens > 0)
      forward<X, T>(s, rows, const_data<X>(x), parameters,
                    {mutable_data<X>(y), keep ? mutable_data<X>(middle) : nullptr,
                     keep ? mutable_data<T>(attended) : nullptr,
                     keep ? mutable_data<T>(hidden) : nullptr});
  });
  return {y, middle, attended, hidden};
}

IVCL_OP(transformer_block)

}  // namespace
}  // namespace ivcl
