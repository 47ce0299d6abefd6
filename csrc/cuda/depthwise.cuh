// The 7x7 depthwise convolution of a tile of tokens, from a map in shared memory.
//
// Work items are (pair of output rows, run of seven outputs, pair of channels): neighbouring lanes
// have neighbouring channels, an item's taps are in registers row by row, and its two rows share
// the rows of the map that they read.
#pragma once

#include "cuda/fragments.cuh"

namespace fastht::cuda {

// A tile of `rows` tokens of an image in the order of the sequence, whatever the grid.
struct Tile {
  int image, first, end;  // tokens first .. end - 1
  int top, rows;          // rows of patches that it touches: top .. top + rows - 1

  // Tile number `index` of all images' tiles, which an image has `tiles` of.
  FASTHT_DEVICE Tile(const Grid& grid, int tiles, int tokens, int index) {
    image = index / tiles;
    first = index % tiles * tokens;
    end = smaller(first + tokens, grid.tokens);
    const int patch = larger(first - grid.prefix, 0), patch_end = end - grid.prefix;
    top = patch / grid.width;
    rows = patch_end > patch ? (patch_end - 1) / grid.width - top + 1 : 0;
  }
};

// Starts to copy the tile's part of a map [N, C], with its border of zeros, to shared memory:
// [map row][map column][kPass channels], from channel `channel` on. Ends no group.
template <class F, int kChannels, int kPass, int kThreads>
FASTHT_DEVICE void fetch_map(typename F::Unit* map, const typename F::Unit* image, const Grid& grid,
                             const Tile& tile, int channel) {
  constexpr int kEach = 16 / F::kBytes, kChunks = kPass / kEach, kStep = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0, "a thread keeps its channels");
  const int width = map_width(grid.width), thread = reread_thread_index();
  const int rows = tile.rows == 0 ? 0 : ceil_div(tile.rows, kTall) * kTall + 2 * kReach;
  // Places go on by kStep: divided once, not for each copy.
  const int down = kStep / width, right = kStep % width;
  int row = thread / kChunks / width, column = thread / kChunks % width;
  const typename F::Unit* const from = image + channel + thread % kChunks * kEach;
  for (map += thread * kEach; row < rows; map += kThreads * kEach) {
    const int y = row - kReach + tile.top, x = column - kReach;
    const bool real = y >= 0 && y < grid.height && x >= 0 && x < grid.width;
    const int token = real ? grid.prefix + y * grid.width + x : 0;
    copy_async(map, from + token * kChannels, real);
    row += down, column += right;
    if (column >= width) column -= width, ++row;
  }
}

// Starts to copy the taps of kernels [50, C] of an image to shared memory [50][kPass], and `start` [C],
// or zeros where it is null, to their last row. Ends no group.
template <int kChannels, int kPass, int kThreads>
FASTHT_DEVICE void fetch_bank(float* bank, const float* image, const float* start, int channel) {
  constexpr int kChunks = kPass / 4;
  for (int i = reread_thread_index(); i < kBankRows * kChunks; i += kThreads) {
    const bool tap = i < kTaps * kChunks;
    const float* const from = tap || start == nullptr ? image + i / kChunks * kChannels : start;
    copy_async(bank + i * 4, from + channel + i % kChunks * 4, tap || start != nullptr);
  }
}

// Adds one row of the map to the two rows of outputs, through the taps of either.
template <class F, int kPass, bool kUpper, bool kLower>
FASTHT_DEVICE void convolve_row(const typename F::Unit* map, const Pair (&upper)[7],
                                const Pair (&lower)[7], Pair (&sums)[kTall][kRun]) {
  FASTHT_UNROLL for (int x = 0; x < kRun + 2 * kReach; ++x) {
    const Pair in = load_pair<F>(map + x * kPass);
    FASTHT_UNROLL for (int o = 0; o < kRun; ++o) {
      const int j = x - o;
      if (j < 0 || j > 6) continue;
      if (kUpper) {
        sums[0][o].x = fused(upper[j].x, in.x, sums[0][o].x);
        sums[0][o].y = fused(upper[j].y, in.y, sums[0][o].y);
      }
      if (kLower) {
        sums[1][o].x = fused(lower[j].x, in.x, sums[1][o].x);
        sums[1][o].y = fused(lower[j].y, in.y, sums[1][o].y);
      }
    }
  }
}

// Row i of the taps at this lane's pair of channels; kFlip: of the transposed convolution.
template <int kPass, bool kFlip>
FASTHT_DEVICE void load_taps(Pair (&taps)[7], const float* bank, int i) {
  FASTHT_UNROLL for (int j = 0; j < 7; ++j)
    taps[j] = load_pair<Float32>(bank + (kFlip ? kTaps - 1 - (i * 7 + j) : i * 7 + j) * kPass);
}

// Adds two rows of kRun outputs to `sums`; `map` and `bank` are at this lane's pair of channels,
// `map` at the upper left corner of what the outputs read, with rows `map_row` numbers apart. The
// first and last row are peeled, so that nothing is multiplied by zero; the others stay a loop,
// as 49 unrolled taps are 40 KB of code.
template <class F, int kPass, bool kFlip>
FASTHT_DEVICE void convolve_item(const typename F::Unit* map, int map_row, const float* bank,
                                 Pair (&sums)[kTall][kRun]) {
  Pair now[7], before[7] = {};
  load_taps<kPass, kFlip>(now, bank, 0);
  convolve_row<F, kPass, true, false>(map, now, before, sums);
  FASTHT_ROLLED for (int i = 1; i < 7; ++i) {
    FASTHT_UNROLL for (int j = 0; j < 7; ++j) before[j] = now[j];
    load_taps<kPass, kFlip>(now, bank, i);
    convolve_row<F, kPass, true, true>(map + i * map_row, now, before, sums);
  }
  convolve_row<F, kPass, false, true>(map + 7 * map_row, now, now, sums);
}

// Convolves the tile's patches for kPass channels from what fetch_map and fetch_bank have brought
// (waited for, behind a barrier), and hands out each pair of results, the bank's last row in it:
// put(row of the tile, channel within the pass, sum, the map's numbers at that place).
template <class F, int kPass, int kThreads, bool kFlip, class Put>
FASTHT_DEVICE void convolve(const typename F::Unit* map, const float* bank, const Grid& grid,
                            const Tile& tile, Put put) {
  constexpr int kPairs = kPass / 2, kGroup = kPairs < kLanes ? kPairs : kLanes;
  constexpr int kParts = kPairs / kGroup;
  const int thread = reread_thread_index(), map_row = map_width(grid.width) * kPass;
  const int runs = ceil_div(grid.width, kRun);
  const int items = ceil_div(tile.rows, kTall) * runs * kParts;
  for (int item = thread / kGroup; item < items; item += kThreads / kGroup) {
    const int channel = (item % kParts * kGroup + thread % kGroup) * 2;
    const int run = item / kParts % runs, row = item / kParts / runs * kTall;
    const typename F::Unit* const corner = map + row * map_row + run * kRun * kPass + channel;
    const Pair start = load_pair<Float32>(bank + kTaps * kPass + channel);
    Pair sums[kTall][kRun];
    FASTHT_UNROLL for (int t = 0; t < kTall; ++t) FASTHT_UNROLL for (int o = 0; o < kRun; ++o)
      sums[t][o] = start;
    convolve_item<F, kPass, kFlip>(corner, map_row, bank + channel, sums);
    FASTHT_UNROLL for (int t = 0; t < kTall; ++t) {
      FASTHT_UNROLL for (int o = 0; o < kRun; ++o) {
        const int column = run * kRun + o;
        const int token = grid.prefix + (tile.top + row + t) * grid.width + column;
        if (column >= grid.width || row + t >= tile.rows) continue;
        if (token < tile.first || token >= tile.end) continue;
        const auto* const centre = corner + (t + kReach) * map_row + (o + kReach) * kPass;
        put(token - tile.first, channel, sums[t][o], load_pair<F>(centre));
      }
    }
  }
}

// Rows [rows][C] of the bottleneck in shared memory, from which products take left operands in
// memory order, or transposed (transposed.cuh): where 16-byte chunk `chunk` of row `row` lies. Chunks
// are exchanged so that the lanes of a warp meet no bank twice, either way.
template <class F, int kChannels>
FASTHT_DEVICE int chunk_at(int row, int chunk) {
  constexpr int kChunks = kChannels * F::kBytes / 16;
  if (F::kBytes == 4) return row * kChunks + (chunk ^ ((row & 3) << 1 | (row & 1)));
  return row * kChunks + (chunk ^ (((row & 1) << 2 | (row >> 1 & 3)) & (kChunks - 1)));
}
// The address of channels `channel` .. of that row, up to the end of their chunk.
template <class F, int kChannels>
FASTHT_DEVICE typename F::Unit* row_at(Quad* rows, int row, int channel) {
  constexpr int kEach = 16 / F::kBytes;
  Quad* const chunk = rows + chunk_at<F, kChannels>(row, channel / kEach);
  return units<F>(static_cast<void*>(chunk)) + channel % kEach;
}
// Row `row` of the left operand of group `group` of 32 channels.
template <class F, int kChannels>
FASTHT_DEVICE Eight<F> left_row(const Quad* rows, int row, int group, int lane) {
  Eight<F> result;
  FASTHT_UNROLL for (int q = 0; q < Eight<F>::kQuads; ++q)
    result.quads[q] =
        rows[chunk_at<F, kChannels>(row, (group * 4 + lane % 4) * Eight<F>::kQuads + q)];
  return result;
}

}  // namespace fastht::cuda
