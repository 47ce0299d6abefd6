// The full spectral filter (eq. 2), f = irfft2(rfft2(s) * A), as products with small DFT matrices.
//
// The spectrum of a map is [W / 2 + 1][H][2][channels]: real and imaginary parts of one column of
// frequencies after another, so that both dimensions' transforms are products whose right factor
// has channels as its columns. The filter is its own adjoint: A is real.
#pragma once

#include "cpu/gemm.h"
#include "cpu/problem.h"

namespace fastht::cpu {
namespace {

struct SpectralTables {
  float *row_cos, *row_sin;        // [W / 2 + 1][W]
  float *column, *column_inverse;  // [2 H][2 H]
  float *back_cos, *back_sin;      // [W][W / 2 + 1], each frequency counted as often as in W
  const float* filter;             // [W / 2 + 1][H][channels]
};

FASTHT_INLINE float root_cos(int64_t a, int64_t b, int64_t n) {
  return static_cast<float>(__builtin_cos(2 * 3.14159265358979323846 * ((a * b) % n) / n));
}
FASTHT_INLINE float root_sin(int64_t a, int64_t b, int64_t n) {
  return static_cast<float>(__builtin_sin(2 * 3.14159265358979323846 * ((a * b) % n) / n));
}

void fill_spectral_tables(int64_t height, int64_t width, const SpectralTables& to) {
  const int64_t half = width / 2 + 1;
  for (int64_t k = 0; k < half; ++k) {
    const float weight = k == 0 || 2 * k == width ? 1.0f : 2.0f;
    for (int64_t w = 0; w < width; ++w) {
      to.row_cos[k * width + w] = root_cos(k, w, width);
      to.row_sin[k * width + w] = -root_sin(k, w, width);
      to.back_cos[w * half + k] = weight * root_cos(k, w, width);
      to.back_sin[w * half + k] = -weight * root_sin(k, w, width);
    }
  }
  const float scale = 1.0f / static_cast<float>(height * width);
  for (int64_t k = 0; k < height; ++k) {
    for (int64_t h = 0; h < height; ++h) {
      const float c = root_cos(k, h, height), s = root_sin(k, h, height);
      float* forward = to.column + 4 * k * height + 2 * h;
      float* inverse = to.column_inverse + 4 * k * height + 2 * h;
      forward[0] = forward[2 * height + 1] = c;
      forward[1] = s;
      forward[2 * height] = -s;
      inverse[0] = inverse[2 * height + 1] = c * scale;
      inverse[1] = -s * scale;
      inverse[2 * height] = s * scale;
    }
  }
}

struct SpectralShape {
  int64_t height, width, channels;  // channels: distance between neighbouring pixels
  int64_t half() const { return width / 2 + 1; }
};

// spectrum = rfft2 of a map whose rows lie `map_row` apart, for `columns` channels.
void analyse(const SpectralShape& shape, const SpectralTables& tables, const float* map,
             int64_t map_row, int64_t columns, float* spectrum, float* work) {
  const int64_t c = shape.channels, h = shape.height, half = shape.half();
  for (int64_t y = 0; y < h; ++y) {
    gemm_columns(half, columns, shape.width, tables.row_cos, shape.width, map + y * map_row, c,
                 work + 2 * y * c, 2 * h * c, false);
    gemm_columns(half, columns, shape.width, tables.row_sin, shape.width, map + y * map_row, c,
                 work + (2 * y + 1) * c, 2 * h * c, false);
  }
  for (int64_t k = 0; k < half; ++k)
    gemm_columns(2 * h, columns, 2 * h, tables.column, 2 * h, work + 2 * k * h * c, c,
                 spectrum + 2 * k * h * c, c, false);
}

// map = irfft2(spectrum * filter), through the scratch `scaled` and `work`.
void filter_and_synthesise(const SpectralShape& shape, const SpectralTables& tables,
                           int64_t first_channel, const float* spectrum, int64_t columns,
                           float* scaled, float* work, float* map, int64_t map_row) {
  const int64_t c = shape.channels, h = shape.height, half = shape.half();
  for (int64_t frequency = 0; frequency < half * h; ++frequency)
    for (int64_t part = 0; part < 2; ++part)
      for (int64_t j = 0; j < columns; j += kLanes) {
        const int64_t at = (2 * frequency + part) * c + j;
        store(scaled + at,
              load(spectrum + at) * load(tables.filter + frequency * c + first_channel + j));
      }
  for (int64_t k = 0; k < half; ++k)
    gemm_columns(2 * h, columns, 2 * h, tables.column_inverse, 2 * h, scaled + 2 * k * h * c, c,
                 work + 2 * k * h * c, c, false);
  for (int64_t y = 0; y < h; ++y) {
    gemm_columns(shape.width, columns, half, tables.back_cos, half, work + 2 * y * c, 2 * h * c,
                 map + y * map_row, c, false);
    gemm_columns(shape.width, columns, half, tables.back_sin, half, work + (2 * y + 1) * c,
                 2 * h * c, map + y * map_row, c, true);
  }
}

// Adds the filter's gradient, from the spectra of the filter's input and of its output's gradient.
void filter_gradient(const SpectralShape& shape, const float* spectrum, const float* gradient,
                     float* to) {
  const int64_t c = shape.channels, h = shape.height, half = shape.half();
  const float scale = 1.0f / static_cast<float>(h * shape.width);
  for (int64_t k = 0; k < half; ++k) {
    const float weight = (k == 0 || 2 * k == shape.width ? 1.0f : 2.0f) * scale;
    for (int64_t y = 0; y < h; ++y)
      for (int64_t j = 0; j < c; j += kLanes) {
        const int64_t at = (k * h + y) * c + j, real = 2 * (k * h + y) * c + j, imag = real + c;
        const Vec both = load(spectrum + real) * load(gradient + real) +
                         load(spectrum + imag) * load(gradient + imag);
        store(to + at, load(to + at) + both * weight);
      }
  }
}

}  // namespace
}  // namespace fastht::cpu
