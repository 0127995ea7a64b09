// Intersection of rays with the shapes of CATER and ACRE: ivcl_fast/data/synthetic/shapes.py.
#pragma once

#include "ray.h"

namespace ivcl {

enum Shape { kCube, kSphere, kCylinder, kCone, kSnitch };

constexpr float kCubeRounding = 0.232f, kRimRounding = 0.08f, kNear = 4e-3f, kStill = 1e-3f;
constexpr float kCoarse = 0.02f;  // instead of these where no normal is needed: for shadows
constexpr float kRing = 0.9362f, kTube = 0.9362f / 4;
constexpr int kSteps[] = {12, 0, 8, 0, 32};

// Walks along a ray from t to `end` by the distance to the surface, far(point).
template <class F>
inline Vec march(Vec3 o, Vec3 d, Vec t, Vec end, int steps, bool coarse, const F& far) {
  const float still = coarse ? kCoarse : kStill, near = coarse ? kCoarse : kNear;
  VecI32 moving = t < end;
  Vec left = splat(kInfinity);
  for (int i = 0; i <= steps && any(moving); ++i) {
    const Vec step = far(o + t * d);
    left = moving ? step : left;
    moving &= (left > still) & (t < end);
    t = moving ? t + left : t;
  }
  return (left < near) & (t < end) & (t > 0.0f) ? t : splat(kInfinity);
}

inline void slab(Vec o, Vec inverse, float half, Vec& near, Vec& end) {
  const Vec a = (-half - o) * inverse, b = (half - o) * inverse;
  near = max(near, min(a, b));
  end = min(end, max(a, b));
}

inline Vec finite(Vec t) { return t < kInfinity ? t : Vec{}; }

inline Vec hit_sphere(Vec3 o, Vec3 d, Vec3* normal) {
  const Vec b = -dot(o, d);
  const Vec3 away = o + b * d;
  const Vec inside = 1.0f - dot(away, away);
  Vec t = b - sqrt(max(inside, Vec{}));
  t = (inside > 0.0f) & (t > 0.0f) ? t : splat(kInfinity);
  if (normal) *normal = o + finite(t) * d;
  return t;
}

// An angle in turns, -1/2..1/2, to about 1e-6.
inline Vec turns(Vec y, Vec x) {
  const Vec ax = abs(x), ay = abs(y);
  const Vec q = min(ax, ay) / max(max(ax, ay), splat(1e-20f)), s = q * q;
  Vec a = s * -0.0117212f + 0.05265332f;
  a = a * s - 0.11643287f;
  a = a * s + 0.19354346f;
  a = a * s - 0.33262347f;
  a = (a * s + 0.99997726f) * q * 0.15915494f;
  a = ay > ax ? 0.25f - a : a;
  a = x < 0.0f ? 0.5f - a : a;
  return y < 0.0f ? -a : a;
}

// Cosine and sine of the middles of facets, the first of which begins at half a turn.
template <int kCount>
struct Facets {
  Facets() {
    for (int i = 0; i < kCount; ++i) {
      const double angle = 2 * M_PI * (i + 0.5 - kCount / 2) / kCount;
      cosine[i] = float(std::cos(angle)), sine[i] = float(std::sin(angle));
    }
  }
  void middle(Vec y, Vec x, Vec& cos, Vec& sin) const {
    const VecI32 all = to_int(clamp((turns(y, x) + 0.5f) * float(kCount), 0, kCount - 0.5f));
    cos = gather(cosine, all), sin = gather(sine, all);
  }
  float cosine[kCount], sine[kCount];
};
inline const Facets<32> kConeFacets;
inline const Facets<48> kRingFacets;
inline const Facets<12> kTubeFacets;

inline Vec hit_cone(Vec3 o, Vec3 d, Vec3* normal) {
  const Vec rise = 0.5f * (1.0f - o.z);
  const Vec a = d.x * d.x + d.y * d.y - 0.25f * d.z * d.z;
  const Vec b = o.x * d.x + o.y * d.y + 0.5f * rise * d.z;
  const Vec c = o.x * o.x + o.y * o.y - rise * rise;
  const Vec inside = b * b - a * c, root = sqrt(max(inside, Vec{}));
  Vec side = splat(kInfinity);
  for (float sign : {-1.0f, 1.0f}) {
    const Vec t = (sign * root - b) / a, z = o.z + t * d.z;
    side = (inside > 0.0f) & (z > -1.0f) & (z < 1.0f) & (t > 0.0f) & (t < side) ? t : side;
  }
  Vec base = (-1.0f - o.z) / d.z;
  const Vec bx = o.x + base * d.x, by = o.y + base * d.y;
  base = (bx * bx + by * by < 1.0f) & (base > 0.0f) ? base : splat(kInfinity);
  const Vec t = min(side, base);
  if (normal) {
    const Vec3 p = o + finite(t) * d;
    Vec x, y;
    kConeFacets.middle(p.y, p.x, x, y);
    const VecI32 up = side <= base;
    normal->x = up ? 0.8944272f * x : Vec{};
    normal->y = up ? 0.8944272f * y : Vec{};
    normal->z = up ? splat(0.4472136f) : splat(-1.0f);
  }
  return t;
}

inline Vec hit_cube(Vec3 o, Vec3 d, Vec3* normal) {
  constexpr float core = 1 - kCubeRounding;
  const auto outside = [](Vec q) { return max(q, Vec{}); };
  const auto far = [&](Vec3 p) {
    const Vec x = abs(p.x) - core, y = abs(p.y) - core, z = abs(p.z) - core;
    const Vec3 out{outside(x), outside(y), outside(z)};
    return sqrt(dot(out, out)) + min(max(max(x, y), z), Vec{}) - kCubeRounding;
  };
  Vec near{}, end = splat(kInfinity);
  slab(o.x, 1.0f / d.x, 1, near, end);
  slab(o.y, 1.0f / d.y, 1, near, end);
  slab(o.z, 1.0f / d.z, 1, near, end);
  const Vec t = march(o, d, near, end, kSteps[kCube], !normal, far);
  if (normal) {
    const Vec3 p = o + finite(t) * d;
    const auto part = [&](Vec x) {
      const Vec out = outside(abs(x) - core);
      return x < 0.0f ? -out : out;
    };
    *normal = unit({part(p.x), part(p.y), part(p.z)});
  }
  return t;
}

inline Vec hit_cylinder(Vec3 o, Vec3 d, float half, Vec3* normal) {
  constexpr float rim = kRimRounding;
  const auto far = [&](Vec3 p) {
    const Vec side = hypot(p.x, p.y) - (1 - rim), top = abs(p.z) - (half - rim);
    return hypot(max(side, Vec{}), max(top, Vec{})) + min(max(side, top), Vec{}) - rim;
  };
  const Vec a = 1.0f / max(d.x * d.x + d.y * d.y, splat(1e-12f));
  const Vec b = (o.x * d.x + o.y * d.y) * a, c = (o.x * o.x + o.y * o.y - 1.0f) * a;
  const Vec inside = b * b - c, root = sqrt(max(inside, Vec{}));
  Vec near = max(-b - root, Vec{}), end = inside > 0.0f ? root - b : splat(-1.0f);
  slab(o.z, 1.0f / d.z, half, near, end);
  const Vec t = march(o, d, near, end, kSteps[kCylinder], !normal, far);
  if (normal) {
    const Vec3 p = o + finite(t) * d;
    const Vec radius = max(hypot(p.x, p.y), splat(1e-6f));
    const Vec side = max(radius - (1 - rim), Vec{}) / radius;
    const Vec top = max(abs(p.z) - (half - rim), Vec{});
    *normal = unit({p.x * side, p.y * side, p.z < 0.0f ? -top : top});
  }
  return t;
}

// Unit vectors of the snitch's rings: two in the plane, and the axis. Facets begin at the first.
struct RingFrames {
  RingFrames() {
    const double axes[3][3] = {{0, 0, 1}, {0.80, -0.58, 0.14}, {0.58, 0.82, 0}};
    const int least[3] = {0, 2, 2};  // component of the axis
    for (int i = 0; i < 3; ++i) {
      double z[3], e[3] = {}, x[3], y[3];
      unit(axes[i], z);
      e[least[i]] = 1;
      cross(e, z, x);
      unit(x, x);
      cross(z, x, y);
      for (int j = 0; j < 3; ++j)
        at[i][0][j] = float(x[j]), at[i][1][j] = float(y[j]), at[i][2][j] = float(z[j]);
    }
  }
  static void unit(const double* a, double* result) {
    const double length = std::sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2]);
    for (int j = 0; j < 3; ++j) result[j] = a[j] / length;
  }
  static void cross(const double* a, const double* b, double* result) {
    for (int j = 0; j < 3; ++j) {
      const int k = (j + 1) % 3, l = (j + 2) % 3;
      result[j] = a[k] * b[l] - a[l] * b[k];
    }
  }
  float at[3][3][3];
};
inline const RingFrames kRings;

inline Vec hit_snitch(Vec3 o, Vec3 d, Vec3* normal) {
  const auto far = [&](Vec3 p) {
    const Vec square = dot(p, p);
    Vec best = splat(kInfinity);
    for (const auto& ring : kRings.at) {
      const Vec z = dot(p, splat3(ring[2]));
      const Vec out = sqrt(max(square - z * z, Vec{})) - kRing;
      best = min(best, out * out + z * z);
    }
    return sqrt(best) - kTube;
  };
  const Vec b = -dot(o, d);
  const Vec3 away = o + b * d;
  const Vec inside = (kRing + kTube) * (kRing + kTube) - dot(away, away);
  const Vec root = sqrt(max(inside, Vec{})), end = inside > 0.0f ? b + root : splat(-1.0f);
  const Vec t = march(o, d, max(b - root, Vec{}), end, kSteps[kSnitch], !normal, far);
  if (normal) {
    const Vec3 p = o + finite(t) * d;
    Vec best = splat(kInfinity);
    for (const auto& ring : kRings.at) {
      const Vec3 axes[] = {splat3(ring[0]), splat3(ring[1]), splat3(ring[2])};
      const Vec x = dot(p, axes[0]), y = dot(p, axes[1]), z = dot(p, axes[2]);
      const Vec out = hypot(x, y) - kRing, distance = out * out + z * z;
      const VecI32 nearest = distance < best;
      if (!any(nearest)) continue;
      Vec cos, sin, rise, lean;
      kRingFacets.middle(y, x, cos, sin);
      kTubeFacets.middle(z, out, lean, rise);
      const Vec3 facet = (lean * cos) * axes[0] + (lean * sin) * axes[1] + rise * axes[2];
      *normal = select(nearest, facet, *normal);
      best = min(best, distance);
    }
  }
  return t;
}

inline Vec hit_shape(int shape, float half, Vec3 o, Vec3 d, Vec3* normal) {
  switch (shape) {
    case kCube: return hit_cube(o, d, normal);
    case kSphere: return hit_sphere(o, d, normal);
    case kCylinder: return hit_cylinder(o, d, half, normal);
    case kCone: return hit_cone(o, d, normal);
    default: return hit_snitch(o, d, normal);
  }
}

// The radius of a sphere around a shape, whose center is kLower on the shape's z axis for a cone.
constexpr float kLower = -0.25f;
inline float bound(int shape, float half) {
  switch (shape) {
    case kCube: return (1 - kCubeRounding) * std::sqrt(3.0f) + kCubeRounding;
    case kSphere: return 1.0f;
    case kCylinder: return std::hypot(1.0f, half);
    case kCone: return 1.25f;
    default: return kRing + kTube;
  }
}

}  // namespace ivcl
