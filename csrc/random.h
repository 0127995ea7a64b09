// Counter-based random numbers and dropout; kernels/_random.py defines both.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>

#include "check.h"
#include "vec.h"

namespace ivcl {

// The number `index` of a seed: the finaliser of SplitMix64 (Steele et al., 2014).
inline uint64_t hash64(uint64_t seed, uint64_t index) {
  uint64_t x = seed + (index + 1) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Dropout of attention weights.
struct Dropout {
  int32_t steps = 0;  // the probability, of kSteps
  float scale = 1;    // of what is kept
  uint64_t seed = 0;

  Dropout(double probability, const std::optional<Tensor>& given) {
    if (!(probability >= 0 && probability < 1))
      fail("dropout: ", probability, " is not from 0 to less than 1");
    if (probability == 0) return;
    if (!given) fail("seed: None is not int64 [], which dropout needs");
    check_dtype("seed", *given, ScalarType::Long);
    check_shape("seed", *given, {});
    seed = uint64_t(*static_cast<const int64_t*>(given->const_data_ptr()));
    steps = std::min(int32_t(std::nearbyint(probability * kSteps)), kSteps - 1);
    scale = float(kSteps / double(kSteps - steps));
  }

  static constexpr int32_t kSteps = 1 << 24;

  // The hashes of a sequence's keys.
  void hash_keys(int64_t sequence, int64_t tokens, uint32_t* hashes) const {
    for (int64_t key = 0; key < tokens; ++key)
      hashes[key] = uint32_t(hash64(seed, sequence * tokens + key));
  }

  // x[query] for the key of this hash where the pair is kept, unscaled, and else zero.
  Vec drop(Vec x, uint32_t key_hash, int64_t query) const {
    VecU32 bits = (VecU32)(iota() + int32_t(query)) * 0x9E3779B9u + key_hash;
    bits = (bits ^ (bits >> 16)) * 0x7FEB352Du;
    bits = (bits ^ (bits >> 15)) * 0x846CA68Bu;
    bits ^= bits >> 16;
    return (VecI32)(bits >> 8) >= steps ? x : Vec{};
  }
};

}  // namespace ivcl
