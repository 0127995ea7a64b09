// sample_masks: splits the patches of every frame at random; kernels/sample_masks.py has the maths.
#include "op.h"
#include "random.h"

namespace ivcl {
namespace {

constexpr int64_t kIndexBits = 16, kMaxPatches = 1 << kIndexBits;

// The hash of (seed, patch), with the patch index in its low bits so that no two are equal.
inline uint64_t sort_key(uint64_t seed, uint64_t patch) {
  return (hash64(seed, patch) >> (kIndexBits + 1) << kIndexBits) | patch;
}

std::tuple<Tensor, Tensor> sample_masks(const Tensor& seed_in, int64_t patches, int64_t keep) {
  check_dtype("seed", seed_in, ScalarType::Long);
  if (patches < 1 || patches > kMaxPatches)
    fail("num_patches: ", patches, " is not between 1 and ", kMaxPatches);
  if (keep < 0 || keep > patches)
    fail("num_keep: ", keep, " is not between 0 and num_patches (", patches, ")");
  const Tensor seed = as_contiguous(seed_in);
  std::vector<int64_t> shape(seed.sizes().begin(), seed.sizes().end());
  shape.push_back(keep);
  Tensor ids_keep = empty_tensor(shape, ScalarType::Long);
  shape.back() = patches - keep;
  Tensor ids_mask = empty_tensor(shape, ScalarType::Long);
  const int64_t* seeds = const_data<int64_t>(seed);
  int64_t* keep_data = mutable_data<int64_t>(ids_keep);
  int64_t* mask_data = mutable_data<int64_t>(ids_mask);
  parallel_for(seed.numel(), 10.0 * patches, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> keys(patches);
    std::vector<bool> is_kept(patches);
    for (int64_t f = begin; f < end; ++f) {
      for (int64_t n = 0; n < patches; ++n) keys[n] = sort_key(seeds[f], n);
      std::nth_element(keys.begin(), keys.begin() + keep, keys.end());
      is_kept.assign(patches, false);
      for (int64_t k = 0; k < keep; ++k) is_kept[keys[k] & ((1 << kIndexBits) - 1)] = true;
      int64_t *keep_dst = keep_data + f * keep, *mask_dst = mask_data + f * (patches - keep);
      for (int64_t n = 0; n < patches; ++n) *(is_kept[n] ? keep_dst++ : mask_dst++) = n;
    }
  });
  return {ids_keep, ids_mask};
}

IVCL_OP(sample_masks)

}  // namespace
}  // namespace ivcl
