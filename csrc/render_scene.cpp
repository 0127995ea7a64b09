// render_scene: renders frames of a scene; ivcl_fast/data/synthetic/ray_casting.py has the maths.
//
// A first pass, with one ray per pixel, lights the open floor, and finds the things that may be
// visible in a pixel or shade it. A second pass casts four rays through pixels with such things.
// One thread renders each frame.
#include "film.h"
#include "op.h"
#include "ray_light.h"

namespace ivcl {
namespace {

constexpr int kSamples = 4, kPixels = kLanes / kSamples;
constexpr float kSampleX[] = {-0.25f, 0.25f, -0.25f, 0.25f};
constexpr float kSampleY[] = {-0.25f, -0.25f, 0.25f, 0.25f};
constexpr int kCells[] = {3, 1, 2, 0};
constexpr float kJitterX[] = {-0.125f, 0.125f, 0.125f, -0.125f};
constexpr float kJitterY[] = {-0.125f, 0.125f, -0.125f, 0.125f};

struct Camera {
  const float* at;  // [4, 3]: position, right, up, forward
  int width, height;

  Vec3 ray(Vec x, Vec y) const {
    const Vec u = x * (1.0f / width) - 0.5f, v = 0.5f - y * (1.0f / height);
    return splat3(at + 9) + u * splat3(at + 3) + v * splat3(at + 6);
  }
};

struct Output {
  uint8_t* picture;
  int16_t* segments;
  float* depth;
};

// One thread's buffers for a frame.
struct Buffers {
  Buffers(int width, int height)
      : film(width, height), ground(4 * round_up(width, kLanes) * height),
        shown(width * height + kLanes) {
    for (auto& bits : shading) bits.resize(width * height + kLanes);
  }
  Film film;
  // Where the first pass meets the ground, kept while the camera stands still.
  std::vector<float> ground, camera;
  // Bits of the things that a pixel may show, and of those that may shade it from each lamp.
  std::vector<uint32_t> shown, shading[kLamps];
  std::vector<int> todo;  // pixels of the second pass
};

class Drawing {
 public:
  Drawing(const Frame& frame, Camera camera, Output output, Buffers& buffers)
      : frame_(frame), camera_(camera), output_(output), b_(buffers), eye_(splat3(camera.at)) {}

  void draw() {
    const int count = camera_.width * camera_.height;
    b_.todo.clear();
    const std::vector<float> camera(camera_.at, camera_.at + 12);
    moved_ = camera != b_.camera;
    b_.camera = camera;
    if (frame_.ground >= kMachineOff) {
      const uint32_t all = ~0u;
      std::fill(b_.shown.begin(), b_.shown.end(), all);
      for (auto& bits : b_.shading) std::fill(bits.begin(), bits.end(), all);
      for (int i = 0; i < count; ++i) b_.todo.push_back(i);
    } else {
      for (int y = 0; y < camera_.height; ++y)
        for (int x = 0; x < camera_.width; x += kLanes) first_pass(x, y);
    }
    const int todo = int(b_.todo.size());
    for (int i = 0; i < todo; i += kPixels) second_pass(i, std::min(kPixels, todo - i));
    if (output_.picture) b_.film.develop(output_.picture);
  }

 private:
  void first_pass(int x0, int y) {
    const int lanes = std::min(kLanes, camera_.width - x0);
    const Vec3 ray = camera_.ray(to_float(iota() + x0) + 0.5f, splat(y + 0.5f));
    const Vec length = sqrt(dot(ray, ray));
    const Vec3 d = (1.0f / length) * ray;
    Vec3 n;
    Vec t;
    const int start = y * camera_.width + x0;
    meet_ground(d, x0, y, t, n);
    const VecI32 floor = t < kInfinity;
    const Vec3 p = eye_ + finite(t) * d;
    const Vec scale = finite(t) / length;
    const Vec3 across = step(camera_.at + 3, 0.25f / camera_.width, ray, n, scale);
    const Vec3 upward = step(camera_.at + 6, 0.25f / camera_.height, ray, n, scale);

    VecI32 shown{}, shading[kLamps] = {};
    Lit lit;
    if (output_.picture) frame_.open_light(p, lit);
    const float pixel = 0.36f * std::max(norm(camera_.at + 3) / camera_.width,
                                         norm(camera_.at + 6) / camera_.height);
    const Vec around = sqrt(dot(across, across)) + sqrt(dot(upward, upward));
    Vec spread[kLamps];
    for (int k = 0; k < kLamps; ++k)
      spread[k] = (0.71f * norm(frame_.lamps[k].a)) * (k < kLamps - 1 ? lit.inverse[k] : splat(1));
    for (int i = 0; i < frame_.count; ++i) {
      const Thing& thing = frame_.things[i];
      shown |= close(thing, eye_, d, splat(pixel), Vec{}) & int32_t(1u << i);
      if (!output_.picture) continue;
      for (int k = 0; k < kLamps; ++k) {
        shading[k] |= close(thing, p, lit.toward[k], spread[k], around) & floor & int32_t(1u << i);
      }
    }
    // What is stored beyond the end of the row is overwritten by the next one.
    storeu(&b_.shown[start], shown);
    for (int k = 0; k < kLamps; ++k) storeu(&b_.shading[k][start], shading[k]);
    for (int i = 0; i < lanes; ++i) {
      if (shown[i]) b_.todo.push_back(start + i);
      if (!shown[i] && output_.segments) output_.segments[start + i] = kFloor;
      if (!shown[i] && output_.depth) output_.depth[start + i] = floor[i] ? scale[i] : kInfinity;
    }
    const VecI32 open = floor & (shown == 0);
    if (!output_.picture) return;
    const Vec3 indirect = frame_.indirect(p, n);
    uint32_t bits[kLamps] = {}, any_bits = 0;
    for (int k = 0; k < kLamps; ++k) {
      const VecI32 shaded = shading[k] & open;
      if (!any(shaded != 0)) continue;
      for (int i = 0; i < kLanes; ++i) bits[k] |= shaded[i];
      any_bits |= bits[k];
    }
    Vec3 light = floor_light(lit, n, indirect, open);
    const VecI32 px = (iota() + x0) & 1, jitter = px + 2 * (y & 1);
    const Vec3 reach = 2.0f * (abs(across) + abs(upward));
    const Axes marks = frame_.ground == kAxes ? axes(p, d, reach, open) : Axes{};
    for (int s = 0; s < kSamples; ++s) {
      Vec3 own = light;
      if (any_bits) {
        Lit shaded = lit;
        const Vec3 at = p + (4 * kSampleX[s]) * across - (4 * kSampleY[s]) * upward;
        const Vec u = gather(kJitterX, jitter) + kSampleX[kCells[s]];
        const Vec v = gather(kJitterY, jitter) + kSampleY[kCells[s]];
        frame_.add_shadows(at, n, VecI32{} + kNothing, open, u, v, bits, shaded);
        own = floor_light(shaded, n, indirect, open);
      }
      put_row(marks.over(own), x0, lanes, y, s);
    }
  }

  void meet_ground(Vec3 d, int x0, int y, Vec& t, Vec3& n) {
    const int packets = int(ceil_div(camera_.width, kLanes));
    float* at = &b_.ground[4 * kLanes * (y * packets + x0 / kLanes)];
    if (moved_) {
      t = frame_.backdrop.hit(eye_, d, &n);
      const Vec parts[] = {t, n.x, n.y, n.z};
      for (int i = 0; i < 4; ++i) store(at + i * kLanes, parts[i]);
    } else {
      t = load(at), n = {load(at + kLanes), load(at + 2 * kLanes), load(at + 3 * kLanes)};
    }
  }

  Vec3 floor_light(const Lit& lit, Vec3 n, Vec3 indirect, VecI32 floor) const {
    return select(floor, (kFloorColor / kPi) * (frame_.gathered(n, lit) + indirect), Vec3{});
  }

  // Stores sample s of the pixels of a register.
  void put_row(const Vec3& light, int x0, int lanes, int y, int s) {
    const Vec channels[] = {light.x, light.y, light.z};
    for (int channel = 0; channel < 3; ++channel) {
      float* dst = b_.film.at(channel, 2 * y + s / 2, 2 * x0 + s % 2);
      for (int i = 0; i < lanes; ++i) dst[2 * i] = channels[channel][i];
    }
  }

  void second_pass(int first, int pixels) {
    float x[kLanes], y[kLanes], u[kLanes], v[kLanes];
    uint32_t shown = 0, shading[kLamps] = {};
    for (int i = 0; i < kLanes; ++i) {
      const int s = i % kSamples, at = b_.todo[first + std::min(i / kSamples, pixels - 1)];
      const int px = at % camera_.width, py = at / camera_.width, jitter = px % 2 + 2 * (py % 2);
      x[i] = px + 0.5f + kSampleX[s], y[i] = py + 0.5f + kSampleY[s];
      u[i] = kSampleX[kCells[s]] + kJitterX[jitter], v[i] = kSampleY[kCells[s]] + kJitterY[jitter];
      shown |= b_.shown[at];
      for (int k = 0; k < kLamps; ++k) shading[k] |= b_.shading[k][at];
    }
    const VecI32 active = iota() < pixels * kSamples;
    const Vec3 ray = camera_.ray(load(x), load(y));
    const Vec length = sqrt(dot(ray, ray));
    const Vec3 d = (1.0f / length) * ray;
    const Hits hits = frame_.trace(eye_, d, active, VecI32{} + kNothing, shown);
    if (output_.segments || output_.depth) vote(first, pixels, hits.number, hits.t / length);
    if (!output_.picture) return;
    if (any(active & (hits.number >= 0)))
      for (uint32_t& bits : shading) bits = ~0u;
    const Vec pixel = finite(hits.t) * (norm(camera_.at + 3) / camera_.width);
    Vec3 light = frame_.shade<0>(d, hits, active, pixel, load(u), load(v), shading);
    if (frame_.ground != kPlain) {
      const Vec scale = finite(hits.t) / length;
      const Vec3 across = step(camera_.at + 3, 0.25f / camera_.width, ray, hits.normal, scale);
      const Vec3 upward = step(camera_.at + 6, 0.25f / camera_.height, ray, hits.normal, scale);
      const Vec3 reach = abs(across) + abs(upward);
      if (frame_.ground == kAxes)
        light = axes(hits.point, d, reach, active & (hits.number == kFloor)).over(light);
      else
        add_edges(light, hits, reach, active & (hits.number == kMachine), load(u), load(v));
    }
    for (int i = 0; i < pixels * kSamples; ++i) {
      const int at = b_.todo[first + i / kSamples], s = i % kSamples;
      put(light, i, 2 * (at % camera_.width) + s % 2, 2 * (at / camera_.width) + s / 2);
    }
  }

  static float norm(const float* v) { return std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]); }

  // Bits of rays that may come near a thing; rays are `around` wide and widen by `spread`.
  static VecI32 close(const Thing& thing, Vec3 o, Vec3 d, Vec spread, Vec around) {
    const Vec3 to = splat3(thing.middle) - o;
    const Vec along = dot(to, d), away = dot(to, to) - along * along;
    const Vec reach = thing.bound + around + spread * max(along, Vec{});
    return (away < reach * reach) & (along > -reach);
  }

  // Distance that a hit point moves with a step of one pixel.
  static Vec3 step(const float* direction, float size, Vec3 ray, Vec3 n, Vec scale) {
    const Vec3 move = size * splat3(direction);
    return scale * (move - (dot(move, n) / dot(ray, n)) * ray);
  }

  // The tubes along x and along y on the floor: the fraction that they cover, and their light.
  struct Axes {
    Vec cover_x{}, cover_y{};
    Vec3 light_x{}, light_y{};

    Vec3 over(Vec3 light) const { return lerp(lerp(light, light_x, cover_x), light_y, cover_y); }
  };

  // `reach`: half the width of the floor area of a ray.
  Axes axes(Vec3 p, Vec3 d, Vec3 reach, VecI32 floor) const {
    Axes axes;
    floor &= (abs(p.x) < 4.0f) & (abs(p.y) < 4.0f);
    if (!any(floor)) return axes;
    axes.cover_x = floor ? axis_cover(p.x, p.y, reach.x, reach.y) : Vec{};
    axes.cover_y = floor ? axis_cover(p.y, p.x, reach.y, reach.x) : Vec{};
    if (!any((axes.cover_x > 0.0f) | (axes.cover_y > 0.0f))) return axes;
    Lit lit;
    frame_.open_light(p, lit);
    const Vec3 up{Vec{}, Vec{}, splat(1)}, under = frame_.below(p, up);
    axes.light_x = frame_.tubes(d, true, under, lit);
    axes.light_y = frame_.tubes(d, false, under, lit);
    return axes;
  }

  void add_edges(Vec3& light, const Hits& hits, Vec3 reach, VecI32 machine, Vec u, Vec v) const {
    const Vec cover = edges_cover(hits.point, hits.normal, reach);
    machine &= cover > 0.0f;
    if (!any(machine)) return;
    const uint32_t all = ~0u, bits[kLamps] = {all, all, all, all};
    Lit lit;
    frame_.open_light(hits.point, lit);
    frame_.add_shadows(hits.point, hits.normal, hits.number, machine, u, v, bits, lit);
    const Vec3 edge = (kEdgeColor / kFloorColor) * frame_.floor_light(hits.point, hits.normal, lit);
    light = select(machine, lerp(light, edge, cover), light);
  }

  void vote(int first, int pixels, VecI32 number, Vec depth) {
    for (int i = 0; i < pixels; ++i) {
      int best = 0, most = 0;
      for (int s = 0; s < kSamples; ++s) {
        int votes = 0;
        for (int other = 0; other < kSamples; ++other)
          votes += number[i * kSamples + other] == number[i * kSamples + s];
        if (votes > most) best = s, most = votes;
      }
      float total = 0;
      const int winner = number[i * kSamples + best];
      for (int s = 0; s < kSamples; ++s)
        if (number[i * kSamples + s] == winner) total += depth[i * kSamples + s];
      const int at = b_.todo[first + i];
      if (output_.segments) output_.segments[at] = winner == kNothing ? kFloor : winner;
      if (output_.depth) output_.depth[at] = total / most;
    }
  }

  void put(const Vec3& light, int lane, int x, int y) {
    *b_.film.at(0, y, x) = light.x[lane];
    *b_.film.at(1, y, x) = light.y[lane];
    *b_.film.at(2, y, x) = light.z[lane];
  }

  const Frame& frame_;
  const Camera camera_;
  const Output output_;
  Buffers& b_;
  const Vec3 eye_;
  bool moved_ = true;
};

std::tuple<Tensor, Tensor, Tensor> render_scene(
    const Tensor& kinds_in, const Tensor& sizes_in, const Tensor& colors_in, const Tensor& poses_in,
    const Tensor& cameras_in, const Tensor& lamps_in, const Tensor& profile_in,
    const Tensor& look_in, int64_t ground, int64_t width, int64_t height, bool with_picture,
    bool with_segments) {
  check_dtype("kinds", kinds_in, ScalarType::Long);
  check_shape("kinds", kinds_in, {kAny, 2});
  const int64_t count = kinds_in.size(0);
  if (count > kMaxThings) fail("kinds: ", count, " things are more than ", kMaxThings);
  check_shape("poses", poses_in, {kAny, count, 4, 3});
  const int64_t frames = poses_in.size(0);
  check_shape("sizes", sizes_in, {count, 2});
  check_shape("colors", colors_in, {count, 3});
  check_shape("cameras", cameras_in, {frames, 4, 3});
  check_shape("lamps", lamps_in, {kLamps, 5, 3});
  check_shape("profile", profile_in, {2, kAny});
  check_shape("look", look_in, {kLookSize});
  check_dtype("sizes", sizes_in, ScalarType::Float);
  check_dtype("colors", colors_in, ScalarType::Float);
  check_dtype("poses", poses_in, ScalarType::Float);
  check_dtype("cameras", cameras_in, ScalarType::Float);
  check_dtype("lamps", lamps_in, ScalarType::Float);
  check_dtype("profile", profile_in, ScalarType::Float);
  check_dtype("look", look_in, ScalarType::Float);
  if (ground < kAxes || ground > kMachineOn) fail("ground: ", ground, " is not one of 0 to 3");
  if (profile_in.size(1) < 2) fail("profile: ", profile_in.size(1), " cells are fewer than 2");
  constexpr int64_t kMost = 1 << 13;
  if (width < 1 || height < 1 || width > kMost || height > kMost)
    fail("width, height: ", width, " x ", height, " is not between 1 and ", kMost);

  const Tensor kinds = as_contiguous(kinds_in), sizes = as_contiguous(sizes_in),
               colors = as_contiguous(colors_in), poses = as_contiguous(poses_in),
               cameras = as_contiguous(cameras_in), lamps_tensor = as_contiguous(lamps_in),
               profile = as_contiguous(profile_in), look_tensor = as_contiguous(look_in);
  Look look;
  std::memcpy(&look, const_data<float>(look_tensor), sizeof look);
  Lamp lamps[kLamps];
  std::memcpy(lamps, const_data<float>(lamps_tensor), sizeof lamps);
  const Backdrop backdrop(const_data<float>(profile), int(profile.size(1)),
                          ground >= kMachineOff ? -1.01f : 0.0f);
  const int64_t* kind = const_data<int64_t>(kinds);
  for (int64_t i = 0; i < count; ++i)
    if (kind[2 * i] < kCube || kind[2 * i] > kSnitch)
      fail("kinds: shape ", kind[2 * i], " is not one of 0 to 4");

  const int64_t drawn = with_picture ? frames : 0, marked = with_segments ? frames : 0;
  Tensor pictures = empty_tensor({drawn, height, width, 3}, ScalarType::Byte);
  Tensor segments = empty_tensor({marked, height, width}, ScalarType::Short);
  Tensor depth = empty_tensor({marked, height, width}, ScalarType::Float);
  uint8_t* picture_data = mutable_data<uint8_t>(pictures);
  int16_t* segment_data = mutable_data<int16_t>(segments);
  float* depth_data = mutable_data<float>(depth);
  const int64_t pixels = width * height;
  const float *size = const_data<float>(sizes), *color = const_data<float>(colors);
  const float *pose = const_data<float>(poses), *camera = const_data<float>(cameras);

  parallel_for(frames, 100.0 * pixels, [&](int64_t begin, int64_t end) {
    Buffers buffers{int(width), int(height)};
    for (int64_t f = begin; f < end; ++f) {
      Frame frame(look, lamps, backdrop, Ground(ground));
      for (int64_t i = 0; i < count; ++i) {
        Thing thing;
        thing.shape = int(kind[2 * i]), thing.metal = kind[2 * i + 1] != 0;
        thing.radius = size[2 * i], thing.half = size[2 * i + 1];
        thing.bound = thing.radius * bound(thing.shape, thing.half);
        std::memcpy(thing.color, color + 3 * i, sizeof thing.color);
        const float* at = pose + (f * count + i) * 12;
        std::memcpy(thing.center, at, sizeof thing.center);
        std::memcpy(thing.axes, at + 3, sizeof thing.axes);
        const float lower = thing.shape == kCone ? kLower * thing.radius : 0;
        for (int j = 0; j < 3; ++j) thing.middle[j] = thing.center[j] + lower * thing.axes[2][j];
        frame.add(thing);
      }
      const Output output{with_picture ? picture_data + f * pixels * 3 : nullptr,
                          with_segments ? segment_data + f * pixels : nullptr,
                          with_segments ? depth_data + f * pixels : nullptr};
      Drawing(frame, {camera + 12 * f, int(width), int(height)}, output, buffers).draw();
    }
  });
  return {pictures, segments, depth};
}

IVCL_OP(render_scene)

}  // namespace
}  // namespace ivcl
