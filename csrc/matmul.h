// Matrix products of operands that lie in cache: C[m][n] = sum over k of A[m][k] * B[k][n].
//
// B is laid out so that a register holds neighbouring n; an element of A is broadcast. What is
// multiplied are units: one float32, or, where the chip multiplies bfloat16, a pair of them that
// follow each other in k (VDPBF16PS, or AMX: tiles.h). Sums are float32. The pack functions lay operands out and
// fill up with zeros.
#pragma once

#include <algorithm>
#include <type_traits>

#include "vec.h"
#ifdef __AMX_BF16__
#include "tiles.h"
#endif

namespace ivcl {

struct Single {
  using Unit = float;
  static constexpr int kGroup = 1;  // values of k in a unit
  static constexpr bool kWholeTiles = false;
  static Vec multiply_add(Vec sum, Unit a, Vec b) { return a * b + sum; }
};

#ifdef __AVX512BF16__
// Pairs of the values at one place of two registers of bfloat16: of the first 16, the last 16.
typedef uint16_t Index __attribute__((vector_size(64)));
constexpr Index kFirstPairs = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                               8,  40, 9,  41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
constexpr Index kLastPairs = kFirstPairs + 16;

inline Words join(Words a, Index which, Words b) {
  return (Words)_mm512_permutex2var_epi16((__m512i)a, (__m512i)which, (__m512i)b);
}

struct Pair {
  using Unit = uint32_t;
  static constexpr bool kWholeTiles = false;
  static constexpr int kGroup = 2;
  static Vec multiply_add(Vec sum, Unit a, Vec b) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
  }
  static Words of(Halves a, Halves b) {
    return join((Words)_mm512_castsi256_si512((__m256i)a), kFirstPairs,
                (Words)_mm512_castsi256_si512((__m256i)b));
  }
};
#endif

#ifdef __AMX_BF16__
struct Tile : Pair {
  static constexpr bool kWholeTiles = true;  // A has its k side by side and rows by 16
};
using Best = Tile;
#elif defined(__AVX512BF16__)
using Best = Pair;
#else
using Best = Single;
#endif

template <class T>
struct Operand {
  using type = Single;
};
template <>
struct Operand<bf16> {
  using type = Best;
};

// What a product sums over: values of k, in units.
template <class Op>
struct Depth {
  int64_t units;
  explicit Depth(int64_t values, bool second = false)
      : units((values + Op::kGroup - 1) / Op::kGroup) {}
};

// Prepares a thread for products of these depths, as long as it exists.
template <class Op>
struct Products {
  Products(const Depth<Op>& first, const Depth<Op>& second) {}
};

#ifdef __AMX_BF16__
// Blocks of equal length, rounded up together; the second depth has registers of its own.
template <>
struct Depth<Tile> {
  int64_t units, block;
  bool second;
  explicit Depth(int64_t values, bool second = false) : second(second) {
    const int64_t least = (values + 1) / 2, blocks = (least + kLanes - 1) / kLanes;
    block = (least + blocks - 1) / blocks;
    units = block * blocks;
  }
};
template <>
struct Products<Tile> {
  Products(const Depth<Tile>& first, const Depth<Tile>& second)
      : shapes(first.block, second.block) {}
  TileShapes shapes;
};
#endif

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

// One tile of C, its sums in registers. A call of its own with nothing to remember but what it is
// given: inlined into loops, the compiler keeps some of the sums in memory (up to twice as slow).
template <class Op, int kRows, int kCols, class Store>
__attribute__((noinline)) void tile(int64_t depth, A<Op> a, B<Op> b, int64_t row, int64_t col,
                                    Store store) {
  Vec sums[kRows][kCols];
  IVCL_UNROLL for (int r = 0; r < kRows; ++r)
    IVCL_UNROLL for (int c = 0; c < kCols; ++c) sums[r][c] = Vec{};
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
  IVCL_UNROLL for (int r = 0; r < kRows; ++r) {
    Vec some[kCols];  // a copy: `sums` itself must not be pointed at, or it lies in memory
    IVCL_UNROLL for (int c = 0; c < kCols; ++c) some[c] = sums[r][c];
    store(row + r, col, some);
  }
}

// Rows from `row` on, kRows at a time, and what is left by halves.
template <class Op, int kRows, int kCols, class Store>
inline void rows_from(int64_t row, int64_t rows, int64_t depth, A<Op> a, B<Op> b, int64_t col,
                      const Store& store) {
  for (; row + kRows <= rows; row += kRows)
    tile<Op, kRows, kCols>(depth, {a.at + row * a.row, a.row, a.k}, b, row, col, store);
  constexpr int kHalf = kRows > 8 ? 8 : kRows > 4 ? 4 : kRows / 2;
  if constexpr (kHalf > 0) rows_from<Op, kHalf, kCols>(row, rows, depth, a, b, col, store);
}

#ifdef __AMX_BF16__
// All rows of C for kCols registers; as many rows at a time as there are tile registers for.
template <bool kSecond, int kCols, class Store>
__attribute__((noinline)) void tiles(int64_t rows, Depth<Tile> depth, A<Tile> a, B<Tile> b,
                                     int64_t col, Store store) {
  constexpr int kMost = kTileSums / kCols;
  alignas(64) float sums[kMost * kTileRows * kCols * kLanes];
  const auto some = [&](int64_t row, auto count) {
    tile_sums<kSecond, count, kCols>(depth.units, depth.block, a.at + row * a.row, a.row, b.at, b.k,
                                     sums);
    const int64_t here = std::min(rows - row, count * kTileRows);
    for (int64_t r = 0; r < here; ++r) {
      Vec x[kCols];
      IVCL_UNROLL for (int c = 0; c < kCols; ++c) x[c] = load(sums + (r * kCols + c) * kLanes);
      store(row + r, col, x);
    }
  };
  int64_t row = 0;
  for (; row + (kMost - 1) * kTileRows < rows; row += kMost * kTileRows)
    some(row, std::integral_constant<int, kMost>{});
  for (; row < rows; row += kTileRows) some(row, std::integral_constant<int, 1>{});
}
#endif

// All of C, its `cols` rounded up to whole registers; store(row, col, values) takes one to four
// registers of it. Store is copied: let it hold values, not references.
template <class Op, class Store>
inline void matmul(int64_t rows, int64_t cols, Depth<Op> depth, A<Op> a, B<Op> b,
                   const Store& store) {
  const auto strip = [&](auto width, int64_t col) {
    constexpr int kCols = decltype(width)::value;
    const B<Op> right{b.at + col, b.k};
#ifdef __AMX_BF16__
    if constexpr (std::is_same_v<Op, Tile>) {
      if (depth.second) return tiles<true, kCols>(rows, depth, a, right, col, store);
      return tiles<false, kCols>(rows, depth, a, right, col, store);
    }
#endif
    constexpr int kRows = kRegisters / kCols > 12 ? 12 : kRegisters / kCols;
    rows_from<Op, kRows, kCols>(0, rows, depth.units, a, right, col, store);
  };
  for (int64_t col = 0; col < cols;) {
    const int64_t left = (cols - col + kLanes - 1) / kLanes;
    const int width = left >= kMostColumns ? kMostColumns : int(left);
    if constexpr (kMostColumns == 4) {
      if (width == 4) strip(std::integral_constant<int, 4>{}, col);
      if (width == 3) strip(std::integral_constant<int, 3>{}, col);
    }
    if (width == 2) strip(std::integral_constant<int, 2>{}, col);
    if (width == 1) strip(std::integral_constant<int, 1>{}, col);
    col += width * kLanes;
  }
}

// Registers that lie side by side, the first n values at most.
template <class T, int kCols>
inline void store(T* at, const Vec (&x)[kCols], int64_t n) {
  if (n >= kCols * kLanes) {
    IVCL_UNROLL for (int c = 0; c < kCols; ++c) store(at + c * kLanes, x[c]);
  } else {
    for (int c = 0; c < kCols; ++c) store(at + c * kLanes, x[c], n - c * kLanes);
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

// to[col][row] = the words of row `row`, which word(row, col) reads a register of from col on. Rows
// are rounded up to whole registers by repeating the last.
template <class Word>
inline void transpose_words(int64_t rows, int64_t cols, Word word, void* to, int64_t by) {
  for (int64_t row = 0; row < rows; row += kLanes)
    for (int64_t col = 0; col < cols; col += kLanes) {
      Words square[kLanes];
      uint32_t* at = static_cast<uint32_t*>(to) + col * by + row;
      IVCL_UNROLL for (int r = 0; r < kLanes; ++r)
        square[r] = word(std::min(row + r, rows - 1), col);
      transpose(square);
      if (col + kLanes <= cols)
        IVCL_UNROLL for (int c = 0; c < kLanes; ++c) write(at + c * by, square[c]);
      else
        for (int c = 0; c < cols - col; ++c) write(at + c * by, square[c]);
    }
}

// x[rows][cols] as B with k along its rows, so that C gets a column for each row of x:
// to[units of cols][rows].
template <class T>
inline void pack_across(const T* x, int64_t distance, int64_t rows, int64_t cols, float* to,
                        int64_t by) {
  const auto whole = [=](int64_t r, int64_t c) { return (Words)load(x + r * distance + c); };
  const auto part = [=](int64_t r, int64_t c) { return (Words)load(x + r * distance + c, cols - c); };
  if (cols % kLanes == 0) transpose_words(rows, cols, whole, to, by);
  else transpose_words(rows, cols, part, to, by);
}

#ifdef __AVX512BF16__
// The first n of a register of values as they are.
inline Halves load_halves(const bf16* at, int64_t n) {
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
  for (int64_t r = 0; r < rows; r += 2, to += by, x += 2 * distance)
    for (int64_t c = 0; c < by; c += 2 * kLanes) {
      const Words a = pairs(x, c / 2, cols);
      const Words b = r + 1 < rows ? pairs(x + distance, c / 2, cols) : Words{};
      write(to + c, join(a, kFirstPairs, b));
      if (c + kLanes < by) write(to + c + kLanes, join(a, kLastPairs, b));
    }
  for (int64_t unit = (rows + 1) / 2; unit < Depth<Best>(rows).units; ++unit, to += by)
    for (int64_t c = 0; c < by; c += kLanes) write(to + c, Words{});
}

inline void pack_across(const bf16* x, int64_t distance, int64_t rows, int64_t cols, uint32_t* to,
                        int64_t by) {
  const auto whole = [=](int64_t r, int64_t c) { return read<Words>(x + r * distance + 2 * c); };
  const auto part = [=](int64_t r, int64_t c) { return pairs(x + r * distance, c, cols); };
  if (cols % (2 * kLanes) == 0) transpose_words(rows, cols / 2, whole, to, by);
  else transpose_words(rows, (cols + 1) / 2, part, to, by);
}
#endif

// x[rows][cols] as A with k along its rows, which is read an element at a time: in place where a
// unit of the product lies in memory as it is, else from a copy at `to`. Behind the first `rows`
// others can be read, `readable` in all.
template <class Op, class T>
inline A<Op> rows_of(const T* x, int64_t distance, int64_t rows, int64_t readable, int64_t cols,
                     typename Op::Unit* to) {
  const bool fits = Depth<Op>(cols).units * Op::kGroup == cols;
  const bool enough = !Op::kWholeTiles || round_up(rows, kLanes) <= readable;
  if (sizeof(T) * Op::kGroup == sizeof(to[0]) && fits && enough)
    return {reinterpret_cast<const typename Op::Unit*>(x), distance / Op::kGroup, 1};
  const int64_t by = round_up(Depth<Op>(cols).units, kLanes);
  pack_rows(x, distance, rows, cols, to, by);
  return {to, by, 1};
}

// units[k][rows] as A: in place, or where it has to lie the other way turned to `to`.
template <class Op>
inline A<Op> columns_of(const typename Op::Unit* units, Depth<Op> depth, int64_t rows,
                        typename Op::Unit* to) {
  if constexpr (!Op::kWholeTiles) {
    return {units, 1, rows};
  } else {
    const int64_t by = round_up(depth.units, kLanes);
    const auto word = [=](int64_t k, int64_t c) { return read<Words>(units + k * rows + c); };
    transpose_words(depth.units, rows, word, to, by);
    return {to, by, 1};
  }
}

// x[rows][cols] as A with k going down x.
template <class Op, class T>
inline A<Op> columns_of(const T* x, int64_t distance, int64_t rows, int64_t cols,
                        typename Op::Unit* to) {
  if constexpr (!Op::kWholeTiles) {
    const int64_t by = round_up(cols, kLanes);
    pack_down(x, distance, rows, cols, to, by);
    return {to, 1, by};
  } else {
    const int64_t units = Depth<Op>(rows).units, by = round_up(units, kLanes);
    const auto word = [=](int64_t unit, int64_t c) {
      const auto half = [=](int64_t row) {
        return row < rows ? load_halves(x + row * distance + c, cols - c) : Halves{};
      };
      return Op::of(half(2 * unit), half(2 * unit + 1));
    };
    transpose_words(units, round_up(cols, kLanes), word, to, by);
    return {to, by, 1};
  }
}

}  // namespace ivcl
