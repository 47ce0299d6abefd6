// The correlation maps from which every gradient of the bank and the gate follows:
// G[tap, c] = sum over a tile's patches p of dv[p, c] * f[p + tap, c], and the sum of dv as row 49.
//
// A warp has two rows of taps, which share the rows of the map: a patch's dv meets a row of the map
// through tap row i, and one row of patches earlier through tap row i + 1. Seven patches of a row
// are in registers, and 14 sums of a pair of channels. The last row of taps stands alone and takes
// the plain sum of dv with it.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/depthwise.cuh"

namespace fastht::cuda {

// dv in shared memory, as whole rows of runs, zeros where the tile has no patch. A cell is padded,
// so that eight tokens' fragments meet in few banks.
template <class F, int kPass, int kWarps>
struct Correlation {
  using Cell = typename F::Unit;
  static constexpr int kCell = kPass + 32 / F::kBytes;
  static constexpr int kPairs = kPass / 2, kGroup = kPairs < kLanes ? kPairs : kLanes;
  static constexpr int kBlocks = kPairs / kGroup;

  static constexpr int kSplits = correlation_splits(kPass, kWarps);
  static constexpr int kRounds = kSplits / (kLanes / kGroup) * 4 * kBlocks / kWarps;

  struct Sums {
    Pair tap[2][7];
  };

  template <bool kUpper, bool kLower>
  static FASTHT_DEVICE void add_row(const Cell* map, const Pair (&now)[kRun],
                                    const Pair (&before)[kRun], Sums& sums) {
    FASTHT_UNROLL for (int x = 0; x < kRun + 6; ++x) {
      const Pair value = load_pair<F>(map + x * kPass);
      FASTHT_UNROLL for (int o = 0; o < kRun; ++o) {
        const int j = x - o;
        if (j < 0 || j > 6) continue;
        if (kUpper) {
          sums.tap[0][j].x = fused(now[o].x, value.x, sums.tap[0][j].x);
          sums.tap[0][j].y = fused(now[o].y, value.y, sums.tap[0][j].y);
        }
        if (kLower) {
          sums.tap[1][j].x = fused(before[o].x, value.x, sums.tap[1][j].x);
          sums.tap[1][j].y = fused(before[o].y, value.y, sums.tap[1][j].y);
        }
      }
    }
  }
  static FASTHT_DEVICE void load(const Cell* dv, Pair (&now)[kRun]) {
    FASTHT_UNROLL for (int o = 0; o < kRun; ++o) now[o] = load_pair<F>(dv + o * kCell);
  }

  // `count` rows of a run; `map` is at the row that the first one meets through the upper taps.
  static FASTHT_DEVICE void add_two(const Cell* map, int map_row, const Cell* dv, int dv_row,
                                    int count, Sums& sums) {
    Pair now[kRun], next[kRun] = {};
    load(dv, now);
    add_row<true, false>(map, now, next, sums);
    int m = 1;
    // Two rows a turn, which exchange their places: moving one to the other's is a move a number.
    FASTHT_ROLLED while (m < count) {
      load(dv + m * dv_row, next);
      add_row<true, true>(map + m * map_row, next, now, sums);
      if (++m == count) {
        FASTHT_UNROLL for (int o = 0; o < kRun; ++o) now[o] = next[o];
        break;
      }
      load(dv + m * dv_row, now);
      add_row<true, true>(map + m * map_row, now, next, sums);
      ++m;
    }
    add_row<false, true>(map + count * map_row, now, now, sums);
  }
  static FASTHT_DEVICE void add_last(const Cell* map, int map_row, const Cell* dv, int dv_row,
                                     int count, Sums& sums) {
    Pair now[kRun];
    FASTHT_ROLLED for (int m = 0; m < count; ++m) {
      load(dv + m * dv_row, now);
      add_row<true, false>(map + m * map_row, now, now, sums);
      FASTHT_UNROLL for (int o = 0; o < kRun; ++o) {
        sums.tap[1][0].x += now[o].x;
        sums.tap[1][0].y += now[o].y;
      }
    }
  }

  // What one job of a warp is: tap rows 2 * pair and the next, a block of channels, a split. The
  // last pair has half the others' work: not always with the same scheduler, which has every fourth
  // warp.
  struct Job {
    int pair, channel, split;
  };
  static FASTHT_DEVICE Job job_at(int index, int lane) {
    return {(index + index / 4 * 2) % 4, (index / 4 % kBlocks * kGroup + lane % kGroup) * 2,
            index / (4 * kBlocks) * (kLanes / kGroup) + lane / kGroup};
  }
  static FASTHT_DEVICE void run(const Job& job, const Cell* map, const Cell* dv,
                                const Grid& grid, const Tile& tile, Sums& sums) {
    const int runs = ceil_div(grid.width, kRun), map_row = map_width(grid.width) * kPass;
    const int dv_row = runs * kRun * kCell, steps = runs * tile.rows;
    const int end = (job.split + 1) * steps / kSplits;
    for (int step = job.split * steps / kSplits; step < end;) {
      const int run = step / tile.rows, row = step % tile.rows;
      const int count = smaller(tile.rows - row, end - step);
      const Cell* const from = map + (row + 2 * job.pair) * map_row + run * (kRun * kPass) + job.channel;
      const Cell* const grad = dv + row * dv_row + run * (kRun * kCell) + job.channel;
      if (job.pair < 3)
        add_two(from, map_row, grad, dv_row, count, sums);
      else
        add_last(from, map_row, grad, dv_row, count, sums);
      step += count;
    }
  }
  // `to`: [kSplits, kBankRows, kPass].
  static FASTHT_DEVICE void put(const Job& job, const Sums& sums, float* to) {
    float* const at = to + job.split * (kBankRows * kPass) + job.pair * (14 * kPass) + job.channel;
    FASTHT_UNROLL for (int i = 0; i < 2; ++i) FASTHT_UNROLL for (int j = 0; j < 7; ++j)
      if (job.pair < 3 || i * 7 + j <= 7)
        *reinterpret_cast<Pair*>(at + (i * 7 + j) * kPass) = sums.tap[i][j];
  }
};

}  // namespace fastht::cuda
