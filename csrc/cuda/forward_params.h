// Parameters and shapes of the forward kernels.
#pragma once

#include "cuda/params.h"

namespace fastht::cuda {

// A parameter as the right operand of a product, in fragment order and padded with zeros.
enum class Scaling : int { kNone = 0, kGammax = 1, kNorm = 2 };  // of k: the latter two are features
struct FoldMatrix {
  Array source;  // element (row, k) at row * row_stride + k * k_stride
  int rows, depth, row_stride, k_stride;
  int outputs, groups;            // blocks of 8 rows, and of 32 k, with the padding
  bool wide, memory, depth_first;  // numbers, order of k, and whether blocks [groups][outputs]
  Scaling scaling;
  void* to;
  bool tiles = false;  // whether 16-bit numbers lie as load_tiles reads them
};
constexpr int kFoldThreads = 128;
constexpr int kFoldBlocks = 4;  // of a matrix, for one block of threads
constexpr int kFoldMatrices = 5;
constexpr int kFoldImages = 16;  // whose kernels a block makes a part of
FASTHT_BOTH constexpr int fold_kernel_parts(int padded) {
  return ceil_div(kBankRows * padded, kFoldThreads);
}

// Everything that a pass reads of the parameters but the gate's layers.
struct FoldParams {
  FoldMatrix matrices[kFoldMatrices];
  Array norm_weight, norm_bias, gamma, gammax, down_weight, down_bias;
  Array point_bias, up_bias;
  Array conv_weight[3], conv_bias[3];
  Array spectral_filter;
  Filter filter;
  const float* gate;  // [B, 4], of the forward pass; null: `kernels` are not made here
  float* scale;       // [1] a power of two near the largest |gamma * ln_w|
  float* sums;        // [2, C] row sums of the norm weights, rounded; the constant part of u
  float* bank;        // [3, 50, C] the convolutions as 7x7, tap by tap, then the bias
  float* kernels;     // [B, 50, C]
  float* point_bias_out;  // [C]
  float* up_bias_out;     // [padded_dim]
  unsigned int* counters;  // [B] zeros
  int batch, dim, padded_dim, channels;
  int matrix_count;
  int first[kFoldMatrices + 5];  // blocks: of each matrix, of sums, bank, biases, kernels; the end
};

struct DownParams {
  Tokens x;
  const void *skip, *norm;  // memory order, wide numbers; [D / 32][C / 8]
  const float *sums, *scale, *bank;
  void* u;             // [B, N, C]
  void* u_norm;        // [B, N, C] or null
  float* stats;        // [B, N, 2] or null
  float* partials;     // [B, tiles, C] sums of u over the patches of a tile
  float* pooled;       // [B, C] or null
  float* gate;         // [B, 4]
  float* kernels;      // [B, 50, C]
  unsigned int* counters;  // [B], zeros
  Array spectral_filter;   // [C] or [C, frequencies]
  Array gate_weight0, gate_bias0, gate_weight2, gate_bias2;
  Grid grid;
  Filter filter;
  int dim, tiles, rows;  // tiles of an image, of `rows` tokens
  int channels, hidden, frequencies;
  float eps;
};
constexpr int kMostHidden = 32;  // a lane each
// Times 16 rows that a warp of down multiplies: a block of the matrices is read once for all of them.
FASTHT_BOTH constexpr int down_tall(int padded, int bytes) {
  return bytes == 2 && padded <= 64 ? 2 : 1;
}
// Bytes of shared memory of down: `stages` slices of both matrices and of x; then the rest.
FASTHT_BOTH constexpr int down_stage_bytes(int warps, int padded, int bytes, int x_bytes) {
  return slice_width(padded, bytes) *
         (2 * padded * bytes + 16 * down_tall(padded, bytes) * warps * x_bytes);
}
FASTHT_BOTH constexpr int down_shared(int warps, int padded, int bytes, int x_bytes, int stages) {
  return stages * down_stage_bytes(warps, padded, bytes, x_bytes) +
         ((4 + warps) * padded + kMostHidden + 8) * 4;
}

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
  int dim, tiles, rows;  // tiles of an image, of `rows` tokens
  int region;            // bytes of shared memory: mix_up_region
  int prefetched;        // features behind the early slices of x that are brought to the L2 cache
  Dropout dropout;
};

// Bytes of the largest of the maps that mix_up's tiles have: tiles that begin where a row of patches
// does touch fewer rows than map_bytes allows for.
FASTHT_BOTH constexpr int mix_up_map_bytes(int rows, const Grid& grid, int channels, int bytes) {
  int most = 0;
  for (int first = 0; first < grid.tokens; first += rows) {
    const int from = first > grid.prefix ? first - grid.prefix : 0;
    const int end = (first + rows < grid.tokens ? first + rows : grid.tokens) - grid.prefix;
    const int touched = end > from ? (end - 1) / grid.width - from / grid.width + 1 : 0;
    most = touched > most ? touched : most;
  }
  return (ceil_div(most, kTall) * kTall + 2 * kReach) * map_width(grid.width) * channels * bytes;
}

// Bytes of shared memory of mix_up beside v. First the bank and the map, then in their place two
// slices of the up-projection with its bias; from the end on downwards `ahead` slices of x, of which
// the first `early` ones lie behind the map. `pass`: channels that are convolved at a time.
FASTHT_BOTH constexpr int mix_up_weight_bytes(int padded, int bytes) {
  return slice_width(padded, bytes) * (padded * bytes + 4);
}
FASTHT_BOTH constexpr int mix_up_x_bytes(int warps, int padded, int bytes, int x_bytes) {
  return slice_width(padded, bytes) * 16 * warps * x_bytes;
}
FASTHT_BOTH constexpr int mix_up_region(int warps, const Grid& grid, int padded, int pass, int bytes,
                                        int x_bytes, int ahead, int early) {
  const int x = mix_up_x_bytes(warps, padded, bytes, x_bytes);
  const int first = mix_up_map_bytes(tile_rows(warps, grid), grid, pass, bytes) +
                    kBankRows * pass * 4 + early * x;
  const int then = 2 * mix_up_weight_bytes(padded, bytes) + ahead * x;
  return first > then ? first : then;
}
FASTHT_BOTH constexpr int mix_up_shared(int warps, const Grid& grid, int padded, int pass, int bytes,
                                        int x_bytes, int ahead, int early) {
  return mix_up_region(warps, grid, padded, pass, bytes, x_bytes, ahead, early) +
         tile_rows(warps, grid) * padded * bytes;
}

}  // namespace fastht::cuda
