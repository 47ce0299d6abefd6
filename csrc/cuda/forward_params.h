// Parameters and shapes of the forward kernels.
#pragma once

#include "cuda/params.h"

namespace fastht::cuda {

struct MixUpParams {
  Tokens x;
  OutTokens out;
  const void* u;         // [B, N, C] of the products' format
  const void* f;         // what the convolutions read: u itself unless the filter is a full one
  const float* kernels;  // [B, 50, C]
  const void* point;     // 1x1 weight: k in memory order, narrow numbers; blocks [C / 8][C / 32]
  const float* point_bias;  // [C]
  const void* up;           // up-projection: register order, wide numbers; [D / 8][C / 32]
  const float* up_bias;     // [D] padded to slices
  Grid grid;
  int dim, tiles;
  int overlay;  // whether the slices of `up` lie over the map, where memory is short
  Dropout dropout;
};

// Bytes of shared memory of mix_up, in the order in which it carves them: map and slices (apart or
// one over the other), bank, v. `pass`: channels that are convolved at a time.
FASTHT_BOTH constexpr int mix_up_slices_bytes(int padded, int bytes) {
  return 2 * slice_width(padded, bytes) * padded * bytes;
}
FASTHT_BOTH constexpr int mix_up_shared(int warps, const Grid& grid, int padded, int pass, int bytes,
                                        bool overlay) {
  const int map = map_bytes(16 * warps, grid, pass, bytes);
  const int slices = mix_up_slices_bytes(padded, bytes);
  const int both = !overlay ? map + slices : map > slices ? map : slices;
  return both + kBankRows * pass * 4 + 16 * warps * padded * bytes;
}

}  // namespace fastht::cuda
