// Packing: copies of matrices in the layouts that matmul.h multiplies (operand.h).
//
// `src_stride` is the distance between rows of the source in values, `dst_stride` that between rows
// of the packed copy in packed elements. Copies are filled up with zeros.
#pragma once

#include <algorithm>
#include <type_traits>

#include "operand.h"

namespace ivcl {

// --- Transposition -------------------------------------------------------------------------------

#if defined(__AVX512F__)
#define IVCL_SIMD(name) _mm512_##name
using Register = __m512i;
#elif defined(__AVX2__)
#define IVCL_SIMD(name) _mm256_##name
using Register = __m256i;
#endif

// Transposes a square of registers in place.
inline void transpose(VecU32 (&x)[kLanes]) {
#ifdef __AVX2__
  // First squares of 4 x 4, each in a quarter or a half of four registers.
  Register t[kLanes], *v = reinterpret_cast<Register*>(x);
  IVCL_UNROLL for (int i = 0; i < kLanes; i += 2) {
    t[i] = IVCL_SIMD(unpacklo_epi32)(v[i], v[i + 1]);
    t[i + 1] = IVCL_SIMD(unpackhi_epi32)(v[i], v[i + 1]);
  }
  IVCL_UNROLL for (int i = 0; i < kLanes; i += 4) {
    v[i] = IVCL_SIMD(unpacklo_epi64)(t[i], t[i + 2]);
    v[i + 1] = IVCL_SIMD(unpackhi_epi64)(t[i], t[i + 2]);
    v[i + 2] = IVCL_SIMD(unpacklo_epi64)(t[i + 1], t[i + 3]);
    v[i + 3] = IVCL_SIMD(unpackhi_epi64)(t[i + 1], t[i + 3]);
  }
#ifdef __AVX512F__
  IVCL_UNROLL for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xDD);
  }
  IVCL_UNROLL for (int i = 0; i < 8; ++i) {
    v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
  }
#else
  IVCL_UNROLL for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x20);
    t[i + 4] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x31);
  }
  IVCL_UNROLL for (int i = 0; i < 8; ++i) v[i] = t[i];
#endif
#else
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < i; ++j) {
      const uint32_t other = x[i][j];
      x[i][j] = x[j][i];
      x[j][i] = other;
    }
#endif
}

// dst[col][row] = src[row][col] of 32-bit elements, where load_row(row, col) gives a register of
// the source from col on. Rows are rounded up to whole registers by repeating the last.
template <class LoadRow>
inline void transpose_into(int64_t rows, int64_t cols, LoadRow load_row, void* dst,
                           int64_t dst_stride) {
  for (int64_t row = 0; row < rows; row += kLanes)
    for (int64_t col = 0; col < cols; col += kLanes) {
      VecU32 square[kLanes];
      uint32_t* at = static_cast<uint32_t*>(dst) + col * dst_stride + row;
      IVCL_UNROLL for (int r = 0; r < kLanes; ++r)
        square[r] = load_row(std::min(row + r, rows - 1), col);
      transpose(square);
      if (col + kLanes <= cols)
        IVCL_UNROLL for (int c = 0; c < kLanes; ++c) storeu(at + c * dst_stride, square[c]);
      else
        for (int c = 0; c < cols - col; ++c) storeu(at + c * dst_stride, square[c]);
    }
}

// --- One float32 per packed element --------------------------------------------------------------

// A = src[rows][cols], k along its rows: dst[rows][k].
template <class T>
inline void pack_a(const T* src, int64_t src_stride, int64_t rows, int64_t cols, float* dst,
                   int64_t dst_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < dst_stride; c += kLanes)
      store(dst + r * dst_stride + c, c < cols ? load(src + r * src_stride + c, cols - c) : Vec{});
}

// B = src[rows][cols], k down its columns: dst[k][cols].
template <class T>
inline void pack_b(const T* src, int64_t src_stride, int64_t rows, int64_t cols, float* dst,
                   int64_t dst_stride) {
  pack_a(src, src_stride, rows, cols, dst, dst_stride);
}

// B = transpose of src[rows][cols], k along its rows: dst[k][rows].
template <class T>
inline void pack_b_transposed(const T* src, int64_t src_stride, int64_t rows, int64_t cols,
                              float* dst, int64_t dst_stride) {
  const auto full = [=](int64_t r, int64_t c) { return (VecU32)load(src + r * src_stride + c); };
  const auto tail = [=](int64_t r, int64_t c) {
    return (VecU32)load(src + r * src_stride + c, cols - c);
  };
  if (cols % kLanes == 0) transpose_into(rows, cols, full, dst, dst_stride);
  else transpose_into(rows, cols, tail, dst, dst_stride);
}

// --- A pair of bfloat16 per packed element -------------------------------------------------------

#ifdef __AVX512BF16__
// Loads a register of bfloat16 without converting it: its first n values at most.
inline VecU16 load_bits(const bf16* src, int64_t n) {
  if (n >= kLanes) return loadu<VecU16>(src);
  VecU16 x{};
  if (n > 0) std::memcpy(&x, src, n * sizeof(bf16));
  return x;
}

// Loads the pairs at columns 2 * pair onwards of a row of `cols` values.
inline VecU32 load_pairs(const bf16* row, int64_t pair, int64_t cols) {
  const int64_t left = cols - 2 * pair;
  if (left >= 2 * kLanes) return loadu<VecU32>(row + 2 * pair);
  VecU32 x{};
  if (left > 0) std::memcpy(&x, row + 2 * pair, left * sizeof(bf16));
  return x;
}

inline void pack_a(const bf16* src, int64_t src_stride, int64_t rows, int64_t cols, uint32_t* dst,
                   int64_t dst_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < dst_stride; c += kLanes)
      storeu(dst + r * dst_stride + c, load_pairs(src + r * src_stride, c, cols));
}

inline void pack_b(const bf16* src, int64_t src_stride, int64_t rows, int64_t cols, uint32_t* dst,
                   int64_t dst_stride) {
  for (int64_t r = 0; r < rows; r += 2, dst += dst_stride, src += 2 * src_stride)
    for (int64_t c = 0; c < dst_stride; c += 2 * kLanes) {
      const VecU32 even = load_pairs(src, c / 2, cols);
      const VecU32 odd = r + 1 < rows ? load_pairs(src + src_stride, c / 2, cols) : VecU32{};
      storeu(dst + c, interleave(even, kInterleaveFirst, odd));
      if (c + kLanes < dst_stride) storeu(dst + c + kLanes, interleave(even, kInterleaveLast, odd));
    }
  for (int64_t pair = ceil_div(rows, 2); pair < KExtent<Bf16Op>(rows).packed;
       ++pair, dst += dst_stride)
    for (int64_t c = 0; c < dst_stride; c += kLanes) storeu(dst + c, VecU32{});
}

inline void pack_b_transposed(const bf16* src, int64_t src_stride, int64_t rows, int64_t cols,
                              uint32_t* dst, int64_t dst_stride) {
  const auto full = [=](int64_t r, int64_t c) {
    return loadu<VecU32>(src + r * src_stride + 2 * c);
  };
  const auto tail = [=](int64_t r, int64_t c) { return load_pairs(src + r * src_stride, c, cols); };
  if (cols % (2 * kLanes) == 0) transpose_into(rows, cols / 2, full, dst, dst_stride);
  else transpose_into(rows, ceil_div(cols, 2), tail, dst, dst_stride);
}
#endif

// --- B in strips of kStrip columns, each of them contiguous --------------------------------------

// Packed elements of B with k values down its columns.
template <class Op>
inline int64_t strips_size(int64_t k, int64_t cols) {
  return KExtent<Op>(k).packed * round_up(cols, kStrip);
}

// Packs one strip of B = src[rows][cols], k down its columns, or of B = transpose of
// src[cols][rows].
template <class Op, bool kTransposed, class T>
inline void pack_strip(const T* src, int64_t src_stride, int64_t rows, int64_t cols, int64_t strip,
                       typename Op::Packed* dst) {
  const int64_t col = strip * kStrip, count = std::min(cols - col, kStrip);
  dst += KExtent<Op>(rows).packed * col;
  if constexpr (kTransposed)
    pack_b_transposed(src + col * src_stride, src_stride, count, rows, dst, kStrip);
  else pack_b(src + col, src_stride, rows, count, dst, kStrip);
}

template <class Op>
inline OperandB<Op> operand_b_of_strips(const typename Op::Packed* packed, int64_t k) {
  return {packed, kStrip, KExtent<Op>(k).packed * kStrip};
}

// --- Views of A: in place where the layout allows, else of a copy in `buffer` --------------------

// A = src[rows][cols], k along its rows. `readable_rows` counts the rows that may be read, `rows`
// and those behind them.
template <class Op, class T>
inline OperandA<Op> operand_a(const T* src, int64_t src_stride, int64_t rows, int64_t readable_rows,
                              int64_t cols, typename Op::Packed* buffer) {
  const bool unpadded = KExtent<Op>(cols).packed * Op::kPack == cols;
  const bool enough_rows = !Op::kIsAmx || round_up(rows, kLanes) <= readable_rows;
  if (sizeof(T) * Op::kPack == sizeof(buffer[0]) && unpadded && enough_rows)
    return {reinterpret_cast<const typename Op::Packed*>(src), src_stride / Op::kPack, 1};
  const int64_t stride = round_up(KExtent<Op>(cols).packed, kLanes);
  pack_a(src, src_stride, rows, cols, buffer, stride);
  return {buffer, stride, 1};
}

// A = transpose of packed[k][rows]. AMX needs its k contiguous, so there it is transposed.
template <class Op>
inline OperandA<Op> operand_a_transposed(const typename Op::Packed* packed, KExtent<Op> k,
                                         int64_t rows, typename Op::Packed* buffer) {
  if constexpr (!Op::kIsAmx) {
    return {packed, 1, rows};
  } else {
    const int64_t stride = round_up(k.packed, kLanes);
    const auto load_row = [=](int64_t k, int64_t c) {
      return loadu<VecU32>(packed + k * rows + c);
    };
    transpose_into(k.packed, rows, load_row, buffer, stride);
    return {buffer, stride, 1};
  }
}

// A = transpose of src[rows][cols], k down its columns.
template <class Op, class T>
inline OperandA<Op> operand_a_transposed(const T* src, int64_t src_stride, int64_t rows,
                                         int64_t cols, typename Op::Packed* buffer) {
  if constexpr (!Op::kIsAmx) {
    const int64_t stride = round_up(cols, kLanes);
    pack_b(src, src_stride, rows, cols, buffer, stride);
    return {buffer, 1, stride};
  } else {
    const int64_t pairs = KExtent<Op>(rows).packed, stride = round_up(pairs, kLanes);
    const auto load_row = [=](int64_t pair, int64_t c) {
      const auto half = [=](int64_t row) {
        return row < rows ? load_bits(src + row * src_stride + c, cols - c) : VecU16{};
      };
      return Op::pack(half(2 * pair), half(2 * pair + 1));
    };
    transpose_into(pairs, round_up(cols, kLanes), load_row, buffer, stride);
    return {buffer, stride, 1};
  }
}

}  // namespace ivcl
