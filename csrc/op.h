// Shared by all ops: tensors of torch's stable ABI as plain pointers, dtypes as C++ types,
// threads, and sums over rows that do not depend on the number of threads.
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

#include "check.h"
#include "vec.h"

namespace ivcl {

// --- Tensors -------------------------------------------------------------------------------------

inline Tensor as_contiguous(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

inline Tensor empty_tensor(std::vector<int64_t> shape, ScalarType dtype) {
  return torch::stable::empty({shape.data(), shape.size()}, dtype);
}
inline Tensor empty_tensor_like(const Tensor& x, ScalarType dtype) {
  return torch::stable::empty(x.sizes(), dtype);
}
inline Tensor empty_tensor_like(const Tensor& x) { return empty_tensor_like(x, x.scalar_type()); }

template <class T>
const T* const_data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <class T>
T* mutable_data(Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// Calls f with a value of the C++ type of dtype.
template <class F>
auto dispatch_float(ScalarType dtype, F f) {
  if (dtype == ScalarType::Float) return f(float{});
  check_float("dtype", dtype);
  return f(bf16{});
}

// A parameter's values converted to T once per call.
template <class T>
std::vector<T> to_vector(const Tensor& x) {
  const Tensor dense = as_contiguous(x);
  const int64_t count = dense.numel();
  std::vector<T> values(count);
  dispatch_float(dense.scalar_type(), [&](auto t) {
    const auto* src = const_data<decltype(t)>(dense);
    for_each_vec(count, [&](int64_t i, auto n) { store(&values[i], load(src + i, n), n); });
  });
  return values;
}

// --- Threads -------------------------------------------------------------------------------------

// One thread's buffers, aligned to vector registers; allocated once per range of work. They start
// as zeros, because padding of an operand that is never written must add nothing to a sum.
class Scratch {
 public:
  template <class T>
  T* alloc(int64_t count) {
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

// Calls f(begin, end) for ranges of 0..count on torch's threads. `item_ns` is the rough cost of an
// item in nanoseconds: a thread is used only for work of 20 microseconds or more.
template <class F>
void parallel_for(int64_t count, double item_ns, const F& f) {
  const int64_t grain = std::max<int64_t>(1, int64_t(20000 / item_ns));
  torch::stable::parallel_for(0, count, grain, f);
}

// A sum over rows is made of partial sums over this many rows each, whatever the number of threads:
// its bits do not depend on it.
constexpr int64_t kPartialRows = 64;

// Adds up partials[count][width] in order, into the dtype of `total`.
inline void reduce_partials(const std::vector<float>& partials, int64_t width, Tensor& total) {
  if (width == 0) return;
  dispatch_float(total.scalar_type(), [&](auto t) {
    using T = decltype(t);
    T* dst = mutable_data<T>(total);
    const int64_t count = partials.size() / width;
    for (int64_t col = 0; col < width; col += kLanes) {
      Vec acc{};
      for (int64_t p = 0; p < count; ++p) acc += load(&partials[p * width + col], width - col);
      store(dst + col, acc, width - col);
    }
  });
}

// --- Registration --------------------------------------------------------------------------------

// Counts the calls of an op; listed in ops.cpp.
struct CallCounter {
  explicit CallCounter(const char* name);
  const char* name;
  std::atomic<int64_t> count{0};
};

using BoxedKernel = void(StableIValue*, uint64_t, uint64_t);

template <CallCounter* counter, BoxedKernel* kernel>
void counted(StableIValue* stack, uint64_t num_inputs, uint64_t num_outputs) {
  counter->count.fetch_add(1, std::memory_order_relaxed);
  kernel(stack, num_inputs, num_outputs);
}

}  // namespace ivcl

// Makes `function` the CPU implementation of ivcl_fast::<function>.
#define IVCL_OP(function)                                                                         \
  static ivcl::CallCounter function##_counter(#function);                                         \
  STABLE_TORCH_LIBRARY_IMPL(ivcl_fast, CPU, library_of_##function) {                              \
    library_of_##function.impl(                                                                   \
        #function, (&ivcl::counted<&function##_counter, TORCH_BOX(&function)>));                  \
  }
