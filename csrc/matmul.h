// Matrix products of operands that lie in cache: C[m][n] = sum over k of A[m][k] * B[k][n].
//
// B is laid out so that a register holds neighbouring n; an element of A is broadcast. What is
// multiplied are units: one float32, or, where the chip multiplies bfloat16, a pair of them that
// follow each other in k (VDPBF16PS). Sums are float32. The pack functions lay operands out and
// fill up with zeros.
#pragma once

#include "vec.h"

namespace ivcl {

struct Single {
  using Unit = float;
  static constexpr int kGroup = 1;  // values of k in a unit
  static Vec multiply_add(Vec sum, Unit a, Vec b) { return a * b + sum; }
};

#ifdef __AVX512BF16__
struct Pair {
  using Unit = uint32_t;
  static constexpr int kGroup = 2;
  static Vec multiply_add(Vec sum, Unit a, Vec b) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
  }
};
#endif

template <class T>
struct Operand {
  using type = Single;
};
#ifdef __AVX512BF16__
template <>
struct Operand<bf16> {
  using type = Pair;
};
#endif

// Pairs of two rows' values.
inline Words join(Halves low, Halves high) {
  return __builtin_convertvector(low, Words) | __builtin_convertvector(high, Words) << 16;
}

// Units that hold n values of k.
template <class Op>
constexpr int64_t units(int64_t n) {
  return (n + Op::kGroup - 1) / Op::kGroup;
}

// --- Products -------------------------------------------------------------------------------------

#ifdef __AVX512F__
constexpr int kRegisters = 24, kMostColumns = 4;  // of 32, for the sums
#else
constexpr int kRegisters = 12, kMostColumns = 2;  // of 16
#endif

constexpr int64_t kLongestSum = 128;  // of float32 products

template <class Op>
struct A {
  const typename Op::Unit* at;
  int64_t row, k;  // distances, in units
};
template <class Op>
struct B {
  const typename Op::Unit* at;
  int64_t k;
};

template <class Op, int kRows, int kCols, class Store>
inline void tile(int64_t depth, A<Op> a, B<Op> b, Store store) {
  Vec sums[kRows][kCols] = {};
  const auto add = [&](int64_t steps) {
    for (int64_t k = 0; k < steps; ++k) {
      Vec right[kCols];
      IVCL_UNROLL for (int c = 0; c < kCols; ++c) right[c] = read<Vec>(b.at + c * kLanes);
      IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
        const auto left = a.at[r * a.row];
        IVCL_UNROLL for (int c = 0; c < kCols; ++c)
          sums[r][c] = Op::multiply_add(sums[r][c], left, right[c]);
      }
      a.at += a.k;
      b.at += b.k;
    }
  };
  if constexpr (Op::kGroup == 1) {
    // Sums of sums: rounding grows with the length of one.
    Vec done[kRows][kCols] = {};
    for (; depth > kLongestSum; depth -= kLongestSum) {
      add(kLongestSum);
      IVCL_UNROLL for (int r = 0; r < kRows; ++r)
        IVCL_UNROLL for (int c = 0; c < kCols; ++c) {
          done[r][c] += sums[r][c];
          sums[r][c] = Vec{};
        }
    }
    add(depth);
    IVCL_UNROLL for (int r = 0; r < kRows; ++r)
      IVCL_UNROLL for (int c = 0; c < kCols; ++c) sums[r][c] += done[r][c];
  } else {
    add(depth);
  }
  IVCL_UNROLL for (int r = 0; r < kRows; ++r)
    IVCL_UNROLL for (int c = 0; c < kCols; ++c) store(r, c * kLanes, sums[r][c]);
}

// Rows from `row` on, kRows at a time, and what is left by halves.
template <class Op, int kRows, int kCols, class Store>
inline void rows_from(int64_t row, int64_t rows, int64_t depth, A<Op> a, B<Op> b, Store store) {
  for (; row + kRows <= rows; row += kRows)
    tile<Op, kRows, kCols>(depth, {a.at + row * a.row, a.row, a.k}, b,
                           [&](int r, int col, Vec x) { store(row + r, col, x); });
  constexpr int kHalf = kRows > 8 ? 8 : kRows > 4 ? 4 : kRows / 2;
  if constexpr (kHalf > 0) rows_from<Op, kHalf, kCols>(row, rows, depth, a, b, store);
}

template <class Op, int kCols, class Store>
inline void strip(int64_t rows, int64_t depth, A<Op> a, B<Op> b, Store store) {
  rows_from<Op, (kRegisters / kCols > 12 ? 12 : kRegisters / kCols), kCols>(0, rows, depth, a, b,
                                                                            store);
}

// All of C, `depth` units of k deep, `cols` rounded up to whole registers; store(row, col, values)
// takes one register of it.
template <class Op, class Store>
inline void matmul(int64_t rows, int64_t cols, int64_t depth, A<Op> a, B<Op> b, Store store) {
  for (int64_t col = 0; col < cols;) {
    const int64_t left = (cols - col + kLanes - 1) / kLanes;
    const auto at = [&](int64_t r, int c, Vec x) { store(r, col + c, x); };
    const B<Op> some{b.at + col, b.k};
    int width = left >= kMostColumns ? kMostColumns : int(left);
    if constexpr (kMostColumns == 4) {
      if (width == 4) strip<Op, 4>(rows, depth, a, some, at);
      if (width == 3) strip<Op, 3>(rows, depth, a, some, at);
    }
    if (width == 2) strip<Op, 2>(rows, depth, a, some, at);
    if (width == 1) strip<Op, 1>(rows, depth, a, some, at);
    col += width * kLanes;
  }
}

// --- Laying operands out --------------------------------------------------------------------------

// x[rows][cols] as A or, `by` units apart, with k along the rows of x: to[row][units of cols].
template <class T>
inline void pack_rows(const T* x, int64_t distance, int64_t rows, int64_t cols, float* to,
                      int64_t by) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < by; c += kLanes)
      store(to + r * by + c, c < cols ? load(x + r * distance + c, cols - c) : Vec{});
}

// x[rows][cols] as B with k going down x: to[units of rows][cols].
template <class T>
inline void pack_down(const T* x, int64_t distance, int64_t rows, int64_t cols, float* to,
                      int64_t by) {
  pack_rows(x, distance, rows, cols, to, by);
}

// Transposes a square of registers.
inline void transpose(Words (&x)[kLanes]) {
#ifdef __AVX512F__
  __m512i t[16], *v = reinterpret_cast<__m512i*>(x);
  IVCL_UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  IVCL_UNROLL for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
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
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < i; ++j) {
      const uint32_t other = x[i][j];
      x[i][j] = x[j][i];
      x[j][i] = other;
    }
#endif
}

// Squares of words: to[col][row] = word(row, col), rows and cols rounded up to whole registers.
template <class Word>
inline void transpose_words(int64_t rows, int64_t cols, Word word, void* to, int64_t by) {
  for (int64_t row = 0; row < rows; row += kLanes)
    for (int64_t col = 0; col < cols; col += kLanes) {
      Words square[kLanes];
      for (int r = 0; r < kLanes; ++r) square[r] = row + r < rows ? word(row + r, col) : Words{};
      transpose(square);
      uint32_t* at = static_cast<uint32_t*>(to) + col * by + row;
      for (int c = 0; c < kLanes && col + c < cols; ++c) write(at + c * by, square[c]);
    }
}

// x[rows][cols] as B with k along its rows, so that C gets a column for each row of x:
// to[units of cols][rows].
template <class T>
inline void pack_across(const T* x, int64_t distance, int64_t rows, int64_t cols, float* to,
                        int64_t by) {
  transpose_words(
      rows, cols,
      [&](int64_t r, int64_t c) { return (Words)load(x + r * distance + c, cols - c); }, to, by);
}

#ifdef __AVX512BF16__
inline Halves halves(const bf16* at, int64_t n) {
  if (n >= kLanes) return read<Halves>(at);
  Halves some{};
  if (n > 0) std::memcpy(&some, at, n * sizeof(bf16));
  return some;
}

// The pairs at columns 2 * unit onwards of a row that ends after cols.
inline Words pairs(const bf16* row, int64_t unit, int64_t cols) {
  const int64_t left = cols - 2 * unit;
  if (left >= 2 * kLanes) return read<Words>(row + 2 * unit);
  Words some{};
  if (left > 0) std::memcpy(&some, row + 2 * unit, left * sizeof(bf16));
  return some;
}

inline void pack_rows(const bf16* x, int64_t distance, int64_t rows, int64_t cols, uint32_t* to,
                      int64_t by) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < by; c += kLanes) write(to + r * by + c, pairs(x + r * distance, c, cols));
}

inline void pack_down(const bf16* x, int64_t distance, int64_t rows, int64_t cols, uint32_t* to,
                      int64_t by) {
  for (int64_t r = 0; r < rows; r += 2, to += by)
    for (int64_t c = 0; c < by; c += kLanes) {
      const bf16* at = x + r * distance + c;
      write(to + c, join(halves(at, cols - c), r + 1 < rows ? halves(at + distance, cols - c) : Halves{}));
    }
}

inline void pack_across(const bf16* x, int64_t distance, int64_t rows, int64_t cols, uint32_t* to,
                        int64_t by) {
  transpose_words(
      rows, units<Pair>(cols),
      [&](int64_t r, int64_t unit) { return pairs(x + r * distance, unit, cols); }, to, by);
}
#endif

// x[rows][cols] as A with k along its rows, which is read an element at a time: in place where a
// unit of the product lies in memory as it is, else from a copy at `to`.
template <class Op, class T>
inline A<Op> rows_of(const T* x, int64_t distance, int64_t rows, int64_t cols,
                     typename Op::Unit* to) {
  if (sizeof(T) * Op::kGroup == sizeof(to[0]) && cols % Op::kGroup == 0)
    return {reinterpret_cast<const typename Op::Unit*>(x), distance / Op::kGroup, 1};
  const int64_t by = round_up(units<Op>(cols), kLanes);
  pack_rows(x, distance, rows, cols, to, by);
  return {to, by, 1};
}

}  // namespace ivcl
