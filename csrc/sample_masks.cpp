// sample_masks: split the patches of every frame at random; hashes as in kernels/sample_masks.py.
#include "op.h"

namespace ivcl {
namespace {

constexpr int64_t kIndexBits = 16;

inline uint64_t key(uint64_t seed, uint64_t patch) {
  uint64_t x = seed + (patch + 1) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  x ^= x >> 31;
  return (x >> (kIndexBits + 1) << kIndexBits) | patch;
}

std::tuple<Tensor, Tensor> sample_masks(const Tensor& seed, int64_t patches, int64_t keep) {
  const Tensor whole = dense(seed);
  std::vector<int64_t> shape(whole.sizes().begin(), whole.sizes().end());
  shape.push_back(keep);
  Tensor ids_keep = make(shape, ScalarType::Long);
  shape.back() = patches - keep;
  Tensor ids_mask = make(shape, ScalarType::Long);
  const int64_t* seeds = in<int64_t>(whole);
  int64_t *kept = out<int64_t>(ids_keep), *hidden = out<int64_t>(ids_mask);
  parallel(whole.numel(), 10.0 * patches, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> keys(patches);
    std::vector<bool> stays(patches);
    for (int64_t f = begin; f < end; ++f) {
      for (int64_t n = 0; n < patches; ++n) keys[n] = key(seeds[f], n);
      std::nth_element(keys.begin(), keys.begin() + keep, keys.end());
      stays.assign(patches, false);
      for (int64_t k = 0; k < keep; ++k) stays[keys[k] & ((1 << kIndexBits) - 1)] = true;
      int64_t *to_keep = kept + f * keep, *to_mask = hidden + f * (patches - keep);
      for (int64_t n = 0; n < patches; ++n) *(stays[n] ? to_keep++ : to_mask++) = n;
    }
  });
  return {ids_keep, ids_mask};
}

IVCL_OP(sample_masks)

}  // namespace
}  // namespace ivcl
