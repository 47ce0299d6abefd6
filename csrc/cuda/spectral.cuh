// The full spectral filter (eq. 2) as small products: a separable real DFT of a slice of channels,
// wholly in shared memory.
//
// Sums are plain float multiplications: a number costs about H + W of them there and back, so
// tensor cores would save little, and strict float32 would need three products for one. Both
// dimensions use the mirror symmetry of the roots, cos(-a) = cos(a) and sin(-a) = -sin(a): what
// lies at h and H - h is added and subtracted before it is multiplied (folding in), and frequencies
// k and H - k share their sums (folding out). The filter is real, so the operator is its own
// transpose, and the backward pass runs the same kernel.
#pragma once

#include "cuda/roots.cuh"
#include "cuda/spectral_params.h"

namespace fastht::cuda {

// A thread's item has two neighbouring channels throughout.
FASTHT_DEVICE Pair plus(Pair a, Pair b) { return {a.x + b.x, a.y + b.y}; }
FASTHT_DEVICE Pair minus(Pair a, Pair b) { return {a.x - b.x, a.y - b.y}; }
FASTHT_DEVICE Pair times(Pair a, float b) { return {a.x * b, a.y * b}; }
FASTHT_DEVICE void add_product(Pair& sum, Pair a, float b) {
  sum.x = fused(a.x, b, sum.x), sum.y = fused(a.y, b, sum.y);
}

// kSlice: channels of a block; kThreads: its threads.
template <class P, int kChannels, int kSlice, int kThreads>
struct Spectral {
  using F = typename P::Format;
  using Cell = typename F::Unit;
  static constexpr int kPairs = kSlice / 2, kSlices = kChannels / kSlice;
  static constexpr int kFrequencies = 4;  // along W that an item has
  static constexpr int kMirrored = 2;     // pairs of frequencies k, H - k

  const SpectralParams& p;
  const int height, width, half, pitch;
  const int channel;     // of the map: the first one of this block
  float *first, *second;  // spectra [real, imaginary][H][pitch][kSlice]
  Pair *column_roots, *row_roots;  // [H], [W]

  FASTHT_DEVICE explicit Spectral(const SpectralParams& params)
      : p(params), height(p.grid.height), width(p.grid.width), half(half_width(width)),
        pitch(spectrum_pitch(width)), channel(block_index() % kSlices * kSlice) {
    Carver carver;
    first = carver.take<float>(spectrum_floats(p.grid, kSlice));
    second = carver.take<float>(spectrum_floats(p.grid, kSlice));
    column_roots = carver.take<Pair>(height);
    row_roots = carver.take<Pair>(width);
  }

  FASTHT_DEVICE void run() {
    for (int i = thread_index(); i < height + width; i += kThreads) {
      if (i < height)
        column_roots[i] = root(i, height);
      else
        row_roots[i - height] = root(i - height, width);
    }
    const int group = block_index() / kSlices;
    const int end = smaller((group + 1) * p.each, p.batch);
    for (int image = group * p.each; image < end; ++image) {
      sync_block();  // the roots are there; all have done with the image before
      if (p.input != nullptr) {
        analyse_rows(image_of(p.input, image));
        sync_block();
        turn_columns(second, [&](int ky, int kx, int pair, Pair real, Pair imaginary) {
          put(first, ky, kx, pair, real, imaginary);
        });
        sync_block();
      }
      analyse_rows(image_of(p.from, image));
      sync_block();
      turn_columns(second, [&](int ky, int kx, int pair, Pair real, Pair imaginary) {
        filter(group, image == group * p.each, ky, kx, pair, real, imaginary);
      });
      sync_block();
      // The inverse transform's number h is the transform's number H - h.
      turn_columns(first, [&](int h, int kx, int pair, Pair real, Pair imaginary) {
        put(second, h == 0 ? 0 : height - h, kx, pair, real, imaginary);
      });
      sync_block();
      synthesise_rows(image);
    }
  }

 private:
  FASTHT_DEVICE const Cell* image_of(const void* map, int image) const {
    return units<F>(map) +
           (static_cast<long long>(image) * p.grid.tokens + p.grid.prefix) * kChannels + channel;
  }
  FASTHT_DEVICE float* at(float* spectrum, int part, int row, int kx, int pair) const {
    return spectrum + ((part * height + row) * pitch + kx) * kSlice + pair * 2;
  }
  FASTHT_DEVICE Pair get(float* spectrum, int part, int row, int kx, int pair) const {
    return load_pair<Float32>(at(spectrum, part, row, kx, pair));
  }
  FASTHT_DEVICE void put(float* spectrum, int row, int kx, int pair, Pair real,
                         Pair imaginary) const {
    store_pair<Float32>(at(spectrum, 0, row, kx, pair), real.x, real.y);
    store_pair<Float32>(at(spectrum, 1, row, kx, pair), imaginary.x, imaginary.y);
  }

  // second = the transform of each row of patches.
  FASTHT_DEVICE void analyse_rows(const Cell* map) {
    const int items = ceil_div(half, kFrequencies) * height * kPairs;
    FASTHT_ROLLED for (int item = thread_index(); item < items; item += kThreads) {
      const int pair = item % kPairs, row = item / kPairs % height;
      const int kx = item / (kPairs * height) * kFrequencies;
      const Cell* const from = map + row * width * kChannels + pair * 2;
      Turns<kFrequencies> roots(row_roots, width, kx, half);
      Pair real[kFrequencies] = {}, imaginary[kFrequencies] = {};
      FASTHT_ROLLED for (int w = 0; w < half; ++w) {
        Pair even = load_pair<F>(from + w * kChannels), odd = {0.0f, 0.0f};
        if (w > 0 && 2 * w < width) {
          const Pair mirror = load_pair<F>(from + (width - w) * kChannels);
          odd = minus(mirror, even), even = plus(even, mirror);
        }
        FASTHT_UNROLL for (int i = 0; i < kFrequencies; ++i) {
          const Pair turn = roots[i];
          add_product(real[i], even, turn.x);
          add_product(imaginary[i], odd, turn.y);
        }
        roots.advance();
      }
      FASTHT_UNROLL for (int i = 0; i < kFrequencies; ++i)
        if (kx + i < half) put(second, row, kx + i, pair, real[i], imaginary[i]);
    }
  }

  // Hands out the transform of each column: each(ky, kx, pair of channels, real, imaginary).
  template <class Each>
  FASTHT_DEVICE void turn_columns(float* spectrum, Each each) {
    const int mirrored = height / 2 + 1;
    const int items = ceil_div(mirrored, kMirrored) * half * kPairs;
    FASTHT_ROLLED for (int item = thread_index(); item < items; item += kThreads) {
      const int pair = item % kPairs, kx = item / kPairs % half;
      const int ky = item / (kPairs * half) * kMirrored;
      Turns<kMirrored> roots(column_roots, height, ky, mirrored);
      // Sums with cosines, then with sines, of the real and of the imaginary part.
      Pair real_cos[kMirrored] = {}, real_sin[kMirrored] = {};
      Pair imaginary_cos[kMirrored] = {}, imaginary_sin[kMirrored] = {};
      FASTHT_ROLLED for (int h = 0; h < mirrored; ++h) {
        Pair real = get(spectrum, 0, h, kx, pair), imaginary = get(spectrum, 1, h, kx, pair);
        Pair odd_real = {0.0f, 0.0f}, odd_imaginary = {0.0f, 0.0f};
        if (h > 0 && 2 * h < height) {
          const Pair mirror = get(spectrum, 0, height - h, kx, pair);
          const Pair mirror_imaginary = get(spectrum, 1, height - h, kx, pair);
          odd_real = minus(real, mirror), real = plus(real, mirror);
          odd_imaginary = minus(imaginary, mirror_imaginary);
          imaginary = plus(imaginary, mirror_imaginary);
        }
        FASTHT_UNROLL for (int i = 0; i < kMirrored; ++i) {
          const Pair turn = roots[i];
          add_product(real_cos[i], real, turn.x);
          add_product(imaginary_cos[i], imaginary, turn.x);
          add_product(real_sin[i], odd_real, turn.y);
          add_product(imaginary_sin[i], odd_imaginary, turn.y);
        }
        roots.advance();
      }
      FASTHT_UNROLL for (int i = 0; i < kMirrored; ++i) {
        const int k = ky + i;
        if (k >= mirrored) continue;
        each(k, kx, pair, plus(real_cos[i], imaginary_sin[i]),
             minus(imaginary_cos[i], real_sin[i]));
        if (k > 0 && 2 * k < height)
          each(height - k, kx, pair, minus(real_cos[i], imaginary_sin[i]),
               plus(imaginary_cos[i], real_sin[i]));
      }
    }
  }

  // first = a number of the spectrum times its filter, after the filter's gradient: `first` holds
  // the input's spectrum until then. Nobody but this thread reads or writes the number meanwhile,
  // or reads back its gradient.
  FASTHT_DEVICE void filter(int group, bool is_first, int ky, int kx, int pair, Pair real,
                            Pair imaginary) {
    // A frequency that is not its own mirror image stands for two in the half plane.
    const float times_in_plane = kx == 0 || 2 * kx == width ? 1.0f : 2.0f;
    const float weight = times_in_plane / static_cast<float>(height * width);
    float scale[2] = {};
    Pair both = {0.0f, 0.0f};
    if (p.input != nullptr) {
      const Pair s = get(first, 0, ky, kx, pair), t = get(first, 1, ky, kx, pair);
      both = {fused(s.x, real.x, t.x * imaginary.x), fused(s.y, real.y, t.y * imaginary.y)};
    }
    const int size = height * half;
    FASTHT_UNROLL for (int e = 0; e < 2; ++e) {
      const int c = channel + pair * 2 + e, place = c * size + ky * half + kx;
      if (c >= p.channels) continue;
      scale[e] = read(p.filter, place) * weight;
      if (p.input == nullptr) continue;
      float* const to = p.d_filter + static_cast<long long>(group) * p.channels * size + place;
      *to = fused(e == 0 ? both.x : both.y, weight, is_first ? 0.0f : *to);
    }
    put(first, ky, kx, pair, {real.x * scale[0], real.y * scale[1]},
        {imaginary.x * scale[0], imaginary.y * scale[1]});
  }

  // Each row of patches from its spectrum in `second`, columns w and W - w at once.
  FASTHT_DEVICE void synthesise_rows(int image) {
    const Cell* const skip = p.skip == nullptr ? nullptr : image_of(p.skip, image);
    Cell* const to = const_cast<Cell*>(image_of(p.to, image));
    const int items = ceil_div(half, kFrequencies) * height * kPairs;
    FASTHT_ROLLED for (int item = thread_index(); item < items; item += kThreads) {
      const int pair = item % kPairs, row = item / kPairs % height;
      const int w = item / (kPairs * height) * kFrequencies;
      Turns<kFrequencies> roots(row_roots, width, w, half);
      Pair even[kFrequencies] = {}, odd[kFrequencies] = {};
      FASTHT_ROLLED for (int kx = 0; kx < half; ++kx) {
        const Pair real = get(second, 0, row, kx, pair), imaginary = get(second, 1, row, kx, pair);
        FASTHT_UNROLL for (int i = 0; i < kFrequencies; ++i) {
          const Pair turn = roots[i];
          add_product(even[i], real, turn.x);
          add_product(odd[i], imaginary, turn.y);
        }
        roots.advance();
      }
      const auto store = [&](int column, Pair value) {
        const int place = (row * width + column) * kChannels + pair * 2;
        if (skip != nullptr) value = plus(value, load_pair<F>(skip + place));
        store_pair<F>(to + place, value.x, value.y);
      };
      FASTHT_UNROLL for (int i = 0; i < kFrequencies; ++i) {
        const int column = w + i;
        if (column >= half) continue;
        store(column, minus(even[i], odd[i]));
        if (column > 0 && 2 * column < width) store(width - column, plus(even[i], odd[i]));
      }
    }
  }
};

template <class P, int kChannels, int kSlice, int kThreads>
FASTHT_DEVICE void spectral(const SpectralParams& p) {
  Spectral<P, kChannels, kSlice, kThreads>(p).run();
}

}  // namespace fastht::cuda
