// Backward, last launch over the tokens: the gradient leaves the bottleneck (eq. 1), and the sums
// from which all gradients of width D follow.
//
// A block has a slice of features and a group of tiles of tokens, in order, of all images one after
// the other. x and dout come into shared memory once for everything: dx, whose du W1 has the layout
// of a token's features, and three products that sum over tokens, whose results stay in registers
// from the first tile to the last. Blocks of a group are neighbours: they share du and z in L2.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/transposed.cuh"

namespace fastht::cuda {

FASTHT_DEVICE int quotient(int a, const Divisor& b) {
  return static_cast<int>((high_product(b.factor, static_cast<Word>(a)) + static_cast<Word>(a)) >> b.shift);
}

template <class X, class P, int kChannels, int kTokens, bool kAligned>
struct Expand {
  using F = typename P::Format;
  using Transposed = typename TransposedOf<P>::Type;
  static constexpr int kWidth = expand_width(F::kBytes), kWarps = expand_warps(kChannels, F::kBytes);
  static constexpr int kThreads = kWarps * kLanes, kGroups = kChannels / 32;
  static constexpr int kRowTiles = kChannels / 16;         // of the sums over tokens
  static constexpr int kParts = kWarps / kRowTiles;        // warps that share one, by features
  static constexpr int kBlocks = kWidth / 8 / kParts;      // of 8 features a warp
  static constexpr int kOwn = ceil_div(kBlocks, kRowTiles);  // of them, whose dout a warp sums up
  static constexpr bool kSame = Same<X, F>::value;
  // Whole floats, split into their parts, of so many blocks: together the operands of three sums
  // are more than registers hold.
  static constexpr bool kApart = Same<P, Float32Products>::value && kBlocks > 2;
  static constexpr int kWideQuads = kTokens * kWidth * X::kBytes / 16;
  static constexpr int kTileQuads = kTokens * kWidth * F::kBytes / 16;
  static constexpr int kNarrowQuads = kTokens * kChannels * F::kBytes / 16;
  static constexpr int kWeightQuads = kWidth * kChannels * F::kBytes / 16;

  const ExpandParams& p;
  Quad *narrow, *wide;  // [2 stages][du, z], [2 stages][x, dout]
  Quad *x_hat, *x, *dout, *weights;
  Floats* rows;    // [2 stages][kTokens]: the LayerNorm's mean and 1 / deviation, the two row means
  float* vectors;  // skip, norm

  FASTHT_DEVICE explicit Expand(const ExpandParams& params) : p(params) {
    Carver carver;
    narrow = carver.take<Quad>(4 * kNarrowQuads);
    wide = carver.take<Quad>(4 * kWideQuads);
    x_hat = carver.take<Quad>(kTileQuads);
    if constexpr (!kSame) {
      x = carver.take<Quad>(kTileQuads);
      dout = carver.take<Quad>(kTileQuads);
    }
    weights = carver.take<Quad>(kWeightQuads);
    rows = carver.take<Floats>(2 * kTokens);
    vectors = carver.take<float>(2 * kWidth);
  }

  FASTHT_DEVICE void run() {
    const int thread = thread_index();
    const int begin = block_index() / p.slices * p.each, end = smaller(begin + p.each, p.tiles);
    if (p.dx.data != nullptr) {
      const Quad* const from = static_cast<const Quad*>(p.down) + slice() * kWeightQuads;
      copy_quads<kWeightQuads, kThreads>(weights, from, thread);
      for (int i = thread; i < kWidth; i += kThreads) {
        const int d = slice() * kWidth + i;
        vectors[i] = d < p.dim ? read(p.gammax, d) : 0.0f;
        vectors[kWidth + i] = d < p.dim ? read(p.gamma, d) * read(p.norm_weight, d) : 0.0f;
      }
    }
    fetch(begin, begin & 1);
    float by_x[kBlocks][4] = {}, by_hat[kBlocks][4] = {}, by_out[kBlocks][4] = {};
    float sum_out[kOwn][4] = {}, sum_du[4] = {};
    FASTHT_ROLLED for (int tile = begin; tile < end; ++tile) {
      const int stage = tile & 1;
      wait_groups<0>();
      sync_block();  // the tile has arrived, and all have done with the other stage
      if (tile + 1 < end) fetch(tile + 1, 1 - stage);
      spread(tile, stage);
      if (p.z == nullptr) continue;
      sync_block();
      gather(tile, stage, by_x, by_hat, by_out, sum_out, sum_du);
    }
    // The group is found again: no register keeps it.
    if (p.z != nullptr) store((end - 1) / p.each, by_x, by_hat, by_out, sum_out, sum_du);
  }

 private:
  FASTHT_DEVICE int slice() const { return block_index() % p.slices; }

  // A token's row in memory; the tokens of all images are counted through.
  struct Row {
    int image, within;
    FASTHT_DEVICE Row(const Divisor& tokens, int token)
        : image(quotient(token, tokens)), within(token - image * static_cast<int>(tokens.number)) {}
    template <class All>
    FASTHT_DEVICE auto of(const All& all) const {
      return units<X>(all.data) + image * all.batch + within * all.token;
    }
  };

  // A thread's places in a tile are whole groups of eight rows apart: chunk_at exchanges their chunks
  // alike, so that one place is known from the first.
  FASTHT_DEVICE void fetch(int tile, int stage) {
    const int thread = reread_thread_index(), first = tile * kTokens;
    constexpr int kNarrowChunks = kChannels * F::kBytes / 16, kEach = 16 / X::kBytes;
    constexpr int kWideChunks = kWidth / kEach;
    static_assert(kThreads / kNarrowChunks % 8 == 0 && kThreads / kWideChunks % 8 == 0);
    {
      const int row0 = thread / kNarrowChunks, chunk = thread % kNarrowChunks;
      Quad* const to = narrow + stage * (2 * kNarrowQuads) + chunk_at<F, kChannels>(row0, chunk);
      FASTHT_UNROLL for (int at = 0; at < kNarrowQuads; at += kThreads) {
        if (kNarrowQuads % kThreads != 0 && thread + at >= kNarrowQuads) break;
        const int token = first + row0 + at / kNarrowChunks;
        const bool real = token < p.total;
        const long long from = real ? static_cast<long long>(token) * kNarrowChunks + chunk : 0;
        copy_async(to + at, static_cast<const Quad*>(p.du) + from, real);
        if (p.z != nullptr)
          copy_async(to + at + kNarrowQuads, static_cast<const Quad*>(p.z) + from, real);
      }
    }
    {
      const int row0 = thread / kWideChunks, chunk = thread % kWideChunks;
      const int feature = slice() * kWidth + chunk * kEach;
      Quad* const to = wide + stage * (2 * kWideQuads) + chunk_at<X, kWidth>(row0, chunk);
      FASTHT_UNROLL for (int at = 0; at < kWideQuads; at += kThreads) {
        if (kWideQuads % kThreads != 0 && thread + at >= kWideQuads) break;
        const int token = first + row0 + at / kWideChunks;
        const bool real = token < p.total && feature < p.dim;
        const Row row(p.tokens, real ? token : 0);
        const int column = real ? feature : 0;
        const int count = !real ? 0 : kAligned ? kEach : p.dim - feature;
        fetch_quad<X, kAligned>(to + at, row.of(p.x) + column, count);
        fetch_quad<X, kAligned>(to + at + kWideQuads, row.of(p.dout) + column, count);
      }
    }
    static_assert(2 * kTokens <= kThreads);
    if (thread < 2 * kTokens) {
      const int token = first + thread / 2;
      const bool real = token < p.total;
      const float* const from = thread % 2 == 0 ? p.stats : p.row_means;
      copy_pair_async(&rows[stage * kTokens + thread / 2].v[thread % 2 * 2],
                      from + (real ? 2ll * token : 0), real);
    }
    end_group();
  }

  template <class Format>
  FASTHT_DEVICE static Quad* eight_at(Quad* tile, int row, int eight, int q) {
    return tile + chunk_at<Format, kWidth>(row, eight * Eight<Format>::kQuads + q);
  }

  // dx, and x_hat for the products.
  FASTHT_DEVICE void spread(int tile, int stage) {
    const int thread = reread_thread_index(), lane = thread % kLanes, warp = thread / kLanes;
    const Quad* const du = narrow + stage * (2 * kNarrowQuads);
    Quad* const raw = wide + stage * (2 * kWideQuads);
    constexpr int kUnits = kTokens / 16 * (kWidth / 32);
    FASTHT_ROLLED for (int unit = warp; unit < kUnits; unit += kWarps) {
      const int row0 = unit / (kWidth / 32) * 16 + lane / 4, part = unit % (kWidth / 32);
      const int eight = part * 4 + lane % 4, feature = slice() * kWidth + eight * 8;
      float dh[4][4] = {};
      if (p.dx.data != nullptr) {
        const auto add = [&](int k) {
          typename P::Left left;
          FASTHT_UNROLL for (int half = 0; half < 2; ++half)
            left.set(half, left_row<F, kChannels>(du, row0 + half * 8, k, lane));
          P::multiply_all(dh, left, weights, part * 4 * kGroups + k, kGroups, lane);
        };
        FASTHT_ROLLED for (int k = 0; k < kGroups; ++k) add(k);  // registers are short
      }
      FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
        keep_order();
        const int row = row0 + half * 8, token = tile * kTokens + row;
        Eight<X> in, upstream;
        FASTHT_UNROLL for (int q = 0; q < Eight<X>::kQuads; ++q) {
          in.quads[q] = *eight_at<X>(raw, row, eight, q);
          upstream.quads[q] = *eight_at<X>(raw + kWideQuads, row, eight, q);
        }
        const bool real = token < p.total;
        const Floats stats = rows[stage * kTokens + row];
        float normed[8];
        FASTHT_UNROLL for (int i = 0; i < 8; ++i) normed[i] = (in[i] - stats.v[0]) * stats.v[1];
        if (p.z != nullptr) {
          put(x_hat, row, eight, normed);
          if constexpr (!kSame) {
            float values[8];
            FASTHT_UNROLL for (int i = 0; i < 8; ++i) values[i] = in[i];
            put(x, row, eight, values);
            FASTHT_UNROLL for (int i = 0; i < 8; ++i) values[i] = upstream[i];
            put(dout, row, eight, values);
          }
        }
        if (p.dx.data == nullptr || !real) continue;
        float values[8];
        FASTHT_UNROLL for (int i = 0; i < 8; i += 4) {
          const Floats skip = load_four<Float32>(vectors + eight * 8 + i);
          const Floats norm = load_four<Float32>(vectors + kWidth + eight * 8 + i);
          FASTHT_UNROLL for (int j = 0; j < 4; ++j) {
            const float grad = dh[(i + j) / 2][half * 2 + j % 2];
            const float inner = fused(grad, norm.v[j], -stats.v[2]) - normed[i + j] * stats.v[3];
            values[i + j] = fused(stats.v[1], inner, fused(grad, skip.v[j], upstream[i + j]));
          }
        }
        Eight<X> result;
        result.set(values);
        store_eight<X, kAligned>(Row(p.tokens, token).of(p.dx) + feature, result, p.dim - feature);
      }
    }
  }

  FASTHT_DEVICE static void put(Quad* tile, int row, int eight, const float (&values)[8]) {
    Eight<F> packed;
    packed.set(values);
    FASTHT_UNROLL for (int q = 0; q < Eight<F>::kQuads; ++q)
      *eight_at<F>(tile, row, eight, q) = packed.quads[q];
  }

  // The sums over the tile's tokens: 16 channels a warp, and all features, or a part of them.
  FASTHT_DEVICE void gather(int tile, int stage, float (&by_x)[kBlocks][4],
                            float (&by_hat)[kBlocks][4], float (&by_out)[kBlocks][4],
                            float (&sum_out)[kOwn][4], float (&sum_du)[4]) {
    const int thread = reread_thread_index(), lane = thread % kLanes, warp = thread / kLanes;
    const int row_tile = warp % kRowTiles, first = warp / kRowTiles * (kBlocks * 8);
    const Quad* const du = narrow + stage * (2 * kNarrowQuads);
    const Quad* const raw = wide + stage * (2 * kWideQuads);
    const Quad* const upstream = kSame ? raw + kWideQuads : dout;
    if constexpr (kApart) {
      // A loop whose turns the compiler could count would be none where a tile has 16 tokens.
      const int end = smaller(p.total - tile * kTokens, kTokens);
      sum_over(by_x, du, kSame ? raw : x, end, row_tile, first, lane);
      sum_over(by_hat, du, x_hat, end, row_tile, first, lane);
      sum_over(by_out, du + kNarrowQuads, upstream, end, row_tile, first, lane);
      FASTHT_ROLLED for (int step = 0; step < end; step += 16) {
        Transposed::add(sum_du, Transposed::template left<kChannels>(du, step, row_tile * 16, lane));
        add_own(sum_out, upstream, step, row_tile, first, lane);
      }
      return;
    }
    FASTHT_ROLLED for (int step = 0; step < kTokens; step += 16) {
      {
        const auto grad = Transposed::template left<kChannels>(du, step, row_tile * 16, lane);
        FASTHT_UNROLL for (int n = 0; n < kBlocks; n += 2) {
          typename Transposed::Right right[2];
          Transposed::template right<kWidth>(right, kSame ? raw : x, step, first + n * 8, lane);
          FASTHT_UNROLL for (int i = 0; i < 2; ++i) Transposed::multiply(by_x[n + i], grad, right[i]);
          Transposed::template right<kWidth>(right, x_hat, step, first + n * 8, lane);
          FASTHT_UNROLL for (int i = 0; i < 2; ++i) Transposed::multiply(by_hat[n + i], grad, right[i]);
        }
        Transposed::add(sum_du, grad);
      }
      const auto active =
          Transposed::template left<kChannels>(du + kNarrowQuads, step, row_tile * 16, lane);
      FASTHT_UNROLL for (int n = 0; n < kBlocks; n += 2) {
        typename Transposed::Right right[2];
        Transposed::template right<kWidth>(right, upstream, step, first + n * 8, lane);
        FASTHT_UNROLL for (int i = 0; i < 2; ++i) Transposed::multiply(by_out[n + i], active, right[i]);
      }
      add_own(sum_out, upstream, step, row_tile, first, lane);
    }
  }

  // One of the three, in a loop of its own.
  FASTHT_DEVICE static void sum_over(float (&c)[kBlocks][4], const Quad* left, const Quad* right,
                                     int end, int row_tile, int first, int lane) {
    FASTHT_ROLLED for (int step = 0; step < end; step += 16) {
      const auto rows = Transposed::template left<kChannels>(left, step, row_tile * 16, lane);
      FASTHT_UNROLL for (int n = 0; n < kBlocks; n += 2) {
        typename Transposed::Right columns[2];
        Transposed::template right<kWidth>(columns, right, step, first + n * 8, lane);
        FASTHT_UNROLL for (int i = 0; i < 2; ++i) Transposed::multiply(c[n + i], rows, columns[i]);
      }
    }
  }

  // The sums of those features of 16 tokens' dout that are this warp's.
  FASTHT_DEVICE static void add_own(float (&sums)[kOwn][4], const Quad* upstream, int step,
                                    int row_tile, int first, int lane) {
    if (row_tile * kOwn >= kBlocks) return;
    typename Transposed::Right right[2];
    Transposed::template right<kWidth>(right, upstream, step, first + row_tile * kOwn / 2 * 16, lane);
    if constexpr (kOwn == 2) {
      FASTHT_UNROLL for (int i = 0; i < 2; ++i) Transposed::add(sums[i], right[i]);
    } else {
      // By member: a choice between structs would be one between addresses, in local memory.
      typename Transposed::Right own;
      FASTHT_UNROLL for (int i = 0; i < Transposed::kWords; ++i)
        own.v[i] = row_tile % 2 == 0 ? right[0].v[i] : right[1].v[i];
      Transposed::add(sums[0], own);
    }
  }

  FASTHT_DEVICE void store(int group, const float (&by_x)[kBlocks][4],
                           const float (&by_hat)[kBlocks][4], const float (&by_out)[kBlocks][4], const float (&sum_out)[kOwn][4],
                           const float (&sum_du)[4]) {
    const int thread = reread_thread_index(), lane = thread % kLanes, warp = thread / kLanes;
    const int row_tile = warp % kRowTiles, first = warp / kRowTiles * (kBlocks * 8);
    const long long padded = p.slices * kWidth;
    const int column = slice() * kWidth + first + lane % 4 * 2;
    const int row = row_tile * 16 + lane / 4;
    float* const sums = p.d_weights + group * (3 * kChannels * padded) + row * padded + column;
    FASTHT_UNROLL for (int n = 0; n < kBlocks; ++n) FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
      float* const to = sums + half * 8 * padded + n * 8;
      store_pair<Float32>(to, by_x[n][2 * half], by_x[n][2 * half + 1]);
      store_pair<Float32>(to + kChannels * padded, by_hat[n][2 * half], by_hat[n][2 * half + 1]);
      store_pair<Float32>(to + 2 * kChannels * padded, by_out[n][2 * half], by_out[n][2 * half + 1]);
    }
    if (lane < 4 && row_tile * kOwn < kBlocks) {
      FASTHT_UNROLL for (int n = 0; n < kOwn; ++n)
        store_pair<Float32>(p.d_up_bias + group * padded + column + (row_tile * kOwn + n) * 8,
                            sum_out[n][0], sum_out[n][1]);
    }
    if (slice() == 0 && first == 0 && lane % 4 == 0) {
      p.d_down_bias[group * kChannels + row] = sum_du[0];
      p.d_down_bias[group * kChannels + row + 8] = sum_du[2];
    }
  }
};

template <class X, class P, int kChannels, int kTokens, bool kAligned>
FASTHT_DEVICE void expand(const ExpandParams& p) {
  Expand<X, P, kChannels, kTokens, kAligned>(p).run();
}

}  // namespace fastht::cuda
