// The gated bank of eq. 4 as one depthwise 7x7 convolution per sample, and the two correlations of
// its backward pass, on maps with a border of three zeros all around: no tap needs a bounds check.
//
// A padded map is [H + 6][W + 6][channels], a kernel [49][channels].
#pragma once

#include "cpu/vec.h"

namespace fastht::cpu {
namespace {

constexpr int64_t kTaps = 49, kReach = 3, kKernel = 7;
constexpr int64_t kMaxRun = 8;  // neighbouring outputs whose sums stay in registers

template <int Run>
FASTHT_INLINE void convolve_run(const float* map, int64_t map_row, int64_t channels,
                                const float* kernel, Vec bias, float* out) {
  Vec sums[Run];
  for (int i = 0; i < Run; ++i) sums[i] = bias;
  for (int64_t y = 0; y < kKernel; ++y) {
    Vec taps[kKernel];
    for (int64_t x = 0; x < kKernel; ++x) taps[x] = load(kernel + (y * kKernel + x) * channels);
#pragma GCC unroll 14
    for (int i = 0; i < Run + kKernel - 1; ++i) {
      const Vec value = load(map + y * map_row + i * channels);
#pragma GCC unroll 8
      for (int o = 0; o < Run; ++o)
        if (i - o >= 0 && i - o < kKernel) sums[o] += taps[i - o] * value;
    }
  }
  for (int i = 0; i < Run; ++i) store(out + i * channels, sums[i]);
}

// Output row y of the convolution: `width` pixels of `channels`.
void convolve_row(const float* map, int64_t y, int64_t width, int64_t channels, const float* kernel,
                  const float* bias, float* out) {
  const int64_t map_row = (width + 2 * kReach) * channels;
  const int64_t runs = ceil_div(width, kMaxRun);
  for (int64_t c = 0; c < channels; c += kLanes) {
    const Vec start = load(bias + c);
    for (int64_t i = 0, x = 0; i < runs; ++i) {
      const int64_t run = (width - x) / (runs - i);  // as even as the width allows
      const float* from = map + y * map_row + x * channels + c;
      float* to = out + x * channels + c;
      const float* k = kernel + c;
      switch (run) {
        case 1: convolve_run<1>(from, map_row, channels, k, start, to); break;
        case 2: convolve_run<2>(from, map_row, channels, k, start, to); break;
        case 3: convolve_run<3>(from, map_row, channels, k, start, to); break;
        case 4: convolve_run<4>(from, map_row, channels, k, start, to); break;
        case 5: convolve_run<5>(from, map_row, channels, k, start, to); break;
        case 6: convolve_run<6>(from, map_row, channels, k, start, to); break;
        case 7: convolve_run<7>(from, map_row, channels, k, start, to); break;
        default: convolve_run<8>(from, map_row, channels, k, start, to);
      }
      x += run;
    }
  }
}

template <int Run>
FASTHT_INLINE void correlate_run(const float* map, int64_t channels, const float* gradient,
                                 Vec (&sums)[kKernel]) {
  Vec values[Run];
  for (int o = 0; o < Run; ++o) values[o] = load(gradient + o * channels);
#pragma GCC unroll 14
  for (int i = 0; i < Run + kKernel - 1; ++i) {
    const Vec value = load(map + i * channels);
#pragma GCC unroll 8
    for (int o = 0; o < Run; ++o)
      if (i - o >= 0 && i - o < kKernel) sums[i - o] += values[o] * value;
  }
}

// correlation[tap] = sum over pixels p of gradient[p] * map[p + tap] for the channels of one vector
// (`map` and `gradient` padded maps, already at that vector), and the plain sum of the gradient.
void correlate(const float* map, const float* gradient, int64_t height, int64_t width,
               int64_t channels, float* correlation, float* total) {
  const int64_t map_row = (width + 2 * kReach) * channels;
  const float* inner = gradient + kReach * map_row + kReach * channels;
  const int64_t runs = ceil_div(width, kMaxRun);
  for (int64_t tap_y = 0; tap_y < kKernel; ++tap_y) {
    Vec totals[kKernel] = {};
    for (int64_t y = 0; y < height; ++y) {
      Vec sums[kKernel] = {};  // of one row: short sums keep rounding errors small
      for (int64_t i = 0, x = 0; i < runs; ++i) {
        const int64_t run = (width - x) / (runs - i);
        const float* from = map + (y + tap_y) * map_row + x * channels;
        const float* grad = inner + y * map_row + x * channels;
        switch (run) {
          case 1: correlate_run<1>(from, channels, grad, sums); break;
          case 2: correlate_run<2>(from, channels, grad, sums); break;
          case 3: correlate_run<3>(from, channels, grad, sums); break;
          case 4: correlate_run<4>(from, channels, grad, sums); break;
          case 5: correlate_run<5>(from, channels, grad, sums); break;
          case 6: correlate_run<6>(from, channels, grad, sums); break;
          case 7: correlate_run<7>(from, channels, grad, sums); break;
          default: correlate_run<8>(from, channels, grad, sums);
        }
        x += run;
      }
      for (int64_t x = 0; x < kKernel; ++x) totals[x] += sums[x];
    }
    for (int64_t x = 0; x < kKernel; ++x)
      store(correlation + (tap_y * kKernel + x) * channels, totals[x]);
  }
  Vec plain{};
  for (int64_t y = 0; y < height; ++y) {
    Vec of_row{};
    for (int64_t x = 0; x < width; ++x) of_row += load(inner + y * map_row + x * channels);
    plain += of_row;
  }
  store(total, plain);
}

}  // namespace
}  // namespace fastht::cpu
