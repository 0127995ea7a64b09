// Intel AMX: products of 16 x 16 sums in tile registers, eight times and more what AVX-512 does.
//
// Operands are laid out as for pairs of bfloat16 (matmul.h), but A always with its units of k side
// by side, and down to a multiple of 16 rows (what is behind the last is read, never used).
#pragma once

#include <cstdint>

#include "vec.h"

namespace ivcl {

constexpr int64_t kTileRows = 16;
constexpr int kTileSums = 4;  // registers 0..3; then A and B of the first depth, A and B of the second

// Written out: the compiler's own do not say that they read and write memory.
template <int kTile>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
inline void tile_load(const void* at, int64_t bytes) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(at), "r"(bytes) : "memory");
}
template <int kTile>
inline void tile_store(void* at, int64_t bytes) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(at), "r"(bytes) : "memory");
}
template <int kSums, int kA, int kB>
inline void tile_multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
}

// Gives a thread's tile registers their shapes, for A and B of two lengths of k in units.
class TileShapes {
 public:
  TileShapes(int64_t first, int64_t second) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    const auto set = [&](int tile, int64_t rows, int64_t units) {
      config.rows[tile] = uint8_t(rows);
      config.row_bytes[tile] = uint16_t(4 * units);
    };
    for (int tile = 0; tile < kTileSums; ++tile) set(tile, kTileRows, kLanes);
    set(kTileSums, kTileRows, first);
    set(kTileSums + 1, first, kLanes);
    set(kTileSums + 2, kTileRows, second);
    set(kTileSums + 3, second, kLanes);
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TileShapes() { asm volatile("tilerelease" ::: "memory"); }
  TileShapes(const TileShapes&) = delete;
};

// Sums of kRows times kCols tiles over `units` of k, `block` at a time, to sums[16 * kRows][16 *
// kCols]; distances in units. kSecond: the registers of the second depth.
template <bool kSecond, int kRows, int kCols>
inline void tile_sums(int64_t units, int64_t block, const uint32_t* a, int64_t a_row,
                      const uint32_t* b, int64_t b_k, float* sums) {
  static_assert(kRows * kCols <= kTileSums);
  constexpr int kA = kTileSums + 2 * kSecond, kB = kA + 1;
  const auto all = [](auto f) {
    f(std::integral_constant<int, 0>{});
    if constexpr (kRows * kCols > 1) f(std::integral_constant<int, 1>{});
    if constexpr (kRows * kCols > 2) f(std::integral_constant<int, 2>{});
    if constexpr (kRows * kCols > 3) f(std::integral_constant<int, 3>{});
  };
  all([](auto tile) { tile_zero<tile>(); });
  for (int64_t k = 0; k < units; k += block)
    all([&](auto tile) {
      constexpr int kRow = tile / kCols, kCol = tile % kCols;
      if constexpr (kCol == 0) tile_load<kA>(a + kRow * kTileRows * a_row + k, 4 * a_row);
      tile_load<kB>(b + k * b_k + kCol * kLanes, 4 * b_k);
      tile_multiply_add<tile, kA, kB>();
    });
  all([&](auto tile) {
    constexpr int kRow = tile / kCols, kCol = tile % kCols, kWide = kCols * kLanes;
    tile_store<tile>(sums + kRow * kTileRows * kWide + kCol * kLanes, 4 * kWide);
  });
}

}  // namespace ivcl
