// Light samples, four per pixel, and their conversion to pictures.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace ivcl {

// sRGB bytes of linear light from 0 to 1.
struct Curve {
  static constexpr int kSize = 1 << 14;
  Curve() {
    for (int i = 0; i <= kSize; ++i) {
      const double x = double(i) / kSize;
      const double y = x <= 0.0031308 ? 12.92 * x : 1.055 * std::pow(x, 1 / 2.4) - 0.055;
      bytes[i] = uint8_t(255 * y + 0.5);
    }
  }
  uint8_t operator()(float x) const {
    const float inside = x > 0.0f ? std::min(x, 1.0f) : 0.0f;  // 0 for NaN
    return bytes[int(inside * kSize + 0.5f)];
  }
  uint8_t bytes[kSize + 1];
};
inline const Curve kCurve;

class Film {
 public:
  Film(int width, int height)
      : width_(width), height_(height), columns_(2 * width + 2), rows_(2 * height + 2),
        samples_(3 * columns_ * rows_), row_(columns_) {}

  // A sample of a channel; there are 2 x 2 in a pixel, and a border of one around all.
  float* at(int channel, int y, int x) {
    return &samples_[(size_t(channel) * rows_ + y + 1) * columns_ + x + 1];
  }

  // Makes a picture, uint8 [height, width, 3], with Cycles' Blackman-Harris filter of 1.5 pixels.
  void develop(uint8_t* picture) {
    constexpr float kOwn = 0.3977f, kBeside = 0.1023f;
    float* row = row_.data();
    for (int channel = 0; channel < 3; ++channel) {
      extend(channel);
      for (int y = 0; y < height_; ++y) {
        const float* fine = at(channel, 2 * y - 1, -1);
        for (int x = 0; x < columns_; ++x)
          row[x] = kBeside * (fine[x] + fine[x + 3 * columns_]) +
                   kOwn * (fine[x + columns_] + fine[x + 2 * columns_]);
        uint8_t* dst = picture + 3 * size_t(y) * width_ + channel;
        for (int x = 0; x < width_; ++x)
          dst[3 * x] = kCurve(kBeside * (row[2 * x] + row[2 * x + 3]) +
                              kOwn * (row[2 * x + 1] + row[2 * x + 2]));
      }
    }
  }

 private:
  // Fills the border with the samples beside it.
  void extend(int channel) {
    for (int y = 0; y < rows_ - 2; ++y) {
      *at(channel, y, -1) = *at(channel, y, 0);
      *at(channel, y, columns_ - 2) = *at(channel, y, columns_ - 3);
    }
    const size_t bytes = sizeof(float) * columns_;
    std::memcpy(at(channel, -1, -1), at(channel, 0, -1), bytes);
    std::memcpy(at(channel, rows_ - 2, -1), at(channel, rows_ - 3, -1), bytes);
  }

  const int width_, height_, columns_, rows_;
  std::vector<float> samples_, row_;
};

}  // namespace ivcl
