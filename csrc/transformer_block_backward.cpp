// transformer_block_backward: the gradients of a pre-norm ViT block.
//
// The maths is in kernels/transformer_block.py, what both passes share in transformer_block.h.
#include "gelu.h"
#include "transformer_block.h"

namespace ivcl {
namespace {

// Tensors saved by forward.
template <class X, class T>
struct Kept {
  const X *x, *middle;
  const T *attended, *hidden;
};

// dweight[outputs][inputs] += dy^T x and dbias += the sum of dy, over rows.
template <class T>
class WeightGradient {
  using Op = MatmulOp<T>;
  using Packed = typename Op::Packed;
  static constexpr bool kInPlace = std::is_same_v<T, float>;
  Packed *dy_buffer = nullptr, *x_buffer = nullptr;

 public:
  // For up to `most` rows, outputs and inputs.
  WeightGradient(int64_t rows, int64_t most, Scratch& scratch) {
    if (kInPlace) return;
    const int64_t depth = round_up(KExtent<Op>(rows).packed, kLanes);
    dy_buffer = scratch.alloc<Packed>(depth * round_up(most, kLanes));
    x_buffer = scratch.alloc<Packed>(depth * round_up(most, kStrip));
  }

  void operator()(int64_t rows, const Matrix<T>& dy, int64_t outputs, const Matrix<T>& x,
                  int64_t inputs, float* dweight, float* dbias) const {
    if (rows == 0) return;
    const KExtent<Op> k(rows);
    const MatmulScope<Op> scope(k, k);
    const auto multiply = [&](OperandA<Op> a, OperandB<Op> b) {
      matmul<Op>(outputs, inputs, k, a, b, AddTo{dweight, inputs, inputs});
    };
    if constexpr (kInPlace) {
      multiply({dy.data, 1, dy.stride}, {x.data, x.stride});
    } else {
      for (int64_t strip = 0; strip < ceil_div(inputs, kStrip); ++strip)
        pack_strip<Op, false>(x.data, x.stride, rows, inputs, strip, x_buffer);
      multiply(operand_a_transposed<Op>(dy.data, dy.stride, rows, outputs, dy_buffer),
               operand_b_of_strips<Op>(x_buffer, rows));
    }
    constexpr int64_t kVecs = 8, kSumRows = 16;  // a few cache lines of each row at a time
    for (int64_t col = 0; col < outputs; col += kVecs * kLanes) {
      const int64_t vecs = std::min(kVecs, ceil_div(outputs - col, kLanes));
      Vec sums[kVecs] = {};
      for (int64_t first = 0; first < rows; first += kSumRows) {
        Vec part[kVecs] = {};  // the rounding error of a sum grows with its length
        for (int64_t row = first; row < std::min(rows, first + kSumRows); ++row)
          for (int i = 0; i < vecs; ++i) part[i] += load(dy.row(row) + col + i * kLanes);
        for (int i = 0; i < vecs; ++i) sums[i] += part[i];
      }
      for (int i = 0; i < vecs; ++i) {
        const int64_t at = col + i * kLanes;
        store(dbias + at, load(dbias + at, outputs - at) + sums[i], outputs - at);
      }
    }
  }
};

template <class X, class T>
void backward(const BlockSizes& s, const Rows& rows, const X* dy, const Parameters& parameters,
              const Kept<X, T>& kept, X* dx, std::vector<float>& group_sums, int64_t group_stride) {
  using Packed = typename MatmulOp<T>::Packed;
  const int64_t width = s.width, hidden = s.hidden, groups = s.groups();
  const PackedWeight<T, false> qkv(parameters[kQkvWeight]), proj(parameters[kProjWeight]),
      fc1(parameters[kFc1Weight]), fc2(parameters[kFc2Weight]);
  std::vector<float> norms[4];
  for (int i = 0; i < 4; ++i)
    norms[i] = padded_vector(parameters[i < 2 ? kNorm1Weight + i : kNorm2Weight + i - 2]);
  const float *norm1_weight = norms[0].data(), *norm1_bias = norms[1].data();
  const float *norm2_weight = norms[2].data(), *norm2_bias = norms[3].data();
  const int64_t most_rows = rows.most(), most = std::max(most_rows, s.chunk_tokens());
  const Dropout no_dropout(0, {});

  for_each_task(groups, 2 * s.chunk_ns() * s.chunks() / groups, [&] {
    Scratch scratch;
    const auto alloc = [&](int64_t cols) { return alloc_rows<T>(scratch, most, cols); };
    const Matrix<T> dy_rows = alloc(width), normed = alloc(width), dmiddle_rows = alloc(width);
    const Matrix<T> activated = alloc(hidden), dhidden = alloc(hidden);
    const Matrix<T> selected = alloc(width), dattention = alloc(width), dqkv = alloc(3 * width);
    const Matrix<float> dnormed = alloc_rows<float>(scratch, most, width);
    const Matrix<float> dmiddle = alloc_rows<float>(scratch, most, width);
    const Matrix<float> sums =
        alloc_rows<float>(scratch, rows.selected ? 2 * s.chunk_tokens() : 0, width);
    const int64_t widest = std::max(3 * width, hidden);
    Packed* buffer = scratch.alloc<Packed>(product_buffer<T>(most, widest));
    float* norm_buffer = scratch.alloc<float>(2 * kGroupRows * row_stride(width));
    const Matrix<float> norm_sums = alloc_rows<float>(scratch, 2, width);
    const WeightGradient<T> weight_gradient(most, widest, scratch);
    const HeadBackward<T, false> head(s.tokens, s.dim(), no_dropout, scratch);

    const auto chunk_gradients = [=, &s, &rows, &qkv, &proj, &fc1, &fc2](int64_t number,
                                                                         float* total) {
      const Chunk chunk(s, rows, number);
      const int64_t stride = s.attended_stride(), hidden_stride = row_stride(hidden);
      const X* x = kept.x + chunk.first_token * width;
      const X* middle = kept.middle + chunk.first_row * width;
      const T* pre_activation = kept.hidden + chunk.first_row * hidden_stride;
      T* const qkv_rows = const_cast<T*>(kept.attended) + chunk.first_token * stride;
      const int64_t readable = s.frames * s.tokens - chunk.first_token;

      // MLP.
      for (int64_t i = 0; i < chunk.rows; ++i)
        for_each_vec(width, [&](int64_t c, auto n) {
          store(dy_rows.row(i) + c, load(dy + chunk.place[i] * width + c, n));
        });
      product(chunk.rows, hidden, width, dy_rows, fc2.operand(), buffer,
              store_to(dhidden.data, dhidden.stride, dhidden.stride));
      for (int64_t row = 0; row < chunk.rows; ++row)
        for (int64_t col = 0; col < hidden; col += kLanes) {
          const Vec u = load(pre_activation + row * hidden_stride + col);
          const Gate gate = normal<T>(u);
          store(activated.row(row) + col, u * gate.value);
          T* grad = dhidden.row(row) + col;
          store(grad, load(grad) * (gate.value + u * gate.slope));
        }
      weight_gradient(chunk.rows, dy_rows, width, activated, hidden, total + s.offset(kFc2Weight),
                      total + s.offset(kFc2Bias));
      norm_rows<X>(chunk.rows, width, s.eps, norm2_weight, norm2_bias,
                   [&](int64_t i) { return middle + i * width; }, normed, norm_buffer);
      weight_gradient(chunk.rows, dhidden, hidden, normed, width, total + s.offset(kFc1Weight),
                      total + s.offset(kFc1Bias));
      product(chunk.rows, width, hidden, dhidden, fc1.operand(), buffer,
              store_to(dnormed.data, dnormed.stride, dnormed.stride));
      float* const norm_grads = norm_buffer + kGroupRows * row_stride(width);
      const auto add_norm_sums = [&](Parameter weight) {
        for (int i = 0; i < 2; ++i)
          for_each_vec(width, [&](int64_t c, auto n) {
            float* at = total + s.offset(weight + i) + c;
            store(at, load(at, n) + load(norm_sums.row(i) + c), n);
            store(norm_sums.row(i) + c, Vec{});
          });
      };
      for_each_group(0, chunk.rows, [&](int64_t row, auto group) {
        normalise_backward<group>(
            width, s.eps, norm2_weight, norm_sums.row(0), norm_sums.row(1), norm_buffer,
            norm_grads, row_stride(width),
            [&](int r, int64_t c, auto n) { return load(middle + (row + r) * width + c, n); },
            [&](int r, int64_t c, auto n) { return load(dnormed.row(row + r) + c, n); },
            [&](int r, int64_t c, auto n, Vec grad) {
              grad += load(dy + chunk.place[row + r] * width + c, n);
              store(dmiddle.row(row + r) + c, grad);
              store(dmiddle_rows.row(row + r) + c, grad);
            });
      });
      add_norm_sums(kNorm2Weight);

      // Attention. Of selected tokens, several rows may be the same.
      Matrix<T> attention{qkv_rows + 3 * width, stride, readable};
      if (rows.selected) {
        select_rows(chunk, attention, width, selected);
        attention = selected;
      }
      weight_gradient(chunk.rows, dmiddle_rows, width, attention, width,
                      total + s.offset(kProjWeight), total + s.offset(kProjBias));
      Matrix<float> dresidual = dmiddle;
      if (!rows.selected) {
        product(chunk.rows, width, width, dmiddle_rows, proj.operand(), buffer,
                store_to(dattention.data, dattention.stride, width));
      } else {
        dresidual = sums;
        const Matrix<float> sum{sums.row(chunk.tokens), sums.stride, 0};
        std::memset(sums.data, 0, 2 * chunk.tokens * sums.stride * sizeof(float));
        for (int64_t i = 0; i < chunk.rows; ++i)
          for_each_vec(width, [&](int64_t c, auto) {
            float* at = sums.row(chunk.token_in_chunk(i)) + c;
            store(at, load(at) + load(dmiddle.row(i) + c));
          });
        product(chunk.rows, width, width, dmiddle_rows, proj.operand(), buffer,
                for_each_register(width, [=](int64_t row, int64_t col, Vec acc, auto) {
                  float* at = sum.row(chunk.token_in_chunk(row)) + col;
                  store(at, load(at) + acc);
                }));
        for (int64_t i = 0; i < chunk.tokens; ++i)
          for_each_vec(width, [&](int64_t c, auto) {
            store(dattention.row(i) + c, load(sum.row(i) + c));
          });
      }
      for_each_head<T>(s, chunk, [&](int64_t row, int64_t col) {
        const T* q = qkv_rows + row * stride + col;
        T* dq = dqkv.row(row) + col;
        head({q, q + width, q + 2 * width, stride, readable - row, 0}, dattention.row(row) + col,
             dattention.stride, dq, dq + width, dq + 2 * width, dqkv.stride);
      });
      norm_rows<X>(chunk.tokens, width, s.eps, norm1_weight, norm1_bias,
                   [&](int64_t i) { return x + i * width; }, normed, norm_buffer);
      weight_gradient(chunk.tokens, dqkv, 3 * width, normed, width, total + s.offset(kQkvWeight),
                      total + s.offset(kQkvBias));
      product(chunk.tokens, width, 3 * width, dqkv, qkv.operand(), buffer,
              store_to(dnormed.data, dnormed.stride, dnormed.stride));
      for_each_group(0, chunk.tokens, [&](int64_t row, auto group) {
        normalise_backward<group>(
            width, s.eps, norm1_weight, norm_sums.row(0), norm_sums.row(1), norm_buffer,
            norm_grads, row_stride(width),
            [&](int r, int64_t c, auto n) { return load(x + (row + r) * width + c, n); },
            [&](int r, int64_t c, auto n) { return load(dnormed.row(row + r) + c, n); },
            [&](int r, int64_t c, auto n, Vec grad) {
              grad += load(dresidual.row(row + r) + c, n);
              store(dx + (chunk.first_token + row + r) * width + c, grad, n);
            });
      });
      add_norm_sums(kNorm1Weight);
    };

    return [=, &s, &group_sums, scratch = std::move(scratch)](int64_t group) {
      const int64_t chunks = s.chunks(), last = (group + 1) * chunks / groups;
      for (int64_t chunk = group * chunks / groups; chunk < last; ++chunk)
        chunk_gradients(chunk, &group_sums[group * group_stride]);
    };
  });
}

// The sums of all groups, in their order.
void add_groups(const std::vector<float>& group_sums, int64_t groups, int64_t stride,
                Tensor& total) {
  dispatch_float(total.scalar_type(), [&](auto t) {
    using T = decltype(t);
    T* dst = mutable_data<T>(total);
    const int64_t count = total.numel();
    parallel_for(ceil_div(count, kLanes), 0.5 * groups, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kLanes; i < std::min(end * kLanes, count); i += kLanes) {
        Vec sum{};
        for (int64_t group = 0; group < groups; ++group)
          sum += load(&group_sums[group * stride + i]);
        store(dst + i, sum, count - i);
      }
    });
  });
}

std::tuple<Tensor, Tensor> transformer_block_backward(
    const Tensor& dy_in, const Tensor& x_in, const Tensor& norm1_weight, const Tensor& norm1_bias,
    const Tensor& qkv_weight, const Tensor& qkv_bias, const Tensor& proj_weight,
    const Tensor& proj_bias, const Tensor& norm2_weight, const Tensor& norm2_bias,
    const Tensor& fc1_weight, const Tensor& fc1_bias, const Tensor& fc2_weight,
    const Tensor& fc2_bias, const std::optional<Tensor>& index, const Tensor& middle_in,
    const Tensor& attended_in, const Tensor& hidden_in, int64_t heads, double eps,
    ScalarType dtype) {
  const Parameters parameters{norm1_weight, norm1_bias, qkv_weight, qkv_bias, proj_weight,
                              proj_bias,    norm2_weight, norm2_bias, fc1_weight, fc1_bias,
                              fc2_weight,   fc2_bias};
  const BlockSizes s = check_block(x_in, parameters, index, heads, eps, dtype);
  const Rows rows(s, index);
  const int64_t count = rows.token.size(), tokens = s.frames * s.tokens;
  check_dtype("dy", dy_in, x_in.scalar_type());
  if (dy_in.numel() != count * s.width) fail("dy: ", dy_in.numel(), " values");
  check_dtype("middle", middle_in, x_in.scalar_type());
  check_shape("middle", middle_in, {count, s.width});
  check_dtype("attended", attended_in, dtype);
  check_shape("attended", attended_in, {tokens, s.attended_stride()});
  check_dtype("hidden", hidden_in, dtype);
  check_shape("hidden", hidden_in, {count, row_stride(s.hidden)});
  const Tensor x = as_contiguous(x_in), dy = as_contiguous(dy_in);
  const Tensor middle = as_contiguous(middle_in), attended = as_contiguous(attended_in);
  const Tensor hidden = as_contiguous(hidden_in);
  Tensor dx = empty_tensor_like(x);
  Tensor dparameters = empty_tensor({s.offset(kParameters)}, norm1_weight.scalar_type());
  const int64_t group_stride = s.offset(kParameters) + kStrip;
  std::vector<float> group_sums(s.groups() * group_stride);
  dispatch_block(x.scalar_type(), dtype, [&](auto x_type, auto t) {
    using X = decltype(x_type);
    using T = decltype(t);
    if (tokens > 0)
      backward<X, T>(s, rows, const_data<X>(dy), parameters,
                     {const_data<X>(x), const_data<X>(middle), const_data<T>(attended),
                      const_data<T>(hidden)},
                     mutable_data<X>(dx), group_sums, group_stride);
  });
  add_groups(group_sums, s.groups(), group_stride, dparameters);
  return {dx, dparameters};
}

IVCL_OP(transformer_block_backward)

}  // namespace
}  // namespace ivcl
