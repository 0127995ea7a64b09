// Checks of an op's arguments. Compiled and exported graphs, and torch.ops, call ops directly, and
// with a wrong shape or dtype they would read out of bounds.
// Errors are one line that names the argument.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <sstream>
#include <stdexcept>

namespace ivcl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kAny = -1;  // a size that is not given

template <class... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void fail(const Parts&... parts) {
  std::ostringstream message;
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

template <class Sizes>
[[noreturn, gnu::noinline, gnu::cold]] void fail_shape(const char* name, const Tensor& x,
                                                       const Sizes& expected) {
  std::ostringstream message;
  const auto append = [&](const auto& sizes) {
    const char* separator = "[";
    for (int64_t size : sizes) {
      message << separator;
      if (size == kAny) message << '*';
      else message << size;
      separator = ", ";
    }
    message << (*separator == '[' ? "[]" : "]");
  };
  message << name << ": shape ";
  append(x.sizes());
  message << " is not ";
  append(expected);
  throw std::runtime_error(message.str());
}

template <class Sizes>
inline void check_shape(const char* name, const Tensor& x, const Sizes& expected) {
  const auto sizes = x.sizes();
  const auto fits = [](int64_t size, int64_t wanted) { return wanted == kAny || size == wanted; };
  if (sizes.size() != expected.size() ||
      !std::equal(sizes.begin(), sizes.end(), expected.begin(), fits))
    fail_shape(name, x, expected);
}
inline void check_shape(const char* name, const Tensor& x,
                        std::initializer_list<int64_t> expected) {
  check_shape<std::initializer_list<int64_t>>(name, x, expected);
}

inline void check_dtype(const char* name, const Tensor& x, ScalarType dtype) {
  if (x.scalar_type() != dtype) fail(name, ": ", x.scalar_type(), " is not ", dtype);
}

inline void check_float(const char* name, ScalarType dtype) {
  if (dtype != ScalarType::Float && dtype != ScalarType::BFloat16)
    fail(name, ": ", dtype, " is neither Float nor BFloat16");
}

// A float tensor of this shape.
inline void check_float(const char* name, const Tensor& x,
                        std::initializer_list<int64_t> expected) {
  check_float(name, x.scalar_type());
  check_shape(name, x, expected);
}

// A tensor of the same shape and dtype as another.
inline void check_like(const char* name, const Tensor& x, const Tensor& other) {
  check_dtype(name, x, other.scalar_type());
  check_shape(name, x, other.sizes());
}

// The width of a float tensor of rows.
inline int64_t check_rows(const char* name, const Tensor& x) {
  check_float(name, x.scalar_type());
  if (x.dim() == 0) fail(name, ": shape [] has no rows");
  return x.size(-1);
}

// The mean and standard deviation of pixels.
inline void check_pixel_std(double std) {
  if (!(std > 0)) fail("std: ", std, " is not above 0");
}

// Ids of patches: int64, and each of 0..count-1.
inline void check_ids(const char* name, const int64_t* ids, int64_t number, int64_t count) {
  int64_t lowest = 0, highest = -1;
  for (int64_t i = 0; i < number; ++i) {
    lowest = std::min(lowest, ids[i]);
    highest = std::max(highest, ids[i]);
  }
  if (lowest < 0 || highest >= count)
    fail(name, ": ", lowest < 0 ? lowest : highest, " is out of bounds: patches are 0 to ",
         count - 1);
}

}  // namespace ivcl
