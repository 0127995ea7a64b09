// Light that rays see: ivcl_fast/data/synthetic/ray_casting.py, whose names these are.
#pragma once

#include "ray_ground.h"
#include "ray_shapes.h"

namespace ivcl {

constexpr int kFloor = -1, kMachine = -2, kNothing = -3;  // numbers of what is no thing
enum Ground { kAxes, kPlain, kMachineOff, kMachineOn };
constexpr int kLamps = 4, kMaxThings = 32;
constexpr float kFloorColor = 0.8f, kGlossColor = 0.8f, kLampWidth = 0.02f;
constexpr float kEdgeColor = 0.2f;
constexpr float kEpsilon = 2e-3f;
constexpr float kPi = 3.14159265f;

struct Look {
  float sky, bounce, glow, axes, glint, side, velvet, gloss, tight, smooth, rough, curve, mirror;
};
constexpr int kLookSize = sizeof(Look) / sizeof(float);

struct Thing {
  int shape, metal;
  float radius, half, bound;
  float color[3], center[3], axes[3][3];
  float middle[3];  // of the sphere of radius `bound`
};

struct Lamp {
  float center[3], a[3], b[3], facing[3], strength[3];
};

// The first surface that rays meet.
struct Hits {
  Vec t;
  VecI32 number;
  Vec3 point, normal;
};

// Light of each lamp across its direction, and the directions.
struct Lit {
  Vec power[kLamps], inverse[kLamps];  // and 1 / distance
  Vec3 toward[kLamps];
};

inline Vec fresnel(Vec cosine, float index) {
  const Vec g = sqrt(index * index - 1.0f + cosine * cosine);
  const Vec a = (g - cosine) / (g + cosine);
  const Vec b = (cosine * (g + cosine) - 1.0f) / (cosine * (g - cosine) + 1.0f);
  return 0.5f * a * a * (1.0f + b * b);
}

// One frame of a scene.
struct Frame {
  const Look& look;
  const Lamp* lamps;
  Backdrop backdrop;
  Ground ground;
  int count;
  Thing things[kMaxThings];
  // By number of a thing + 3, so that the ground comes first.
  float red[kMaxThings + 3] = {}, green[kMaxThings + 3] = {}, blue[kMaxThings + 3] = {};
  float curve[kMaxThings + 3] = {}, metal[kMaxThings + 3] = {};

  Frame(const Look& look, const Lamp* lamps, Backdrop backdrop, Ground ground)
      : look(look), lamps(lamps), backdrop(backdrop), ground(ground), count(0) {}

  void add(const Thing& thing) {
    static constexpr float kCurves[] = {0, 1, 0.5f, 0, 1};
    const int i = count + 3;
    red[i] = thing.color[0], green[i] = thing.color[1], blue[i] = thing.color[2];
    metal[i] = thing.metal ? 1 : 0;
    curve[i] = kCurves[thing.shape] / thing.radius;
    things[count++] = thing;
  }

  static Vec3 to_local(const Thing& thing, Vec3 v) {
    const auto along = [&](const float* axis) { return dot(v, splat3(axis)); };
    return {along(thing.axes[0]), along(thing.axes[1]), along(thing.axes[2])};
  }
  static Vec3 to_world(const Thing& thing, Vec3 v) {
    return v.x * splat3(thing.axes[0]) + v.y * splat3(thing.axes[1]) + v.z * splat3(thing.axes[2]);
  }

  // Rays that meet a sphere around a thing before `limit`.
  static VecI32 near(const Thing& thing, Vec3 o, Vec3 d, Vec limit) {
    const Vec3 to = splat3(thing.middle) - o;
    const Vec along = dot(to, d), away = dot(to, to) - along * along;
    const float r = thing.bound;
    return (away < r * r) & (along > -r) & (along - r < limit);
  }

  static Vec hit_thing(const Thing& thing, Vec3 o, Vec3 d, Vec3* normal) {
    const float scale = 1 / thing.radius;
    const Vec3 from = scale * to_local(thing, o - splat3(thing.center));
    return thing.radius * hit_shape(thing.shape, thing.half, from, to_local(thing, d), normal);
  }

  // `own` are things that rays start on, or kNothing; `bits` select things.
  Hits trace(Vec3 o, Vec3 d, VecI32 active, VecI32 own, uint32_t bits) const {
    Hits hits;
    hits.t = backdrop.hit(o, d, &hits.normal);
    hits.number = hits.t < kInfinity ? VecI32{} + kFloor : VecI32{} + kNothing;
    const auto nearer = [&](Vec t, int number, Vec3 normal) {
      const VecI32 first = t < hits.t;
      hits.t = first ? t : hits.t;
      hits.number = first ? VecI32{} + number : hits.number;
      hits.normal = select(first, normal, hits.normal);
    };
    if (ground >= kMachineOff) {
      Vec3 normal;
      const Vec t = hit_machine(o, d, &normal);
      nearer(t, kMachine, normal);
    }
    for (int i = 0; i < count; ++i) {
      if (!(bits >> i & 1)) continue;
      const Thing& thing = things[i];
      VecI32 rays = near(thing, o, d, hits.t) & active;
      if (thing.shape != kSnitch) rays &= own != i;
      if (!any(rays)) continue;
      Vec3 normal{};
      const Vec t = hit_thing(thing, o, d, &normal);
      nearer(rays ? t : splat(kInfinity), i, to_world(thing, normal));
    }
    hits.point = o + finite(hits.t) * d;
    return hits;
  }

  // Rays that meet a thing before `limit`.
  VecI32 blocked(Vec3 p, Vec3 n, Vec3 d, Vec limit, VecI32 own, VecI32 rays, uint32_t bits) const {
    VecI32 shadow{};
    if (ground >= kMachineOff) {
      Vec3 side;
      shadow = rays & (own != kMachine) & (hit_machine(p, d, &side) < limit);
    }
    for (int i = 0; i < count; ++i) {
      if (!(bits >> i & 1)) continue;
      const Thing& thing = things[i];
      VecI32 here = rays & ~shadow & near(thing, p, d, limit);
      if (thing.shape != kSnitch) here &= own != i;
      if (!any(here)) continue;
      shadow |= here & (hit_thing(thing, p + kEpsilon * n, d, nullptr) < limit);
    }
    return shadow;
  }

  // Light at points without shadows.
  void open_light(Vec3 p, Lit& lit) const {
    for (int k = 0; k < kLamps - 1; ++k) {
      const Vec3 to = splat3(lamps[k].center) - p;
      const Vec inverse = 1.0f / sqrt(dot(to, to));
      lit.inverse[k] = inverse;
      lit.toward[k] = inverse * to;
      const Vec facing = max(-dot(lit.toward[k], splat3(lamps[k].facing)), Vec{});
      lit.power[k] = facing * (inverse * inverse);
    }
    lit.inverse[kLamps - 1] = splat(1);
    lit.toward[kLamps - 1] = splat3(lamps[kLamps - 1].center);
    lit.power[kLamps - 1] = splat(1);
  }

  // Removes the light that things block. `bits` select things for each lamp;
  // u, v are positions on the lamps.
  void add_shadows(Vec3 p, Vec3 n, VecI32 own, VecI32 active, Vec u, Vec v, const uint32_t* bits,
                   Lit& lit) const {
    for (int k = 0; k < kLamps; ++k) {
      const VecI32 rays = active & (lit.power[k] > 0.0f) & (dot(lit.toward[k], n) > 0.0f);
      if (!bits[k] || !any(rays)) continue;
      const Lamp& lamp = lamps[k];
      Vec3 ray = splat3(lamp.center) + u * splat3(lamp.a) + v * splat3(lamp.b);
      if (k < kLamps - 1) ray = ray - p;
      const Vec length = sqrt(dot(ray, ray));
      const Vec limit = k < kLamps - 1 ? length : splat(kInfinity);
      const VecI32 dark = blocked(p, n, (1.0f / length) * ray, limit, own, rays, bits[k]);
      lit.power[k] = dark ? Vec{} : lit.power[k];
    }
  }

  Vec3 gathered(Vec3 n, const Lit& lit) const {
    Vec3 total{};
    for (int k = 0; k < kLamps; ++k) {
      const Vec cosine = max(dot(n, lit.toward[k]), Vec{});
      total = total + (lit.power[k] * cosine) * splat3(lamps[k].strength);
    }
    return total;
  }

  // Irradiance of the open floor below points.
  Vec3 ground_light(Vec3 p) const {
    Lit lit;
    open_light({p.x, p.y, Vec{}}, lit);
    Vec3 total = sky();
    for (int k = 0; k < kLamps; ++k)
      total = total + (lit.power[k] * max(lit.toward[k].z, Vec{})) * splat3(lamps[k].strength);
    return total;
  }

  // Light of the backdrop.
  Vec3 sky() const { return look.sky * splat3(lamps[kLamps - 1].strength); }

  // Indirect light of the ground.
  Vec3 indirect(Vec3 p, Vec3 n) const {
    Vec3 total = sky();
    for (int i = 0; i < count; ++i) {
      const Thing& thing = things[i];
      const Vec3 to = splat3(thing.center) - p;
      const Vec inverse = 1.0f / dot(to, to);
      const float size = thing.radius * thing.radius * 0.64f;
      const Vec share = min(size * inverse, splat(1)) * max(dot(to, n), Vec{}) * sqrt(inverse);
      total = total + (look.glow * 0.4f * share) * splat3(thing.color);
    }
    if (ground < kMachineOff) return total;
    const float side = kPi * (ground == kMachineOn ? 1.0f : look.side);
    const Vec x = max(abs(p.x) - kMachineHalf, Vec{}), y = max(abs(p.y) - kMachineHalf, Vec{});
    const Vec square = x * x + y * y, seen = 0.5f - 0.5f * sqrt(square / (square + 1.0f));
    total = total + ((p.z < -0.5f) & (n.z > 0.5f) ? side * seen : Vec{}) * machine_color();
    return total + (kFloorColor * look.bounce / 2 * (1.0f - n.z)) * ground_light(p);
  }

  Vec3 floor_light(Vec3 p, Vec3 n, const Lit& lit) const {
    return (kFloorColor / kPi) * (gathered(n, lit) + indirect(p, n));
  }

  static Vec3 machine_color() { return {splat(0.8f), splat(0.6f), splat(0.6f)}; }

  // Light of the ground on the surface of a thing, without shadows.
  Vec3 below(Vec3 p, Vec3 n) const {
    const Vec3 open = (1 / kPi) * ground_light(p), floor = kFloorColor * open;
    if (ground < kMachineOff) return floor;
    const Vec3 machine = ground == kMachineOn ? machine_color() : machine_color() * open;
    const Vec reach = max(abs(p.x + n.x), abs(p.y + n.y));
    return lerp(floor, machine, clamp(kMachineHalf + 0.5f - reach, 0, 1));
  }

  // Light that rays see; metal of camera rays (kBounce 0) mirrors what another ray sees. `pixel` is
  // the width of a pixel where camera rays end.
  template <int kBounce>
  Vec3 shade(Vec3 d, const Hits& hits, VecI32 active, Vec pixel, Vec u, Vec v,
             const uint32_t* bits) const {
    const Vec3 p = hits.point, n = hits.normal;
    const VecI32 index = hits.number + 3;
    const VecI32 floor = active & (hits.number == kFloor), thing = active & (hits.number >= 0);
    const VecI32 mirror = thing & (gather(metal, index) > 0.0f), rubber = thing & ~mirror;
    const VecI32 machine = active & (hits.number == kMachine);
    Lit lit;
    open_light(p, lit);
    add_shadows(p, n, hits.number, floor | thing | machine, u, v, bits, lit);
    Vec3 light{};
    if (any(floor | machine)) {
      light = select(floor | machine, floor_light(p, n, lit), light);
      if (any(machine)) {
        const Vec3 color = machine_color(), own = (1 / kFloorColor) * color * light;
        light = select(machine, ground == kMachineOn ? color : own, light);
      }
    }
    if (!any(thing)) return light;
    const Vec3 under = below(p, n);
    const Vec3 color{gather(red, index), gather(green, index), gather(blue, index)};
    const Vec facing = max(-dot(n, d), splat(1e-3f));
    if (any(rubber)) light = select(rubber, shade_rubber(d, n, facing, color, under, lit), light);
    if (any(mirror)) {
      const Vec3 mirrored = unit(d + (2.0f * facing) * n);
      Vec3 seen;
      if constexpr (kBounce == 0) {
        const uint32_t all = ~0u, all_lamps[kLamps] = {all, all, all, all};
        const Hits next = trace(p + kEpsilon * n, mirrored, mirror, hits.number, all);
        seen = shade<1>(mirrored, next, mirror, pixel, u, v, all_lamps);
      } else {
        seen = clamp(0.5f - 4.0f * mirrored.z, 0, 1) * under;
      }
      const Lobe lobes[] = {sharp(), blurred()};
      const Vec spread = (look.curve * pixel) * gather(curve, index);
      const Vec3 lamps_seen = shine(d, n, facing, spread, lit, lobes, 2);
      light = select(mirror, color * (look.mirror * seen + lamps_seen), light);
    }
    return light;
  }

  Vec3 shade_rubber(Vec3 d, Vec3 n, Vec facing, Vec3 color, Vec3 under, const Lit& lit) const {
    const Vec3 total = gathered(n, lit) + (0.5f * (1.0f + n.z)) * sky() +
                       (look.bounce * kPi / 2 * (1.0f - n.z)) * under;
    const Vec velvet = fresnel(facing, 1.4f), gloss = fresnel(facing, 1.2f);
    const Vec body = (1.0f - gloss) * (1.0f - velvet * (1 - look.velvet)) * (1 / kPi);
    const Lobe lobes[] = {{1, look.gloss}};
    const Vec down = clamp(0.5f - 1.5f * (d.z + 2.0f * facing * n.z), 0, 1);
    const Vec3 seen = shine(d, n, facing, Vec{}, lit, lobes, 1) + down * under;
    return body * (color * total) + (kGlossColor * gloss) * seen;
  }

  struct Lobe {
    float share, width;
  };
  Lobe sharp() const { return {look.tight, look.smooth}; }
  Lobe blurred() const { return {1 - look.tight, look.rough}; }

  // Lamps in tubes along x or y on the floor, and the floor in them.
  Vec3 tubes(Vec3 d, bool along_x, Vec3 under, const Lit& lit) const {
    Vec3 total = look.axes * under;
    for (int k = 0; k < kLamps; ++k) {
      const Vec3 half = unit(lit.toward[k] - d);
      const Vec tilt = along_x ? half.x * half.x : half.y * half.y;
      Vec sum{};
      for (const Lobe& lobe : {sharp(), blurred()}) {
        const float a2 = lobe.width * lobe.width + kLampWidth * kLampWidth;
        const Vec wide = 1.0f / (a2 + tilt);
        sum += (look.glint * lobe.share * a2) * wide * sqrt(wide);
      }
      total = total + (lit.power[k] * sum) * splat3(lamps[k].strength);
    }
    return Vec3{splat(1.0f), splat(0.843f), Vec{}} * total;
  }

  // Highlights in GGX lobes, widened by the lamps' size and curvature.
  Vec3 shine(Vec3 d, Vec3 n, Vec facing, Vec spread, const Lit& lit, const Lobe* lobes,
             int count) const {
    Vec3 total{};
    const Vec tilted = 1.0f / (facing * facing) - 1.0f;
    for (int k = 0; k < kLamps; ++k) {
      const Vec cosine = dot(n, lit.toward[k]);
      if (!any((cosine > 0.0f) & (lit.power[k] > 0.0f))) continue;
      const Vec h = dot(unit(lit.toward[k] - d), n), c = h * h;
      const Vec near = max(cosine, splat(1e-3f)), turned = 1.0f / (near * near) - 1.0f;
      Vec sum{};
      for (int i = 0; i < count; ++i) {
        const Vec a2 = lobes[i].width * lobes[i].width + kLampWidth * kLampWidth + spread * spread;
        const Vec bottom = c * (a2 - 1.0f) + 1.0f;
        const Vec seen = 1.0f + sqrt(1.0f + a2 * tilted), reached = 1.0f + sqrt(1.0f + a2 * turned);
        sum += lobes[i].share * a2 / (kPi * bottom * bottom * seen * reached * facing);
      }
      total = total + (cosine > 0.0f ? lit.power[k] * sum : Vec{}) * splat3(lamps[k].strength);
    }
    return total;
  }
};

}  // namespace ivcl
