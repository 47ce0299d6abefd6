// Backward, first launch over the tokens: the gradient enters the bottleneck (eq. 4 and 5).
//
// A block has 16 tokens a warp, and a few tiles of them one after the other. v is computed again
// from the map: 49 multiplications a number against a tensor kept from the forward pass. The results
// of dout's product with W2 (project.cuh) lie as those of the 1x1 product, so GELU and dropout are
// gone back through in registers. dv is then correlated with the map, which is still there.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/correlate.cuh"
#include "cuda/gate_back.cuh"
#include "cuda/mix.cuh"
#include "cuda/project.cuh"
#include "cuda/transposed.cuh"

namespace fastht::cuda {

template <class X, class P, int kChannels, int kWarps, int kPass, int kAhead, bool kAligned>
struct Contract {
  using F = typename P::Format;
  using Cell = typename F::Unit;
  using Transposed = typename TransposedOf<P>::Type;
  using Correlate = Correlation<F, kPass, kWarps>;
  static constexpr int kThreads = kWarps * kLanes, kGroups = kChannels / 32;
  static constexpr int kBlocks = kChannels / 8, kFours = kChannels / 16;
  using Project = Projection<X, P, kChannels, kWarps, kAhead, kAligned>;

  const ContractParams& p;
  Cell* map;
  float* bank;
  Quad *v, *dy;  // [rows][C]; slices of W2 lie over dy
  Quad* ring;
  Cell* dv_map;  // over v and dy
  float* sums;   // over v and dy
  Word* flag;

  // The map is last: all other places are known when the kernel is compiled.
  FASTHT_DEVICE explicit Contract(const ContractParams& params) : p(params) {
    Carver carver;
    flag = carver.take<Word>(4);
    bank = carver.take<float>(kBankRows * kPass);
    unsigned char* const work = carver.take<unsigned char>(p.work);
    v = reinterpret_cast<Quad*>(work);
    dy = v + p.rows * (kChannels * F::kBytes / 16);
    dv_map = reinterpret_cast<Cell*>(work);
    sums = reinterpret_cast<float*>(work);
    ring = carver.take<Quad>(p.rows * kAhead / 16);
    map = carver.take<Cell>(map_height(p.rows, p.grid) * map_width(p.grid.width) * kPass);
  }

  FASTHT_DEVICE void run() {
    for (int i = 0; i < p.each; ++i) {
      const int index = block_index() * p.each + i;
      if (index >= p.total) return;
      if (i > 0) sync_block();  // all have done with the shared memory of the tile before
      run(Tile(p.grid, p.tiles, p.rows, index), index, i == 0);
    }
  }

 private:
  // An image's first token, of all images', and its part of a map. Made anew for each phase: no
  // register keeps them through those that need them all.
  FASTHT_DEVICE long long first_token(const Tile& tile) const {
    return static_cast<long long>(anew(tile.image)) * p.grid.tokens;
  }
  FASTHT_DEVICE const Cell* of_image(const void* map, const Tile& tile) const {
    return units<F>(map) + first_token(tile) * kChannels;
  }
  FASTHT_DEVICE Cell* of_image(void* map, const Tile& tile) const {
    return units<F>(map) + first_token(tile) * kChannels;
  }

  FASTHT_DEVICE void run(const Tile& tile, int index, bool first) {
    const Project project{p, ring, dy};
    make_v<P, kChannels, kPass, kThreads, Project::kGroups>(
        v, map, bank, of_image(p.u, tile), of_image(p.f, tile),
        p.kernels + static_cast<long long>(tile.image) * (kBankRows * kChannels), p.grid, tile, p.rows,
        false, [&] {
          project.start(tile);
          if constexpr (Project::kPaired) project.prefetch_tokens(tile);
        });
    float grad[kBlocks][4];  // of z, y, v in turn
    project.run(tile, grad);
    const bool busy = tile.first + Place().warp * 16 < tile.end;
    if (busy) activate(tile, grad);
    sync_block();
    if (busy) finish_dv(tile, grad);
    if (p.d_point != nullptr) point_gradient(tile, first);
    if (p.correlation == nullptr) return;
    correlate(tile, index);
    // The last block of the image to come here goes on for it.
    if (!last_to_arrive(p.counters + tile.image, p.tiles, flag)) return;
    gate_back<kChannels, kThreads>(
        p.gate, tile.image, p.tiles, p.grid.height * p.grid.width,
        p.correlation + static_cast<long long>(tile.image) * p.tiles * (kBankRows * kChannels), sums);
  }

  // Calls each(q, y) with the sums of 16 channels of the product of this lane's rows of a tile with a
  // matrix in memory order. Operands of four bytes have no place to stay in registers.
  template <class Each>
  FASTHT_DEVICE void multiply_rows(const Quad* rows, const void* matrix, Each each) {
    const Place me;
    const auto row = [&](int k) {
      typename P::Left left;
      FASTHT_UNROLL for (int half = 0; half < 2; ++half)
        left.set(half, left_row<F, kChannels>(rows, me.row0 + half * 8, k, me.lane));
      return left;
    };
    const auto add = [&](float (&sums)[2][4], int q, int k, const typename P::Left& left) {
      P::multiply_all(sums, left, static_cast<const Quad*>(matrix), 2 * q * kGroups + k, kGroups,
                      me.lane);
    };
    if constexpr (F::kBytes == 2) {
      typename P::Left left[kGroups];
      FASTHT_UNROLL for (int k = 0; k < kGroups; ++k) left[k] = row(k);
      FASTHT_UNROLL for (int q = 0; q < kFours; ++q) {
        float sums[2][4] = {};
        FASTHT_UNROLL for (int k = 0; k < kGroups; ++k) add(sums, q, k, left[k]);
        each(q, sums);
        keep_order();
      }
    } else {
      FASTHT_UNROLL for (int q = 0; q < kFours; ++q) {
        float sums[2][4] = {};
        FASTHT_ROLLED for (int k = 0; k < kGroups; ++k) add(sums, q, k, row(k));
        each(q, sums);
      }
    }
  }

  // From the gradient of z to that of y, also into `dy`; z itself on the way.
  FASTHT_DEVICE void activate(const Tile& tile, float (&grad)[kBlocks][4]) {
    const Place me;
    const long long image = first_token(tile);
    const Long seed = read_seed(p.dropout);
    multiply_rows(v, p.point, [&](int q, const float (&y)[2][4]) {
      const int channel = q * 16 + me.lane % 4 * 4;
      const Floats bias = load_four<Float32>(p.point_bias + channel);
      FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
        const int row = me.row0 + half * 8, token = tile.first + row;
        const bool patch = token >= p.grid.prefix, real = token < tile.end;
        Floats s = load_four<F>(row_at<F, kChannels>(v, row, channel));
        if (!patch) s = load_four<F>(units<F>(p.u) + (image + token) * kChannels + channel);
        float factors[4];
        dropout_factors(factors, p.dropout, seed, image + token, channel / 4);
        Floats active, upstream;
        FASTHT_UNROLL for (int e = 0; e < 4; ++e) {
          const float number = patch ? s.v[e] + y[e / 2][half * 2 + e % 2] + bias.v[e] : s.v[e];
          // Of float16 the series takes a register more than there is.
          const Normal normal_of = normal<Same<F, Bfloat16>::value>(number);
          float& to = grad[2 * q + e / 2][half * 2 + e % 2];
          to *= (normal_of.cdf + number * normal_of.density) * factors[e];
          active.v[e] = number * normal_of.cdf * factors[e];
          upstream.v[e] = patch && real ? to : 0.0f;
        }
        if (p.z != nullptr && real)
          store_four<F>(units<F>(p.z) + (image + token) * kChannels + channel, active);
        store_four<F>(row_at<F, kChannels>(dy, row, channel), upstream);
      }
    });
  }

  // dv = dy + P1' dy. A prefix token's dy is the gradient of its u, and none of the 1x1's.
  FASTHT_DEVICE void finish_dv(const Tile& tile, const float (&grad)[kBlocks][4]) {
    const Place me;
    Cell* const dv = of_image(p.dv, tile);
    multiply_rows(dy, p.point_back, [&](int q, const float (&through)[2][4]) {
      FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
        const int token = tile.first + me.row0 + half * 8;
        Floats sum;
        FASTHT_UNROLL for (int e = 0; e < 4; ++e) {
          const int at = half * 2 + e % 2;
          sum.v[e] = grad[2 * q + e / 2][at] + through[e / 2][at];
        }
        if (token < tile.end)
          store_four<F>(dv + token * kChannels + q * 16 + me.lane % 4 * 4, sum);
      }
    });
  }

  // Adds dy' v and the sums of dy to what this block has of them. A thread reads back nothing but
  // its own numbers, so that no register holds them while the block is at other things.
  FASTHT_DEVICE void point_gradient(const Tile& tile, bool first) {
    const Place me;
    constexpr int kNear = kChannels >= 64 ? 4 : 2;  // blocks of columns an item
    constexpr int kItems = kFours * (kBlocks / kNear);
    float* const to = p.d_point + static_cast<long long>(block_index()) * ((kChannels + 1) * kChannels);
    const int steps = ceil_div(tile.end - tile.first, 16);
    FASTHT_ROLLED for (int item = me.warp; item < kItems; item += kWarps) {
      const int column = item % kFours * 16, near = item / kFours * (kNear * 8);
      const int row = column + me.lane / 4, at = near + me.lane % 4 * 2;
      float c[kNear][4] = {}, total[4] = {};
      if (!first) {
        FASTHT_UNROLL for (int n = 0; n < kNear; ++n) FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
          const Pair before = load_pair<Float32>(to + (row + half * 8) * kChannels + at + n * 8);
          c[n][2 * half] = before.x, c[n][2 * half + 1] = before.y;
        }
        if (near == 0 && me.lane % 4 == 0) {  // who will write it
          total[0] = to[kChannels * kChannels + row];
          total[2] = to[kChannels * kChannels + row + 8];
        }
      }
      FASTHT_ROLLED for (int step = 0; step < steps; ++step) {
        const auto left = Transposed::template left<kChannels>(dy, step * 16, column, me.lane);
        FASTHT_UNROLL for (int n = 0; n < kNear; n += 2) {
          typename Transposed::Right right[2];
          Transposed::template right<kChannels>(right, v, step * 16, near + n * 8, me.lane);
          Transposed::multiply(c[n], left, right[0]);
          Transposed::multiply(c[n + 1], left, right[1]);
        }
        if (near == 0) Transposed::add(total, left);
      }
      FASTHT_UNROLL for (int n = 0; n < kNear; ++n) FASTHT_UNROLL for (int half = 0; half < 2; ++half)
        store_pair<Float32>(to + (row + half * 8) * kChannels + at + n * 8, c[n][2 * half],
                            c[n][2 * half + 1]);
      if (near == 0 && me.lane % 4 == 0) {
        to[kChannels * kChannels + row] = total[0];
        to[kChannels * kChannels + row + 8] = total[2];
      }
    }
  }

  // Part by part of the channels, the last one first: its map is still there.
  FASTHT_DEVICE void correlate(const Tile& tile, int index) {
    const Place me;
    FASTHT_ROLLED for (int channel = kChannels - kPass; channel >= 0; channel -= kPass) {
      sync_block();  // all have done with what lies under dv_map and, later, with the map
      if (channel < kChannels - kPass) {
        fetch_map<F, kChannels, kPass, kThreads>(map, of_image(p.f, tile), p.grid, tile, channel);
        end_group();
      }
      put_dv(tile, channel);
      wait_groups<0>();
      sync_block();
      typename Correlate::Sums parts[Correlate::kRounds] = {};
      FASTHT_UNROLL for (int round = 0; round < Correlate::kRounds; ++round)
        Correlate::run(Correlate::job_at(me.warp + round * kWarps, me.lane), map, dv_map, p.grid, tile,
                       parts[round]);
      sync_block();
      FASTHT_UNROLL for (int round = 0; round < Correlate::kRounds; ++round)
        Correlate::put(Correlate::job_at(me.warp + round * kWarps, me.lane), parts[round], sums);
      sync_block();
      float* const to = p.correlation + static_cast<long long>(index) * (kBankRows * kChannels) + channel;
      for (int i = me.thread; i < kBankRows * kPass; i += kThreads) {
        float total = 0.0f;
        FASTHT_UNROLL for (int split = 0; split < Correlate::kSplits; ++split)
          total += sums[split * (kBankRows * kPass) + i];
        to[i / kPass * kChannels + i % kPass] = total;
      }
    }
  }

  // dv of kPass channels as rows of patches, zeros between them. A thread reads back what it wrote.
  FASTHT_DEVICE void put_dv(const Tile& tile, int channel) {
    const Place me;
    constexpr int kEach = 16 / F::kBytes, kChunks = kPass / kEach;
    const int width = ceil_div(p.grid.width, kRun) * kRun;
    for (int i = me.thread; i < tile.rows * width * kChunks; i += kThreads) {
      const int cell = i / kChunks, column = cell % width;
      const int token = p.grid.prefix + (tile.top + cell / width) * p.grid.width + column;
      if (column < p.grid.width && token >= tile.first && token < tile.end) continue;
      *reinterpret_cast<Quad*>(dv_map + cell * Correlate::kCell + i % kChunks * kEach) = {};
    }
    FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
      const int token = tile.first + me.row0 + half * 8, patch = token - p.grid.prefix;
      if (patch < 0 || token >= tile.end) continue;
      const int cell = (patch / p.grid.width - tile.top) * width + patch % p.grid.width;
      const Cell* const dv = of_image(p.dv, tile) + token * kChannels + channel;
      FASTHT_UNROLL for (int q = 0; q < kPass / 16; ++q) {
        const int at = q * 16 + me.lane % 4 * 4;
        store_four<F>(dv_map + cell * Correlate::kCell + at, load_four<F>(dv + at));
      }
    }
  }
};

template <class X, class P, int kChannels, int kWarps, int kPass, int kAhead, bool kAligned>
FASTHT_DEVICE void contract(const ContractParams& p) {
  Contract<X, P, kChannels, kWarps, kPass, kAhead, kAligned>(p).run();
}

}  // namespace fastht::cuda
