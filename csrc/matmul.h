// Matrix products of packed operands (operand.h) that lie in cache; the caller's epilogue takes the
// sums from registers.
#pragma once

#include <algorithm>
#include <type_traits>

#include "operand.h"

namespace ivcl {

// Vector registers used as accumulators.
#ifdef __AVX512F__
constexpr int kAccRegisters = 24;  // of 32 registers
#else
constexpr int kAccRegisters = 12;  // of 16 registers
#endif

// Products that one float32 accumulator sums up before it is added to the total: the rounding error
// of a sum grows with its length.
constexpr int64_t kMaxFp32Chain = 128;

// An epilogue that adds C to the float32 values at dst, whose rows of `cols` values are `stride`
// apart.
struct AddTo {
  float* dst;
  int64_t stride, cols;

  template <int kCols>
  void operator()(int64_t row, int64_t col, Vec (&acc)[kCols]) const {
    for (Vec& vec : acc) {
      float* at = dst + row * stride + col;
      store(at, load(at, cols - col) + vec, cols - col);
      col += kLanes;
    }
  }
  // Sums that are as large as a weight come from a distant cache.
  void prefetch(int64_t row, int64_t col) const {
    __builtin_prefetch(dst + row * stride + col, 1, 3);
  }
};

// One block of C, kRows by kCols registers, accumulated in registers. It is a separate function
// with few arguments: inlined into loops, some accumulators would be kept in memory, and the code
// would be up to twice as slow.
template <class Op, int kRows, int kCols, class Epilogue>
__attribute__((noinline)) void microkernel(int64_t k_extent, OperandA<Op> a, OperandB<Op> b,
                                           int64_t row, int64_t col, Epilogue epilogue) {
  if constexpr (std::is_same_v<Epilogue, AddTo>)
    for (int r = 0; r < kRows; ++r) epilogue.prefetch(row + r, col);
  Vec acc[kRows][kCols];
  IVCL_UNROLL for (int r = 0; r < kRows; ++r)
    IVCL_UNROLL for (int c = 0; c < kCols; ++c) acc[r][c] = Vec{};
  const auto accumulate = [&](int64_t steps) {
    for (int64_t k = 0; k < steps; ++k) {
      Vec b_vecs[kCols];
      IVCL_UNROLL for (int c = 0; c < kCols; ++c) b_vecs[c] = loadu<Vec>(b.data + c * kLanes);
      IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
        const auto a_value = a.data[r * a.row_stride];
        IVCL_UNROLL for (int c = 0; c < kCols; ++c)
          acc[r][c] = Op::multiply_add(acc[r][c], a_value, b_vecs[c]);
      }
      a.data += a.k_stride;
      b.data += b.k_stride;
    }
  };
  if constexpr (Op::kPack == 1) {
    Vec total[kRows][kCols];  // of earlier chains
    // One call of `accumulate`: of a second copy, GCC keeps accumulators in memory.
    for (bool is_first = true;; is_first = false) {
      const int64_t steps = std::min(k_extent, kMaxFp32Chain);
      accumulate(steps);
      k_extent -= steps;
      if (!is_first)
        IVCL_UNROLL for (int r = 0; r < kRows; ++r)
          IVCL_UNROLL for (int c = 0; c < kCols; ++c) acc[r][c] += total[r][c];
      if (k_extent == 0) break;
      IVCL_UNROLL for (int r = 0; r < kRows; ++r)
        IVCL_UNROLL for (int c = 0; c < kCols; ++c) {
          total[r][c] = acc[r][c];
          acc[r][c] = Vec{};
        }
    }
  } else {
    accumulate(k_extent);
  }
  IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
    Vec copy[kCols];  // `acc` itself must not be pointed at, or the compiler keeps it in memory
    IVCL_UNROLL for (int c = 0; c < kCols; ++c) copy[c] = acc[r][c];
    epilogue(row + r, col, copy);
  }
}

// Rows `row` to `rows` of C, kRows at a time; the rest by blocks of half as many rows.
template <class Op, int kRows, int kCols, class Epilogue>
inline void row_blocks(int64_t row, int64_t rows, int64_t k_extent, OperandA<Op> a, OperandB<Op> b,
                       int64_t col, const Epilogue& epilogue) {
  for (; row + kRows <= rows; row += kRows)
    microkernel<Op, kRows, kCols>(k_extent, {a.data + row * a.row_stride, a.row_stride, a.k_stride},
                                  b, row, col, epilogue);
  constexpr int kHalf = kRows > 8 ? 8 : kRows > 4 ? 4 : kRows / 2;
  if constexpr (kHalf > 0) row_blocks<Op, kHalf, kCols>(row, rows, k_extent, a, b, col, epilogue);
}

#ifdef __AMX_BF16__
// All rows of C for kCols registers, as many rows at a time as there are tiles to accumulate in.
template <bool kSecond, int kCols, class Epilogue>
__attribute__((noinline)) void amx_row_blocks(int64_t rows, KExtent<Bf16Amx> k, OperandA<Bf16Amx> a,
                                              OperandB<Bf16Amx> b, int64_t col, Epilogue epilogue) {
  constexpr int kMaxTiles = kAccTiles / kCols;
  alignas(64) float acc[kMaxTiles * kTileRows * kCols * kLanes];
  const auto block = [&](int64_t row, auto tiles) {
    amx_microkernel<kSecond, tiles, kCols>(k.packed, k.block, a.data + row * a.row_stride,
                                           a.row_stride, b.data, b.k_stride, acc);
    const int64_t count = std::min(rows - row, tiles * kTileRows);
    for (int64_t r = 0; r < count; ++r) {
      Vec x[kCols];
      IVCL_UNROLL for (int c = 0; c < kCols; ++c) x[c] = load(acc + (r * kCols + c) * kLanes);
      epilogue(row + r, col, x);
    }
  };
  int64_t row = 0;
  for (; row + (kMaxTiles - 1) * kTileRows < rows; row += kMaxTiles * kTileRows)
    block(row, std::integral_constant<int, kMaxTiles>{});
  for (; row < rows; row += kTileRows) block(row, std::integral_constant<int, 1>{});
}
#endif

// C = A * B, with `cols` rounded up to whole registers. epilogue(row, col, vecs) takes one to four
// neighbouring registers of C. It is copied, so let it capture by value.
template <class Op, class Epilogue>
inline void matmul(int64_t rows, int64_t cols, KExtent<Op> k, OperandA<Op> a, OperandB<Op> b,
                   const Epilogue& epilogue) {
  const auto column_strip = [&](auto width, int64_t col) {
    constexpr int kCols = decltype(width)::value;
    const OperandB<Op> b_strip{b.data + col / kStrip * b.strip_stride, b.k_stride};
#ifdef __AMX_BF16__
    if constexpr (Op::kIsAmx) {
      if (k.second) return amx_row_blocks<true, kCols>(rows, k, a, b_strip, col, epilogue);
      return amx_row_blocks<false, kCols>(rows, k, a, b_strip, col, epilogue);
    }
#endif
    constexpr int kRows = kAccRegisters / kCols > 12 ? 12 : kAccRegisters / kCols;
    row_blocks<Op, kRows, kCols>(0, rows, k.packed, a, b_strip, col, epilogue);
  };
  for (int64_t col = 0; col < cols;) {
    const int64_t left = ceil_div(cols - col, kLanes);
    const int width = left >= kMaxColVecs ? kMaxColVecs : int(left);
    if constexpr (kMaxColVecs == 4) {
      if (width == 4) column_strip(std::integral_constant<int, 4>{}, col);
      if (width == 3) column_strip(std::integral_constant<int, 3>{}, col);
    }
    if (width == 2) column_strip(std::integral_constant<int, 2>{}, col);
    if (width == 1) column_strip(std::integral_constant<int, 1>{}, col);
    col += width * kLanes;
  }
}

// --- Epilogues -----------------------------------------------------------------------------------

// Stores neighbouring registers: their first n values at most.
template <class T, int kCols>
inline void store(T* dst, const Vec (&x)[kCols], int64_t n) {
  if (n >= kCols * kLanes) {
    IVCL_UNROLL for (int c = 0; c < kCols; ++c) store(dst + c * kLanes, x[c]);
  } else {
    for (int c = 0; c < kCols; ++c) store(dst + c * kLanes, x[c], n - c * kLanes);
  }
}

// Stores C to dst, whose rows of `cols` values are `stride` apart.
template <class T>
inline auto store_to(T* dst, int64_t stride, int64_t cols) {
  return [=](int64_t row, int64_t col, auto& acc) {
    store(dst + row * stride + col, acc, cols - col);
  };
}

}  // namespace ivcl
