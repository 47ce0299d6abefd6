// Backward, last launch over the tokens: the gradient leaves the bottleneck (eq. 1), and the sums
// from which all gradients of width D follow.
//
// A block has a slice of features and a group of tiles of tokens, in order, of all images one after
// the other. A warp has some of the slice's features and of the channels, for all tokens, and keeps
// what belongs to these in registers from the first tile to the last: the columns of W1, and the
// results of three products that sum over tokens. Features are rows of du W1, so that a lane's
// numbers of x and dout, read from shared memory once, are at the same time what dx is made of and
// (x and x_hat, dout) the right operands of those products: a lane (g, t) has features g * kEach ..
// of tokens 2 t and 2 t + 1 of eight. Warps that share features have channels of their own, and each
// a part of the tokens' dx. Blocks of a group are neighbours: they share du and z in L2.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/transposed.cuh"

namespace fastht::cuda {

FASTHT_DEVICE int quotient(int a, const Divisor& b) {
  return static_cast<int>((high_product(b.factor, static_cast<Word>(a)) + static_cast<Word>(a)) >> b.shift);
}

template <class X, class P, int kChannels, int kTokens, int kStages, bool kAligned>
struct Expand {
  using F = typename P::Format;
  using Transposed = typename TransposedOf<P>::Type;
  using Right = typename Transposed::Right;
  static constexpr int kWidth = expand_width(F::kBytes), kParts = expand_parts(kChannels);
  static constexpr int kFeatures = kWidth / kExpandShares;      // of a warp
  static constexpr int kEach = kFeatures / 8;                   // of them, of a lane
  static constexpr int kBlocks = kFeatures / 16;                // of 16 rows of du W1
  static constexpr int kRowTiles = kChannels / kParts / 16;     // of a warp's channels
  static constexpr int kPairs = ceil_div(kParts, 2);            // of eight tokens, of a step
  static constexpr int kOwn = kPairs * 2 / kParts;              // eights whose dx is a warp's
  static constexpr int kGroups = kChannels / 32, kWarps = expand_warps(kChannels);
  static constexpr int kThreads = kWarps * kLanes;
  static constexpr int kStep = kPairs * 16;  // tokens
  // Where the columns of W1 are: in registers; with C = 128 and tokens of floats, in shared memory; and
  // in strict float32, whose parts take the registers, they are read again each time.
  static constexpr int kColumnQuads = expand_column_quads(kChannels, F::kBytes, X::kBytes);
  static constexpr bool kShared = kColumnQuads > 0;
  static constexpr bool kHeld = !kShared && !Same<P, Float32Products>::value;
  // Where registers are left, the instructions of two pairs or steps are mixed.
  static constexpr bool kMixed = kHeld && kParts <= 2;
  static constexpr int kAtOnce = kMixed && X::kBytes == 2 && kParts == 2 && kAligned ? 2 : 1;
  static constexpr bool kSame = Same<X, F>::value;
  static constexpr int kNarrowChunks = kChannels * F::kBytes / 16;
  static constexpr int kWideChunks = kWidth * X::kBytes / 16;
  static constexpr int kNarrowQuads = kTokens * kNarrowChunks, kWideQuads = kTokens * kWideChunks;
  static_assert(kTokens % kStep == 0);

  // A lane's features of one token.
  struct alignas(kEach * X::kBytes) Part {
    Word v[kEach * X::kBytes / 4];
    FASTHT_DEVICE float operator[](int i) const {
      if constexpr (X::kBytes == 4)
        return as_float(v[i]);
      else
        return i % 2 == 0 ? X::first(v[i / 2]) : X::second(v[i / 2]);
    }
    FASTHT_DEVICE void set(const float (&values)[kEach]) {
      FASTHT_UNROLL for (int i = 0; i < kEach; i += 2) {
        if constexpr (X::kBytes == 4)
          v[i] = as_word(values[i]), v[i + 1] = as_word(values[i + 1]);
        else
          v[i / 2] = X::pack(values[i], values[i + 1]);
      }
    }
  };
  struct Sums {
    float by_x[kRowTiles][kEach][4], by_hat[kRowTiles][kEach][4], by_out[kRowTiles][kEach][4];
    float out[kEach], du[4];
  };

  const ExpandParams& p;
  Quad *narrow, *wide;  // [stages][du, z], [stages][x, dout]
  Quad* columns;        // [shares][kBlocks][kGroups][two columns][lanes]
  Floats* rows;  // [stages][kTokens]: the LayerNorm's mean and 1 / deviation, the two row means
  const int lane = thread_index() % kLanes, warp = thread_index() / kLanes;
  const int share = warp % kExpandShares, part = warp / kExpandShares;
  const int slice = block_index() % p.slices;
  const int feature = slice * kWidth + share * kFeatures + lane / 4 * kEach;
  // The first of 16 channels whose sums of du this warp makes, if any.
  const int sums_du = share < kRowTiles && (part * kRowTiles + share) % p.slices == slice
                          ? (part * kRowTiles + share) * 16
                          : -1;

  FASTHT_DEVICE explicit Expand(const ExpandParams& params) : p(params) {
    Carver carver;
    narrow = carver.take<Quad>(kStages * 2 * kNarrowQuads);
    wide = carver.take<Quad>(kStages * 2 * kWideQuads);
    rows = carver.take<Floats>(kStages * kTokens);
    columns = carver.take<Quad>(kColumnQuads);
  }

  FASTHT_DEVICE void run() {
    const int group = block_index() / p.slices, begin = group * p.each;
    const int end = smaller(begin + p.each, p.tiles);
    FASTHT_UNROLL for (int i = 0; i < kStages - 1; ++i) fetch(begin + i, end, i);
    typename P::Left down[kBlocks][kGroups] = {};
    float skip[kEach] = {}, norm[kEach] = {};
    if (p.dx.data != nullptr) load_parameters(down, skip, norm);
    const Places places = this->places();
    Sums sums = {};
    int stage = 0;
    FASTHT_ROLLED for (int tile = begin; tile < end; ++tile) {
      wait_groups<kStages - 2>();
      sync_block();  // the tile has arrived, and all have done with the one before
      fetch(tile + kStages - 1, end, stage == 0 ? kStages - 1 : stage - 1);
      FASTHT_UNROLL_BY(kAtOnce) for (int step = 0; step < kTokens; step += kStep)
        add_step(tile * kTokens, stage, step, places, down, skip, norm, sums);
      if (sums_du >= 0) add_du(stage, sums.du);
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }
    if (p.z != nullptr) store(group, sums);
  }

 private:
  // A token's row in memory; the tokens of all images are counted through.
  struct Row {
    Word image, within;
    FASTHT_DEVICE Row(const Divisor& tokens, int token)
        : image(quotient(token, tokens)), within(token - image * tokens.number) {}
    template <class All>
    FASTHT_DEVICE auto of(const All& all) const {
      return units<X>(all.data) + (Long{image} * static_cast<Long>(all.batch) +
                                   Long{within} * static_cast<Long>(all.token));
    }
  };

  // Where a chunk of a row of x or dout lies: lanes read rows 2 t of 32 bytes at a time.
  FASTHT_DEVICE static int wide_chunk(int row, int chunk) { return chunk ^ (row >> 1 & 3) << 1; }

  // A thread's places in a tile are whole groups of eight rows apart: chunks are exchanged alike, so
  // that one place is known from the first. The group is ended also where nothing is left.
  FASTHT_DEVICE void fetch(int tile, int end, int stage) {
    if (tile < end) {
      const Word thread = reread_thread_index();
      const int first = tile * kTokens;
      constexpr int kUnits = 16 / X::kBytes;
      static_assert(kThreads / kNarrowChunks % 8 == 0 && kThreads / kWideChunks % 2 == 0);
      {
        const Word row0 = thread / kNarrowChunks, chunk = thread % kNarrowChunks;
        const long long from = static_cast<long long>(tile) * kNarrowQuads + thread;
        const Quad* const du = static_cast<const Quad*>(p.du) + from;
        const Quad* const z = p.z != nullptr ? static_cast<const Quad*>(p.z) + from : du;
        Quad* const to = narrow + stage * (2 * kNarrowQuads) +
                         Transposed::template paired_at<kChannels>(row0, chunk);
        FASTHT_UNROLL for (int at = 0; at < kNarrowQuads; at += kThreads) {
          static_assert(kNarrowQuads % kThreads == 0);
          const bool real = static_cast<int>(first + row0) + at / kNarrowChunks < p.total;
          copy_async(to + at, du + at, real);
          copy_async(to + at + kNarrowQuads, z + at, real);
        }
      }
      FASTHT_UNROLL for (int next = 0; next < 2 * kTokens; next += kThreads) {
        const Word at = thread + next;
        const int token = first + at / 2;
        if (2 * kTokens < kThreads && at >= 2 * kTokens) break;
        const float* const from = at % 2 == 0 ? p.stats : p.row_means;
        copy_pair_async(&rows[stage * kTokens + at / 2].v[at % 2 * 2], from + 2ll * token,
                        token < p.total);
      }
      {
        const Word row0 = thread / kWideChunks, chunk = thread % kWideChunks;
        const int begin = slice * kWidth + chunk * kUnits;
        FASTHT_UNROLL for (int at = 0; at < kWideQuads; at += kThreads) {
          static_assert(kWideQuads % kThreads == 0);
          const int here = row0 + at / kWideChunks, token = first + here;
          Quad* const to = wide + stage * (2 * kWideQuads) + here * kWideChunks + wide_chunk(here, chunk);
          const Row row(p.tokens, token);
          const int count = token < p.total ? p.dim - begin : 0;
          FASTHT_UNROLL for (int i = 0; i < 2; ++i)
            fetch_quad<X, kAligned>(to + i * kWideQuads,
                                    row.of(i == 0 ? p.x : p.dout) + begin, count);
        }
      }
    }
    end_group();
  }

  // Two columns of W1, as rows of a left operand.
  FASTHT_DEVICE typename P::Left column_pair(int block, int k) const {
    typename P::Left result;
    FASTHT_UNROLL for (int i = 0; i < 2; ++i) {
      // As wide_number has them: the block and its column of a feature.
      const int number = feature + block * 2 + i, from = number / 32 * 4 + number % 8 / 2;
      const int column_lane = (number % 32 / 8 * 2 + number % 2) * 4 + lane % 4;
      Eight<F> column;
      FASTHT_UNROLL for (int q = 0; q < Eight<F>::kQuads; ++q)
        column.quads[q] = static_cast<const Quad*>(
            p.down)[((from * kGroups + k) * Eight<F>::kQuads + q) * kLanes + column_lane];
      result.set(i, column);
    }
    return result;
  }

  FASTHT_DEVICE int shared_at(int block, int k, int column) const {
    return (((share * kBlocks + block) * kGroups + k) * 2 + column) * kLanes + lane;
  }
  FASTHT_DEVICE typename P::Left shared_pair(int block, int k) const {
    typename P::Left result;
    FASTHT_UNROLL for (int i = 0; i < 2; ++i)
      result.set(i, Eight<F>{{columns[shared_at(block, k, i)]}});
    return result;
  }

  FASTHT_DEVICE void load_parameters(typename P::Left (&down)[kBlocks][kGroups],
                                     float (&skip)[kEach], float (&norm)[kEach]) const {
    if constexpr (kHeld) {
      FASTHT_UNROLL for (int b = 0; b < kBlocks; ++b)
        FASTHT_UNROLL for (int k = 0; k < kGroups; ++k) down[b][k] = column_pair(b, k);
    }
    if constexpr (kShared) {  // a group of channels by each of the warps that share features
      static_assert(kParts == kGroups);
      FASTHT_UNROLL for (int b = 0; b < kBlocks; ++b) {
        const typename P::Left pair = column_pair(b, part);
        FASTHT_UNROLL for (int i = 0; i < 2; ++i) {
          Quad quad;
          FASTHT_UNROLL for (int w = 0; w < 4; ++w) quad.v[w] = pair.v[i][w];
          columns[shared_at(b, part, i)] = quad;
        }
      }
    }
    int at[kEach];
    FASTHT_UNROLL for (int i = 0; i < kEach; ++i) at[i] = feature + i < p.dim ? feature + i : -1;
    float gamma[kEach];
    read_all(skip, p.gammax, at);
    read_all(gamma, p.gamma, at);
    read_all(norm, p.norm_weight, at);
    FASTHT_UNROLL for (int i = 0; i < kEach; ++i) norm[i] *= gamma[i];
  }

  // Where a lane finds what it reads of a step: quads, or Floats, from the step's first. Two times
  // eight tokens are the depth of a product, whose order is free: the first are those whose dx is
  // this warp's. The others lie `other` rows from them. Chunks of a row are exchanged by bits, so that
  // those of other channels are some bits away: one place is enough.
  struct Places {
    int wide, stats, other, row, left;
    FASTHT_DEVICE int row_of(int group) const { return row ^ group * (2 * F::kBytes); }
    FASTHT_DEVICE int left_of(int tile) const { return left ^ tile * F::kBytes; }
  };
  FASTHT_DEVICE Places places() const {
    const int chunk = (share * kFeatures + lane / 4 * kEach) * X::kBytes / 16, first = part % 2 * 8;
    const int row = first + lane % 4 * 2;
    return {row * kWideChunks + wide_chunk(row, chunk), row, 8 - first * 2,
            Transposed::template paired_row_at<kChannels>(first, 0, lane),
            Transposed::template paired_left_at<kChannels>(first, part * kRowTiles * 16, lane)};
  }

  // Numbers of two tokens as one of a right operand's two halves.
  FASTHT_DEVICE static void set(Right (&right)[kEach], int half, const Part& even, const Part& odd) {
    FASTHT_UNROLL for (int i = 0; i < kEach; ++i) {
      if constexpr (kSame && X::kBytes == 2)
        right[i].v[half] = i % 2 == 0 ? first_of_each(even.v[i / 2], odd.v[i / 2])
                                      : second_of_each(even.v[i / 2], odd.v[i / 2]);
      else
        right[i].set(half, even[i], odd[i]);
    }
  }

  // Some tokens: dx of this warp's eight, and all of them in the sums. Without a branch but at the
  // end: what is not needed is not stored. Of whole floats dx is stored where it is known, and the
  // pairs are taken one by one: the parts of their numbers have the registers.
  FASTHT_DEVICE void add_step(int first, int stage, int step, const Places& places,
                              const typename P::Left (&down)[kBlocks][kGroups],
                              const float (&skip)[kEach], const float (&norm)[kEach],
                              Sums& sums) const {
    float values[kOwn][2][kEach];
    const auto write_own = [&](int own) {
      write(first + step + (part + own) * 8 + lane % 4 * 2, values[own]);
    };
    FASTHT_UNROLL_BY(kMixed ? kPairs : 1) for (int pair = 0; pair < kPairs; ++pair) {
      const int token = step + (pair ^ part / 2) * 16;
      const Quad* const du = narrow + (stage * 2 * kTokens + token) * kNarrowChunks;
      const Quad* const x = wide + (stage * 2 * kTokens + token) * kWideChunks;
      Right by_x[kEach], by_hat[kEach], by_out[kEach];
      FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
        Part in[2], upstream[2];
        float hat[2][kEach];
        Floats row[2];
        FASTHT_UNROLL for (int i = 0; i < 2; ++i) {
          const int there = half * places.other + i;
          in[i] = part_at(x + places.wide + there * kWideChunks);
          upstream[i] = part_at(x + places.wide + there * kWideChunks + kWideQuads);
          row[i] = rows[stage * kTokens + token + places.stats + there];
          const float centre = row[i].v[0] * row[i].v[1];
          // Of 16-bit tokens by one instruction: what it rounds away is far below their last digit.
          FASTHT_UNROLL for (int f = 0; f < kEach; ++f)
            hat[i][f] = X::kBytes == 2 ? fused(in[i][f], row[i].v[1], -centre)
                                       : (in[i][f] - row[i].v[0]) * row[i].v[1];
        }
        set(by_x, half, in[0], in[1]);
        set(by_out, half, upstream[0], upstream[1]);
        FASTHT_UNROLL for (int f = 0; f < kEach; ++f) by_hat[f].set(half, hat[0][f], hat[1][f]);
        if (pair > 0 || half >= kOwn) continue;
        float dh[kBlocks][4] = {};
        FASTHT_UNROLL for (int k = 0; k < kGroups; ++k) {
          const Eight<F> column =
              Transposed::paired_row(du + half * (8 * kNarrowChunks), places.row_of(k));
          FASTHT_UNROLL for (int b = 0; b < kBlocks; ++b) {
            if constexpr (kHeld) {
              P::multiply_by(dh[b], down[b][k], column);
            } else if constexpr (kShared) {
              P::multiply_by(dh[b], shared_pair(b, k), column);
            } else {
              keep_order();
              P::multiply_by(dh[b], column_pair(b, k), column);
            }
          }
        }
        FASTHT_UNROLL for (int i = 0; i < 2; ++i) FASTHT_UNROLL for (int f = 0; f < kEach; ++f) {
          sums.out[f] += upstream[i][f];
          const float grad = dh[f / 2][f % 2 * 2 + i];
          const float inner = fused(grad, norm[f], -row[i].v[2]) - hat[i][f] * row[i].v[3];
          values[half][i][f] = fused(row[i].v[1], inner, fused(grad, skip[f], upstream[i][f]));
        }
        if constexpr (!kMixed) write_own(half);
      }
      FASTHT_UNROLL for (int m = 0; m < kRowTiles; ++m) {
        if constexpr (!kMixed) keep_order();
        const auto grad = Transposed::template paired<kChannels>(du, places.left_of(m), lane);
        FASTHT_UNROLL for (int f = 0; f < kEach; ++f) {
          Transposed::multiply(sums.by_x[m][f], grad, by_x[f]);
          Transposed::multiply(sums.by_hat[m][f], grad, by_hat[f]);
        }
        if constexpr (!kMixed) keep_order();
        const auto active =
            Transposed::template paired<kChannels>(du + kNarrowQuads, places.left_of(m), lane);
        FASTHT_UNROLL for (int f = 0; f < kEach; ++f)
          Transposed::multiply(sums.by_out[m][f], active, by_out[f]);
      }
    }
    if constexpr (kMixed) {
      FASTHT_UNROLL for (int own = 0; own < kOwn; ++own) write_own(own);
    }
  }
  FASTHT_DEVICE Part part_at(const Quad* quad) const {
    constexpr int kPieces = 16 / (kEach * X::kBytes);
    return static_cast<const Part*>(static_cast<const void*>(quad))[lane / 4 % kPieces];
  }

  // The sums over a tile's du of 16 channels: one warp of a group has them.
  FASTHT_DEVICE void add_du(int stage, float (&sums)[4]) const {
    const int place = Transposed::template paired_left_at<kChannels>(0, sums_du, lane);
    const Quad* const du = narrow + stage * (2 * kNarrowQuads);
    FASTHT_ROLLED for (int token = 0; token < kTokens; token += 16)
      Transposed::add(
          sums, Transposed::template paired<kChannels>(du + token * kNarrowChunks, place, lane));
  }

  // Two neighbouring tokens of dx.
  FASTHT_DEVICE void write(int token, const float (&values)[2][kEach]) const {
    const Row row(p.tokens, token);
    auto* const to = row.of(p.dx) + feature;
    const long long over = p.dx.batch - static_cast<int>(p.tokens.number - 1) * p.dx.token;
    typename X::Unit* const rows[2] = {
        to, to + (row.within + 1 == p.tokens.number ? over : p.dx.token)};
    Part packed[2];
    FASTHT_UNROLL for (int i = 0; i < 2; ++i) {
      packed[i].set(values[i]);
      if constexpr (kMixed) {  // what is stored under a condition is not made under it: no branch
        settle(rows[i]);
        FASTHT_UNROLL for (const Word word : packed[i].v) settle(word);
      }
    }
    FASTHT_UNROLL for (int i = 0; i < 2; ++i) {
      const bool real = p.dx.data != nullptr && token + i < p.total;
      if constexpr (kAligned) {
        if (real && feature < p.dim) *static_cast<Part*>(static_cast<void*>(rows[i])) = packed[i];
      } else {
        FASTHT_UNROLL for (int f = 0; f < kEach; ++f)
          if (real && feature + f < p.dim) store_one<X>(rows[i] + f, packed[i][f]);
      }
    }
  }

  FASTHT_DEVICE void store(int group, Sums& sums) {
    const long long padded = p.slices * kWidth;
    const int column = slice * kWidth + share * kFeatures;
    const int row = part * kRowTiles * 16 + lane / 4;
    float* const to = p.d_weights + group * (3 * kChannels * padded) + row * padded + column +
                      lane % 4 * (2 * kEach);
    FASTHT_UNROLL for (int m = 0; m < kRowTiles; ++m)
      FASTHT_UNROLL for (int i = 0; i < 4; ++i) {
        float* const at = to + (m * 16 + i / 2 * 8) * padded + i % 2 * kEach;
        store_each(at, sums.by_x[m], i);
        store_each(at + kChannels * padded, sums.by_hat[m], i);
        store_each(at + 2 * kChannels * padded, sums.by_out[m], i);
      }
    if (sums_du >= 0 && lane % 4 == 0) {
      float* const bias = p.d_down_bias + group * kChannels + sums_du + lane / 4;
      bias[0] = sums.du[0];
      bias[8] = sums.du[2];
    }
    // The sums of dout, of each part's tokens.
    static_assert(kParts * kWidth <= kStages * kTokens * 4);
    float* const parts = rows->v;
    sync_block();
    FASTHT_UNROLL for (int f = 0; f < kEach; ++f) {
      FASTHT_UNROLL for (int mask = 1; mask < 4; mask *= 2)
        sums.out[f] += shuffle_xor(sums.out[f], mask);
      if (lane % 4 == 0)
        parts[part * kWidth + share * kFeatures + lane / 4 * kEach + f] = sums.out[f];
    }
    sync_block();
    const int thread = reread_thread_index();
    if (thread >= kWidth) return;
    float sum = parts[thread];
    FASTHT_UNROLL for (int i = 1; i < kParts; ++i) sum += parts[i * kWidth + thread];
    p.d_up_bias[group * padded + slice * kWidth + thread] = sum;
  }
  FASTHT_DEVICE static void store_each(float* to, const float (&sums)[kEach][4], int i) {
    if constexpr (kEach == 4)
      store_four<Float32>(to, {{sums[0][i], sums[1][i], sums[2][i], sums[3][i]}});
    else
      store_pair<Float32>(to, sums[0][i], sums[1][i]);
  }
};

template <class X, class P, int kChannels, int kTokens, int kStages, bool kAligned>
FASTHT_DEVICE void expand(const ExpandParams& p) {
  Expand<X, P, kChannels, kTokens, kStages, kAligned>(p).run();
}

}  // namespace fastht::cuda
