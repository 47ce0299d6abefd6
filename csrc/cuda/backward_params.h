// Parameters and shapes of the backward kernels.
#pragma once

#include "cuda/params.h"

namespace fastht::cuda {

// What the gate's gradient needs, and leaves for the finishing kernel.
struct GateParams {
  const float* gate;      // [B, 4]
  const float* bank;      // [3, 50, C]: the three kernels as 7x7, not scaled by the filter
  const float* pooled;    // [B, C] sums of u over the patches
  Array spectral_filter;  // [channels] or [channels, frequencies]
  Array weight0, bias0, weight2;
  float* records;         // [B, record_size]
  Filter filter;
  int channels, hidden, frequencies;  // hidden: 0 without a gate
};
// One image's record: d logits [3], nothing, constant [C] (the gate's gradient of each pixel of u), d filter
// [C] (of a channel filter), mean [C] (of the filtered map), d hidden [hidden], hidden [hidden].
FASTHT_BOTH constexpr int record_constant() { return 4; }
FASTHT_BOTH constexpr int record_filter(int padded) { return 4 + padded; }
FASTHT_BOTH constexpr int record_mean(int padded) { return 4 + 2 * padded; }
FASTHT_BOTH constexpr int record_d_hidden(int padded) { return 4 + 3 * padded; }
FASTHT_BOTH constexpr int record_hidden(int padded, int hidden) { return 4 + 3 * padded + hidden; }
FASTHT_BOTH constexpr int record_size(int padded, int hidden) {
  return (4 + 3 * padded + 2 * hidden + 3) / 4 * 4;
}

struct ContractParams {
  Tokens dout;
  const void* u;            // [B, N, C] of the products' format
  const void* f;            // what the convolutions read: u itself unless the filter is a full one
  const float* kernels;     // [B, 50, C]
  const void* up;           // W2: k features in memory order, narrow numbers; [D / 32][C / 8]
  const void* point;        // P1: k in memory order, narrow numbers; [C / 8][C / 32]
  const void* point_back;   // P1 transposed: as P1
  const float* point_bias;  // [C]
  void* dv;                 // [B, N, C] gradient of v; of u for prefix tokens
  void* z;                  // [B, N, C]; null with d_point: no gradients of parameters
  float* d_point;           // [blocks, C + 1, C]: of the 1x1 weight, then of its bias
  float* correlation;       // [B, tiles, 50, C], the image's sum in the first tile; null: not needed
  unsigned int* counters;   // [B], zero
  Grid grid;
  int dim, tiles, rows;  // tiles of an image, of `rows` tokens
  int total, each;  // tiles of all images, of a block
  int work;  // contract_work
  int prefetched;  // features of dout that are brought to the L2 cache behind those that are copied
  Dropout dropout;
  GateParams gate;
};

FASTHT_BOTH constexpr int largest(int a, int b) { return a > b ? a : b; }
FASTHT_BOTH constexpr int gate_back_floats(int padded, int warps) {
  return 4 * padded + largest(padded, warps * 32) + 3 * warps;
}
// The tile's correlation is summed in this many parts, each by lanes of its own.
FASTHT_BOTH constexpr int correlation_splits(int pass, int warps) {
  const int group = pass < 64 ? pass / 2 : 32, blocks = pass / 2 / group;
  return (warps > 4 * blocks ? warps / (4 * blocks) : 1) * (32 / group);
}
FASTHT_BOTH constexpr int correlation_cells(int rows, const Grid& grid) {
  return (map_height(rows, grid) - 2 * kReach) * ceil_div(grid.width, kRun) * kRun;
}

// Bytes of shared memory of contract: map, bank, ring, then a place for, one after the other, v with dy
// or with slices of W2, the map of dv, and the correlation's parts. `pass`: channels at a time; `ahead`: bytes
// of a token of dout that are on their way.
FASTHT_BOTH constexpr int contract_slices_bytes(int padded, int bytes) {
  return 2 * slice_width(padded, bytes) * padded * bytes;
}
FASTHT_BOTH constexpr int contract_work(int warps, const Grid& grid, int padded, int pass, int bytes) {
  const int rows = tile_rows(warps, grid), v = rows * padded * bytes;
  const int products = v + largest(v, contract_slices_bytes(padded, bytes));
  const int cells = correlation_cells(rows, grid) * (pass * bytes + 32);
  const int sums = correlation_splits(pass, warps) * kBankRows * pass * 4;
  const int gate = gate_back_floats(padded, warps) * 4;
  return largest(largest(products, cells), largest(sums, gate));
}
FASTHT_BOTH constexpr int contract_shared(int warps, const Grid& grid, int padded, int pass,
                                          int bytes, int ahead) {
  return map_bytes(tile_rows(warps, grid), grid, pass, bytes) + kBankRows * pass * 4 +
         contract_work(warps, grid, padded, pass, bytes) +
         tile_rows(warps, grid) * ahead + 16;
}

struct MixBackParams {
  const void* dv;        // [B, N, C] of the products' format
  const void* u_norm;    // [B, N, C]
  const float* kernels;  // [B, 50, C]; their last row is not used
  const float* records;  // [B, record_size]: the gate's part of the gradient; null: none
  const float* row_sum;  // [C] row sums of the folded down-projection of the LayerNorm
  const float* scale;    // [1] of that projection
  void* du;              // [B, N, C]: with a full filter of f for patches, else of u
  float* row_means;      // [B, N, 2]
  Grid grid;
  int dim, tiles, rows, record_size;
  bool skip;  // whether v's skip around the convolutions is added here: not with a full filter
};

// Bytes of shared memory of mix_back: du, bank, map. `pass`: channels at a time.
FASTHT_BOTH constexpr int mix_back_shared(int warps, const Grid& grid, int padded, int pass,
                                          int bytes) {
  return tile_rows(warps, grid) * padded * bytes + kBankRows * pass * 4 +
         map_bytes(tile_rows(warps, grid), grid, pass, bytes);
}

// Division by a number that the host knows, of numbers below 2^31.
struct Divisor {
  unsigned int number, factor, shift;
};
FASTHT_BOTH constexpr Divisor divisor(int number) {
  unsigned int shift = 0;
  while ((1ull << shift) < static_cast<unsigned int>(number)) ++shift;
  const unsigned long long n = static_cast<unsigned int>(number);
  return {static_cast<unsigned int>(number),
          static_cast<unsigned int>((((1ull << shift) - n) << 32) / n + 1), shift};
}

struct ExpandParams {
  Tokens x, dout;
  OutTokens dx;            // null: not needed
  const void *du, *z;      // [B, N, C] of the products' format; z null: no gradients of parameters
  const float* stats;      // [B, N, 2]
  const float* row_means;  // [B, N, 2]
  const void* down;        // W1: k channels in memory order, wide numbers; [D / 8][C / 32]
  Array gammax, gamma, norm_weight;  // [D]
  float* d_weights;        // [groups, 3, C, D padded]: du' x, du' x_hat, z' dout
  float* d_up_bias;        // [groups, D padded]
  float* d_down_bias;      // [groups, C]
  Divisor tokens;          // of an image
  int total;               // tokens of the batch
  int dim, slices;         // of expand_width features
  int tiles, each;         // of the batch, of a block
};
// Features of a block of expand: fewer where an operand of its products takes more registers.
FASTHT_BOTH constexpr int expand_width(int bytes) { return bytes == 4 ? 32 : 64; }
// Its warps: so many share its features, and of each share so many the channels, 32 each.
constexpr int kExpandShares = 2;
FASTHT_BOTH constexpr int expand_parts(int padded) { return padded / 32; }
FASTHT_BOTH constexpr int expand_warps(int padded) { return kExpandShares * expand_parts(padded); }

// Quads of the columns of W1 that expand has in shared memory: where tokens are floats, C = 128 and
// products of 16-bit numbers, a warp's registers do not hold them.
FASTHT_BOTH constexpr int expand_column_quads(int padded, int bytes, int x_bytes) {
  return padded > 64 && bytes == 2 && x_bytes == 4 ? expand_width(bytes) * padded / 8 : 0;
}
// Bytes of shared memory of expand: those, and so many stages of du, z, x, dout and the tokens'
// statistics.
FASTHT_BOTH constexpr int expand_shared(int tokens, int stages, int padded, int bytes, int x_bytes) {
  return stages * tokens * (2 * padded * bytes + 2 * expand_width(bytes) * x_bytes + 16) +
         expand_column_quads(padded, bytes, x_bytes) * 16;
}

// A parameter and its gradient's array; null: there is none.
struct FinishParams {
  const float *d_weights, *d_up_bias, *d_down_bias;  // of expand, `groups` of each
  const float* d_point;      // [point_blocks, C + 1, C]
  const float* correlation;  // [B, tiles, 50, C], the image's sum in the first tile
  const float* gate;         // [B, 4]
  const float* records;      // [B, record_size]
  const float* d_filter;     // [filter_groups, filter_size] of a full filter
  Array norm_weight, norm_bias, gamma, gammax, down_weight, spectral_filter;
  Array d_norm_weight, d_norm_bias, d_gamma, d_gammax;  // gradients
  Array d_down_weight, d_down_bias_out, d_up_weight, d_up_bias_out;
  Array d_conv_weight[3], d_conv_bias[3];
  Array d_gate_weight0, d_gate_bias0, d_gate_weight2, d_gate_bias2;
  Array d_spectral_filter, d_point_weight, d_point_bias;
  Filter filter;
  int batch, dim, padded_dim, channels, hidden;
  int groups, point_blocks, tiles, filter_groups, filter_size;
};
// Blocks of finish: kFinishWidth features each, the 50 rows of the bank, the rows of the 1x1 weight
// and its bias, the gate's hidden layer, kFinishThreads numbers each of the filter.
constexpr int kFinishThreads = 256, kFinishWidth = 8;
FASTHT_BOTH constexpr int finish_blocks(int padded_dim, int padded, int hidden, int filter_size) {
  return padded_dim / kFinishWidth + kBankRows + padded + 1 + hidden +
         ceil_div(filter_size, kFinishThreads);
}
FASTHT_BOTH constexpr int finish_shared(int padded) {
  return (3 * kFinishThreads + padded) * 4;
}

}  // namespace fastht::cuda
