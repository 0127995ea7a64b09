// How the operands of C[m][n] = sum over k of A[m][k] * B[k][n] lie in memory, for each instruction
// that multiplies them.
//
// B is packed so that a register holds neighbouring n; one element of A is broadcast. An element of
// a packed operand is one float32, or, where the CPU multiplies bfloat16, a pair of values that
// follow each other in k (the VNNI layout). Sums are float32.
#pragma once

#include <cstdint>

#include "vec.h"
#ifdef __AMX_BF16__
#include "amx.h"
#endif

namespace ivcl {

// --- Instructions --------------------------------------------------------------------------------

struct Fp32Fma {
  using Packed = float;
  static constexpr int kPack = 1;  // values of k in one packed element
  static constexpr bool kIsAmx = false;
  static Vec multiply_add(Vec acc, Packed a, Vec b) { return a * b + acc; }
};

#ifdef __AVX512BF16__
// Interleaves two registers of 32 bfloat16: their first 16 values, or their last 16.
typedef uint16_t Index __attribute__((vector_size(64)));
constexpr Index kInterleaveFirst = {
    0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
    8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
constexpr Index kInterleaveLast = kInterleaveFirst + 16;

inline VecU32 interleave(VecU32 a, Index index, VecU32 b) {
  return (VecU32)_mm512_permutex2var_epi16((__m512i)a, (__m512i)index, (__m512i)b);
}

struct Bf16Dot {  // VDPBF16PS
  using Packed = uint32_t;
  static constexpr int kPack = 2;
  static constexpr bool kIsAmx = false;
  static Vec multiply_add(Vec acc, Packed a, Vec b) {
    return (Vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
  }
  static VecU32 pack(VecU16 even_k, VecU16 odd_k) {
    return interleave((VecU32)_mm512_castsi256_si512((__m256i)even_k), kInterleaveFirst,
                      (VecU32)_mm512_castsi256_si512((__m256i)odd_k));
  }
};
#endif

#ifdef __AMX_BF16__
struct Bf16Amx : Bf16Dot {
  static constexpr bool kIsAmx = true;
};
using Bf16Op = Bf16Amx;
#elif defined(__AVX512BF16__)
using Bf16Op = Bf16Dot;
#else
using Bf16Op = Fp32Fma;
#endif

// The instruction that multiplies values of type T: MatmulOp<float>, MatmulOp<bf16>.
template <class T>
using MatmulOp = std::conditional_t<std::is_same_v<T, bf16>, Bf16Op, Fp32Fma>;

// --- Extents and views ---------------------------------------------------------------------------

// The length of the sum over k, in packed elements.
template <class Op>
struct KExtent {
  int64_t packed;
  explicit KExtent(int64_t values, bool second = false) : packed(ceil_div(values, Op::kPack)) {}
};

// Configures AMX for these extents while it exists.
template <class Op>
struct MatmulScope {
  MatmulScope(const KExtent<Op>& first, const KExtent<Op>& second) {}
};

#ifdef __AMX_BF16__
// AMX sums over blocks of equal length, so the extent is rounded up to a whole number of them.
// `second` selects the second of the two shapes that the tile registers are configured for.
template <>
struct KExtent<Bf16Amx> {
  int64_t packed, block;
  bool second;
  explicit KExtent(int64_t values, bool second = false) : second(second) {
    const int64_t pairs = ceil_div(values, 2), blocks = ceil_div(pairs, kLanes);
    block = ceil_div(pairs, blocks);
    packed = block * blocks;
  }
};
template <>
struct MatmulScope<Bf16Amx> {
  MatmulScope(const KExtent<Bf16Amx>& first, const KExtent<Bf16Amx>& second)
      : config(first.block, second.block) {}
  TileConfig config;
};
#endif

// Vector registers that lie side by side in a block of C.
#ifdef __AVX512F__
constexpr int kMaxColVecs = 4;
#else
constexpr int kMaxColVecs = 2;
#endif
constexpr int64_t kStrip = kMaxColVecs * kLanes;

// Packed operands; strides are in packed elements. Columns of B are contiguous within strips of
// kStrip columns, and these are `strip_stride` apart.
template <class Op>
struct OperandA {
  const typename Op::Packed* data;
  int64_t row_stride, k_stride;
};
template <class Op>
struct OperandB {
  const typename Op::Packed* data;
  int64_t k_stride, strip_stride = kStrip;
};

}  // namespace ivcl
