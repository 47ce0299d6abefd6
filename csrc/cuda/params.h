// What the kernels are given: one struct by value each, and the shapes that host and device share.
//
// Included by the host's plan and by the kernels, also under NVRTC: no header, no 64-bit type but
// long long. C is the bottleneck padded to 32, 64 or 128 (`padded`); `channels` is the real one.
#pragma once

#ifdef __CUDACC__
#define FASTHT_BOTH __host__ __device__
#else
#define FASTHT_BOTH
#endif

namespace fastht::cuda {

enum class Format : int { kBfloat16 = 0, kFloat16 = 1, kFloat32 = 2 };
struct Array {  // a parameter, or its gradient
  void* data;
  Format format;
};
enum class Filter : int { kNone = 0, kChannel = 1, kFull = 2 };

// Tokens [B, N, D] of the format of x: strides in elements, neighbouring features being neighbours.
struct Tokens {
  const void* data;
  long long batch, token;
};
struct OutTokens {
  void* data;
  long long batch, token;
};

// N = prefix + height * width tokens an image.
struct Grid {
  int tokens, prefix, height, width;
};

struct Dropout {
  const unsigned long long* seed;  // in device memory; null: no dropout
  unsigned int threshold;          // on 24 random bits
  float scale;
  int quads;  // ceil(channels / 4)
};

FASTHT_BOTH constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Features that a block of down or mix_up (contract, ...) has in shared memory at a time, for
// numbers of `bytes` bytes. Matrices in fragment order are padded to a multiple of it with zeros.
FASTHT_BOTH constexpr int slice_width(int padded, int bytes) { return padded * bytes <= 256 ? 64 : 32; }

// Tokens of a tile, of `warps` warps with 16 each: as few as give an image no more tiles, so that its
// tiles are alike.
FASTHT_BOTH constexpr int tile_rows(int warps, const Grid& grid) {
  const int sixteens = ceil_div(grid.tokens, 16);
  return 16 * ceil_div(sixteens, ceil_div(sixteens, warps));
}

// The part of the map that a tile of `rows` tokens, in the order of the sequence, needs around it
// for a 7x7 convolution whose items are runs of kRun outputs in kTall rows.
constexpr int kRun = 7, kTall = 2, kReach = 3;
FASTHT_BOTH constexpr int map_width(int width) { return ceil_div(width, kRun) * kRun + 2 * kReach; }
FASTHT_BOTH constexpr int map_height(int rows, const Grid& grid) {
  const int touched = (rows + grid.width - 2) / grid.width + 1;
  return ceil_div(touched < grid.height ? touched : grid.height, kTall) * kTall + 2 * kReach;
}
FASTHT_BOTH constexpr int map_bytes(int rows, const Grid& grid, int channels, int bytes) {
  return map_height(rows, grid) * map_width(grid.width) * channels * bytes;
}
constexpr int kTaps = 49, kBankRows = 50;  // a kernel of the bank: its taps, then the bias

}  // namespace fastht::cuda
