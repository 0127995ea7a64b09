// mixture_loss: frames as mixtures of the slots' predictions, and their error, in one pass.
//
// The maths is in kernels/mixture_loss.py. A register holds neighbouring pixels of one patch, for
// which all slots are read one after the other.
#include "op.h"

namespace ivcl {
namespace {

// Sizes of a call. A row is a patch of a frame.
struct Sizes {
  int64_t frames, slots, patches, pixels;

  Sizes(const Tensor& drawn, const Tensor& truth, const Tensor& background) {
    check_float("drawn", drawn.scalar_type());
    check_shape("drawn", drawn, {kAny, kAny, kAny, kAny});
    check_dtype("true", truth, ScalarType::Float);
    check_dtype("background", background, ScalarType::Float);
    check_shape("background", background, {drawn.size(2), 3, kAny});
    frames = drawn.size(0), slots = drawn.size(1), patches = drawn.size(2);
    pixels = background.size(2);
    check_shape("drawn", drawn, {frames, slots, patches, 4 * pixels});
    check_shape("true", truth, {frames, patches, 3 * pixels});
  }
  int64_t rows() const { return frames * patches; }
  int64_t count() const { return rows() * 3 * pixels; }
};

// The positions of a row in the tensors of a call, and the strides to the next slot.
struct Row {
  int64_t drawn, colors, shares, background, next_drawn, next_share;

  Row(const Sizes& m, int64_t row) {
    const int64_t frame = row / m.patches, patch = row % m.patches;
    drawn = (frame * m.slots * m.patches + patch) * 4 * m.pixels;
    colors = row * 3 * m.pixels;
    shares = (frame * (m.slots + 1) * m.patches + patch) * m.pixels;
    background = patch * 3 * m.pixels;
    next_drawn = m.patches * 4 * m.pixels, next_share = m.patches * m.pixels;
  }
};

std::tuple<Tensor, Tensor, Tensor> mixture_loss(const Tensor& drawn_in, const Tensor& true_in,
                                                const Tensor& background_in, double logit,
                                                double spread, double weight) {
  const Sizes m(drawn_in, true_in, background_in);
  const Tensor drawn = as_contiguous(drawn_in), truth = as_contiguous(true_in);
  const Tensor learnt = as_contiguous(background_in);
  Tensor loss = empty_tensor({}, ScalarType::Float), pred = empty_tensor_like(truth);
  Tensor shares = empty_tensor({m.frames, m.slots + 1, m.patches, m.pixels}, ScalarType::Float);
  const float *trues = const_data<float>(truth), *fixed = const_data<float>(learnt);
  float *mixed = mutable_data<float>(pred), *parts = mutable_data<float>(shares);
  std::vector<double> partials(ceil_div(m.rows(), kPartialRows));

  dispatch_float(drawn.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* src = const_data<T>(drawn);
    const double row_ns = 1.5 * (m.slots + 1) * m.pixels;
    parallel_for(partials.size(), kPartialRows * row_ns, [&](int64_t begin, int64_t end) {
      const int64_t slots = m.slots, pixels = m.pixels;
      Scratch scratch;
      float* share = scratch.alloc<float>(slots * kLanes);
      for (int64_t row = begin * kPartialRows; row < std::min(end * kPartialRows, m.rows());
           ++row) {
        const Row at(m, row);
        for (int64_t q = 0; q < pixels; q += kLanes) {
          const int64_t n = pixels - q;
          Vec top = splat(logit);
          for (int64_t s = 0; s < slots; ++s) {
            const Vec x = load(src + at.drawn + s * at.next_drawn + 3 * pixels + q, n);
            store(share + s * kLanes, x);
            top = max(top, x);
          }
          Vec rest = exp2((splat(logit) - top) * kLog2e), total = rest;
          for (int64_t s = 0; s < slots; ++s) {
            const Vec x = exp2((load(share + s * kLanes) - top) * kLog2e);
            store(share + s * kLanes, x);
            total += x;
          }
          const Vec scale = 1.0f / total;
          rest *= scale;
          for (int64_t s = 0; s < slots; ++s) {
            const Vec x = load(share + s * kLanes) * scale;
            store(share + s * kLanes, x);
            store(parts + at.shares + s * at.next_share + q, x, n);
          }
          store(parts + at.shares + slots * at.next_share + q, rest, n);
          Vec error{};
          for (int64_t i = q; i < 3 * pixels; i += pixels) {  // of the three colours
            const Vec b = load(fixed + at.background + i, n);
            const Vec t = load(trues + at.colors + i, n);
            Vec p = rest * b, squares = p * b;
            for (int64_t s = 0; s < slots; ++s) {
              const Vec c = load(src + at.drawn + s * at.next_drawn + i, n);
              const Vec part = load(share + s * kLanes) * c;
              p += part;
              squares += part * c;
            }
            store(mixed + at.colors + i, p, n);
            error += (p - t) * (p - t) + float(spread) * (squares - p * p) +
                     float(weight) * abs(b - t);
          }
          partials[row / kPartialRows] += reduce_sum(mask_tail(error, n));
        }
      }
    });
  });
  double total = 0;
  for (double partial : partials) total += partial;
  *mutable_data<float>(loss) = total / m.count();
  return {loss, pred, shares};
}

std::tuple<Tensor, Tensor> mixture_loss_backward(const Tensor& dloss, const Tensor& drawn_in,
                                                 const Tensor& true_in,
                                                 const Tensor& background_in,
                                                 const Tensor& pred_in, const Tensor& shares_in,
                                                 double logit, double spread, double weight) {
  const Sizes m(drawn_in, true_in, background_in);
  check_dtype("dloss", dloss, ScalarType::Float);
  check_shape("dloss", dloss, {});
  check_like("pred", pred_in, true_in);
  check_dtype("shares", shares_in, ScalarType::Float);
  check_shape("shares", shares_in, {m.frames, m.slots + 1, m.patches, m.pixels});
  const Tensor drawn = as_contiguous(drawn_in), truth = as_contiguous(true_in);
  const Tensor learnt = as_contiguous(background_in), pred = as_contiguous(pred_in);
  const Tensor shares = as_contiguous(shares_in);
  Tensor ddrawn = empty_tensor_like(drawn), dbackground = empty_tensor_like(learnt);
  const float *trues = const_data<float>(truth), *fixed = const_data<float>(learnt);
  const float *mixed = const_data<float>(pred), *parts = const_data<float>(shares);
  const float grad = *const_data<float>(dloss) / std::max<int64_t>(m.count(), 1);
  const float square = grad * float(spread);

  dispatch_float(drawn.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* src = const_data<T>(drawn);
    T* dst = mutable_data<T>(ddrawn);
    parallel_for(m.rows(), 2.0 * (m.slots + 1) * m.pixels, [&](int64_t begin, int64_t end) {
      const int64_t slots = m.slots, pixels = m.pixels;
      Scratch scratch;
      float* value = scratch.alloc<float>(slots * kLanes);
      for (int64_t row = begin; row < end; ++row) {
        const Row at(m, row);
        for (int64_t q = 0; q < pixels; q += kLanes) {
          const int64_t n = pixels - q;
          const float* share = parts + at.shares + q;
          for (int64_t s = 0; s < slots; ++s) store(value + s * kLanes, Vec{});
          Vec of_rest{};
          for (int64_t i = q; i < 3 * pixels; i += pixels) {  // of the three colours
            const Vec b = load(fixed + at.background + i, n);
            const Vec t = load(trues + at.colors + i, n);
            const Vec p = load(mixed + at.colors + i, n);
            const Vec dp = 2 * grad * (p - t - float(spread) * p);
            for (int64_t s = 0; s < slots; ++s) {
              const int64_t here = at.drawn + s * at.next_drawn + i;
              const Vec c = load(src + here, n), a = load(share + s * at.next_share, n);
              store(dst + here, a * (dp + 2 * square * c), n);
              store(value + s * kLanes, load(value + s * kLanes) + c * (dp + square * c));
            }
            of_rest += b * (dp + square * b);
          }
          Vec mean = load(share + slots * at.next_share, n) * of_rest;
          for (int64_t s = 0; s < slots; ++s)
            mean += load(share + s * at.next_share, n) * load(value + s * kLanes);
          for (int64_t s = 0; s < slots; ++s) {
            const Vec a = load(share + s * at.next_share, n);
            store(dst + at.drawn + s * at.next_drawn + 3 * pixels + q,
                  a * (load(value + s * kLanes) - mean), n);
          }
        }
      }
    });
  });

  // A count of frames, exact in any order.
  const int64_t width = m.patches * 3 * m.pixels;
  const float step = grad * float(weight);
  float* dfixed = mutable_data<float>(dbackground);
  parallel_for(ceil_div(width, kLanes), m.frames * 2.0, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * kLanes; at < std::min(end * kLanes, width); at += kLanes) {
      const int64_t n = width - at;
      const Vec b = load(fixed + at, n);
      Vec signs{};
      for (int64_t f = 0; f < m.frames; ++f) {
        const Vec t = load(trues + f * width + at, n);
        signs += (b > t ? splat(1) : Vec{}) - (b < t ? splat(1) : Vec{});
      }
      store(dfixed + at, signs * step, n);
    }
  });
  return {ddrawn, dbackground};
}

IVCL_OP(mixture_loss)
IVCL_OP(mixture_loss_backward)

}  // namespace
}  // namespace ivcl
