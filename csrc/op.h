// What every op needs: tensors of the stable ABI as plain pointers, dtypes as types, threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <tuple>
#include <vector>

#include "vec.h"

namespace ivcl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor dense(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

inline Tensor make(std::vector<int64_t> shape, ScalarType dtype) {
  return torch::stable::empty({shape.data(), shape.size()}, dtype);
}
inline Tensor make_like(const Tensor& x, ScalarType dtype) {
  return torch::stable::empty(x.sizes(), dtype);
}
inline Tensor make_like(const Tensor& x) { return make_like(x, x.scalar_type()); }

template <class T>
const T* in(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <class T>
T* out(Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// Calls f with a value of the C++ type of dtype.
template <class F>
auto with_float(ScalarType dtype, F f) {
  if (dtype == ScalarType::Float) return f(float{});
  STD_TORCH_CHECK(dtype == ScalarType::BFloat16, "dtype: not float32 or bfloat16");
  return f(bf16{});
}

// Memory for one thread's intermediate values, aligned to registers: taken once per range of work.
// Zeros at first: what fills an operand up and is never written adds nothing to a sum.
class Scratch {
 public:
  template <class T>
  T* take(int64_t count) {
    const auto bytes = size_t(round_up(count * sizeof(T) + 1, 64));
    blocks_.emplace_back(::operator new(bytes, kAlign));
    return static_cast<T*>(std::memset(blocks_.back().get(), 0, bytes));
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(void* block) const { ::operator delete(block, kAlign); }
  };
  std::vector<std::unique_ptr<void, Free>> blocks_;
};

// f(begin, end) over 0..count on torch's threads; a thread gets `cost * its items` of work worth
// starting it for (in nanoseconds, roughly).
template <class F>
void parallel(int64_t count, double cost, const F& f) {
  const int64_t grain = std::max<int64_t>(1, int64_t(20000 / cost));
  torch::stable::parallel_for(0, count, grain, f);
}

// Rows to one share of a sum over rows. Fixed, so that sums do not depend on the threads.
constexpr int64_t kShareRows = 64;

// shares[count][width] added up in order, to the dtype of `to`.
inline void add_shares(const std::vector<float>& shares, int64_t width, Tensor& to) {
  with_float(to.scalar_type(), [&](auto t) {
    using T = decltype(t);
    T* total = out<T>(to);
    const int64_t count = shares.size() / width;
    for (int64_t col = 0; col < width; col += kLanes) {
      Vec some{};
      for (int64_t s = 0; s < count; ++s) some += load(&shares[s * width + col], width - col);
      store(total + col, some, width - col);
    }
  });
}

// A parameter as float32, converted once per call.
inline std::vector<float> as_floats(const Tensor& x) {
  const Tensor whole = dense(x);
  std::vector<float> values(whole.numel());
  with_float(whole.scalar_type(), [&](auto t) {
    const auto* from = in<decltype(t)>(whole);
    for (size_t i = 0; i < values.size(); ++i) values[i] = to_float(from[i]);
  });
  return values;
}

// The same as T, rounded once.
template <class T>
std::vector<T> as_type(const Tensor& x) {
  const std::vector<float> wide = as_floats(x);
  std::vector<T> values(wide.size());
  const int64_t count = values.size();
  for (int64_t i = 0; i < count; i += kLanes) store(&values[i], load(&wide[i], count - i), count - i);
  return values;
}

// Raises unless every id is one of 0..count-1.
inline void check_ids(const int64_t* ids, int64_t number, int64_t count) {
  int64_t least = 0, most = -1;
  for (int64_t i = 0; i < number; ++i) {
    least = std::min(least, ids[i]);
    most = std::max(most, ids[i]);
  }
  STD_TORCH_CHECK(least >= 0 && most < count, "ids: ", least < 0 ? least : most,
                  " is out of bounds: patches are 0 to ", count - 1);
}

// Counts calls of an op; see ops.cpp.
struct Calls {
  explicit Calls(const char* name);
  const char* name;
  std::atomic<int64_t> count{0};
};

using Boxed = void(StableIValue*, uint64_t, uint64_t);

template <Calls* calls, Boxed* run>
void counted(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  calls->count.fetch_add(1, std::memory_order_relaxed);
  run(stack, inputs, outputs);
}

}  // namespace ivcl

// Makes `function` the CPU implementation of ivcl_fast::<function>.
#define IVCL_OP(function)                                              \
  static ivcl::Calls function##_calls(#function);                      \
  STABLE_TORCH_LIBRARY_IMPL(ivcl_fast, CPU, library_of_##function) {   \
    library_of_##function.impl(#function, (&ivcl::counted<&function##_calls, TORCH_BOX(&function)>)); \
  }
