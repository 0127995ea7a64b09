// Intel AMX: 16 x 16 float32 sums in tile registers, at eight times the rate of AVX-512 or more.
//
// Operands are packed in pairs of bfloat16 (operand.h). A always has its packed values of k
// contiguous, and its rows are read in multiples of 16: rows behind the last are read, but their
// sums are never used.
#pragma once

#include <cstdint>

#include "vec.h"

namespace ivcl {

constexpr int64_t kTileRows = 16;
// Of the eight tile registers, 0..3 accumulate. The others hold A and B: 4 and 5 for the first of
// the two shapes that a thread has configured, 6 and 7 for the second.
constexpr int kAccTiles = 4;

// Inline assembly, because the intrinsics do not tell the compiler that they read and write memory.
template <int kTile>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
inline void tile_load(const void* src, int64_t row_bytes) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(src), "r"(row_bytes) : "memory");
}
template <int kTile>
inline void tile_store(void* dst, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(dst), "r"(row_bytes) : "memory");
}
template <int kAcc, int kA, int kB>
inline void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kAcc), "i"(kA), "i"(kB));
}

// Configures this thread's tile registers as long as it exists, for blocks of two lengths of k in
// pairs.
class TileConfig {
 public:
  TileConfig(int64_t first_k, int64_t second_k) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    const auto set = [&](int tile, int64_t rows, int64_t pairs) {
      config.rows[tile] = uint8_t(rows);
      config.row_bytes[tile] = uint16_t(4 * pairs);
    };
    for (int tile = 0; tile < kAccTiles; ++tile) set(tile, kTileRows, kLanes);
    set(kAccTiles, kTileRows, first_k);
    set(kAccTiles + 1, first_k, kLanes);
    set(kAccTiles + 2, kTileRows, second_k);
    set(kAccTiles + 3, second_k, kLanes);
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TileConfig() { asm volatile("tilerelease" ::: "memory"); }
  TileConfig(const TileConfig&) = delete;
};

// acc[16 * kRows][16 * kCols] = A * B, summed over k_pairs pairs of k, k_block of them at a time.
// Strides are in pairs. kSecond selects the second configured shape.
template <bool kSecond, int kRows, int kCols>
inline void amx_microkernel(int64_t k_pairs, int64_t k_block, const uint32_t* a,
                            int64_t a_row_stride, const uint32_t* b, int64_t b_k_stride,
                            float* acc) {
  static_assert(kRows * kCols <= kAccTiles);
  constexpr int kA = kAccTiles + 2 * kSecond, kB = kA + 1;
  // Tile registers are numbered in the instruction, so the loop over them is unrolled by hand.
  const auto for_each_tile = [](auto f) {
    f(std::integral_constant<int, 0>{});
    if constexpr (kRows * kCols > 1) f(std::integral_constant<int, 1>{});
    if constexpr (kRows * kCols > 2) f(std::integral_constant<int, 2>{});
    if constexpr (kRows * kCols > 3) f(std::integral_constant<int, 3>{});
  };
  for_each_tile([](auto tile) { tile_zero<tile>(); });
  for (int64_t k = 0; k < k_pairs; k += k_block)
    for_each_tile([&](auto tile) {
      constexpr int kRow = tile / kCols, kCol = tile % kCols;
      if constexpr (kCol == 0)
        tile_load<kA>(a + kRow * kTileRows * a_row_stride + k, 4 * a_row_stride);
      tile_load<kB>(b + k * b_k_stride + kCol * kLanes, 4 * b_k_stride);
      tile_dot_bf16<tile, kA, kB>();
    });
  for_each_tile([&](auto tile) {
    constexpr int kRow = tile / kCols, kCol = tile % kCols, kWidth = kCols * kLanes;
    tile_store<tile>(acc + kRow * kTileRows * kWidth + kCol * kLanes, 4 * kWidth);
  });
}

}  // namespace ivcl
