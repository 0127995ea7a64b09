// The ground of CATER and ACRE: ivcl_fast/data/synthetic/ground.py.
#pragma once

#include "ray.h"

namespace ivcl {

constexpr float kWidth = 56.48f, kStart = -23.56f, kEnd = 4.08f, kCellsPerUnit = 16;
constexpr float kAxisLength = 3.0f, kTick = 0.25f, kAxisRadius = 0.012f;
constexpr float kMachineHalf = 2.8f, kMachineHeight = 1.0f, kEdge = 0.012f;
constexpr int kNewton = 8;
constexpr float kFlat = -13.7f, kExact = 2e-3f;  // where the profile begins to rise

struct Backdrop {
  // `table` is float [2, cells]: height and slope of the profile.
  Backdrop(const float* table, int cells, float level)
      : height(table), slope(table + cells), cells(cells), level(level) {}

  static constexpr float kX = -24.0628f, kY = -17.9967f;
  const float cos = float(std::cos(2.698)), sin = float(std::sin(2.698));
  const float *height, *slope;
  int cells;
  float level;

  // Height and slope of the line between two cells of the profile.
  void at(Vec x, Vec& z, Vec& steep) const {
    const Vec place = clamp((x - kStart) * kCellsPerUnit, 0, float(cells - 2));
    const VecI32 cell = to_int(place);
    const Vec low = gather(height, cell), rise = gather(height + 1, cell) - low;
    z = low + (place - to_float(cell)) * rise;
    steep = rise * kCellsPerUnit;
  }

  Vec smooth_slope(Vec x) const {
    const Vec place = clamp((x - kStart) * kCellsPerUnit, 0, float(cells - 2));
    const VecI32 cell = to_int(place);
    const Vec low = gather(slope, cell);
    return low + (place - to_float(cell)) * (gather(slope + 1, cell) - low);
  }

  // Distance and normal where rays meet the ground; infinite where they do not.
  Vec hit(Vec3 o, Vec3 d, Vec3* normal) const {
    const Vec ax = o.x - kX, ay = o.y - kY;
    const Vec ox = cos * ax + sin * ay, oy = cos * ay - sin * ax;
    const Vec dx = cos * d.x + sin * d.y, dy = cos * d.y - sin * d.x;
    const Vec oz = o.z - level;
    const Vec plane = d.z < 0.0f ? -oz / d.z : splat(kInfinity);
    const Vec rim = dx > 0.0f ? (kEnd - ox) / dx : splat(kInfinity);
    const Vec beyond = min(plane, rim);
    VecI32 found = (beyond < kInfinity) & (beyond > 0.0f);
    Vec t = found ? beyond : Vec{};
    Vec z{}, steep{};
    if (any(found & ((ox + t * dx > kFlat) | (plane > rim)))) {
      VecI32 below = found;
      for (int i = 0; i <= kNewton && any(below); ++i) {
        at(ox + t * dx, z, steep);
        const Vec above = oz + t * d.z - z;
        below &= above < -kExact;
        t = below ? t - above / min(d.z - steep * dx, splat(-1e-6f)) : t;
      }
      at(ox + t * dx, z, steep);
      steep = smooth_slope(ox + t * dx);
    }
    const Vec x = ox + t * dx, y = oy + t * dy;
    found &= (oz + t * d.z - z < 0.02f) & (x >= kStart) & (y <= 0.0f) & (y >= -kWidth) & (t > 0.0f);
    const Vec size = 1.0f / sqrt(1.0f + steep * steep);
    *normal = {-cos * steep * size, -sin * steep * size, size};
    return found ? t : splat(kInfinity);
  }
};

// Fraction of the intervals around `at` that lies between -limit and limit.
inline Vec within(Vec at, Vec half, float limit) {
  const Vec part = min(at + half, splat(limit)) - max(at - half, splat(-limit));
  return max(part, Vec{}) / (2.0f * half);
}

// Fraction of the boxes around floor points that the tubes along an axis cover; h and w are the
// half-widths of the boxes along and across that axis.
inline Vec axis_cover(Vec along, Vec across, Vec h, Vec w) {
  const Vec line = within(along, h, kAxisLength) * within(across, w, kAxisRadius);
  const Vec number = clamp(floor(across + 0.5f), -3, 3);  // of the other axis's tick
  const Vec tick = within(across - number, w, kAxisRadius) * within(along, h, kTick / 2);
  return max(line, number != 0.0f ? tick : Vec{});
}

// Fraction of the boxes around points on ACRE's machine that its edges cover.
inline Vec edges_cover(Vec3 p, Vec3 n, Vec3 reach) {
  const auto one = [](Vec at, Vec n, Vec half, float limit) {
    return n == 0.0f ? within(limit - abs(at), half, kEdge) : Vec{};
  };
  const Vec x = one(p.x, n.x, reach.x, kMachineHalf), y = one(p.y, n.y, reach.y, kMachineHalf);
  return max(max(x, y), one(p.z + kMachineHeight / 2, n.z, reach.z, kMachineHeight / 2));
}

// Entry of rays into ACRE's machine.
inline Vec hit_machine(Vec3 o, Vec3 d, Vec3* normal) {
  Vec nx, ny, nz, end = splat(kInfinity);
  const auto cut = [&](Vec o, Vec d, float low, float high, Vec& near) {
    const Vec inverse = 1.0f / d, a = (low - o) * inverse, b = (high - o) * inverse;
    near = min(a, b);
    end = min(end, max(a, b));
  };
  cut(o.x, d.x, -kMachineHalf, kMachineHalf, nx);
  cut(o.y, d.y, -kMachineHalf, kMachineHalf, ny);
  cut(o.z, d.z, -kMachineHeight, 0, nz);
  const Vec t = max(max(nx, ny), nz);
  const auto side = [](Vec d) { return d < 0.0f ? splat(1.0f) : splat(-1.0f); };
  const VecI32 by_x = (nx >= ny) & (nx >= nz), by_y = ~by_x & (ny >= nz);
  *normal = {by_x ? side(d.x) : Vec{}, by_y ? side(d.y) : Vec{}, by_x | by_y ? Vec{} : side(d.z)};
  return (t < end) & (t > 0.0f) ? t : splat(kInfinity);
}

}  // namespace ivcl
