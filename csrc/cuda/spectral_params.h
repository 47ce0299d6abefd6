// Parameters and shapes of the full spectral filter, f = irfft2(rfft2(s) * A) (eq. 2).
#pragma once

#include "cuda/params.h"

namespace fastht::cuda {

struct SpectralParams {
  const void* from;   // [B, N, C] of the products' format: the map to filter
  const void* input;  // [B, N, C] what the forward pass filtered; null: no gradient of the filter
  const void* skip;   // [B, N, C] added to the filtered map; null: nothing
  void* to;           // [B, N, C], patches only; may be `from`
  Array filter;       // [channels, H, W / 2 + 1]
  float* d_filter;    // [groups, channels, H, W / 2 + 1], where there is an input
  Grid grid;
  int batch, channels;
  int each;  // images of a block, over which it adds up the filter's gradient
};

FASTHT_BOTH constexpr int half_width(int width) { return width / 2 + 1; }
// Frequencies along W as the spectrum's rows have room for: an odd number, so that rows of eight
// channels begin in other banks.
FASTHT_BOTH constexpr int spectrum_pitch(int width) { return half_width(width) | 1; }
FASTHT_BOTH constexpr int spectrum_floats(const Grid& grid, int slice) {
  return 2 * grid.height * spectrum_pitch(grid.width) * slice;
}
// Bytes of shared memory: two spectra of `slice` channels, and the roots of unity of H and of W.
FASTHT_BOTH constexpr int spectral_shared(const Grid& grid, int slice) {
  return (2 * spectrum_floats(grid, slice) + 2 * (grid.height + grid.width)) * 4;
}

struct RowMeansParams {
  const void *du, *u_norm;  // [tokens, C] of the products' format
  const float* row_sum;     // [C] row sums of the folded down-projection of the LayerNorm
  const float* scale;       // [1] of that projection
  float* row_means;         // [tokens, 2]
  int tokens, dim;
};
constexpr int kRowMeansThreads = 256;
FASTHT_BOTH constexpr int row_means_tokens(int padded) { return kRowMeansThreads * 8 / padded; }

}  // namespace fastht::cuda
