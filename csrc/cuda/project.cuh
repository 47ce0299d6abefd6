// The first product of the backward pass, of a tile's tokens: dout W2. Tokens of dout are on their
// way before it, kAhead bytes of each row, a step of 32 features at a time; a lane reads, or names to
// its warp, what it has copied itself, so that it may fill the place again without a barrier.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/depthwise.cuh"

namespace fastht::cuda {

// Where a lane of a warp is: read anew, so that nothing made of it stays in a register.
struct Place {
  int thread, lane, warp, row0;  // row0 and row0 + 8: this lane's tokens of a tile, of 16 a warp
  FASTHT_DEVICE Place()
      : thread(reread_thread_index()), lane(static_cast<Word>(thread) % kLanes),
        warp(static_cast<Word>(thread) / kLanes),
        row0(warp * 16 + lane / 4) {}
};

// A warp has 16 rows, and all steps.
template <class X, class P, int kChannels, int kDepth, bool kAligned>
struct RowSteps {
  static constexpr int kTall = 1, kBlocks = kChannels / 8;

  const ContractParams& p;
  const typename X::Unit* row[2];
  bool busy, real[2];
  int feature, stride;  // the lane's first feature; quads from a place to the next
  Quad* places;

  FASTHT_DEVICE RowSteps(const ContractParams& params, Quad* ring, const Tile& tile, int)
      : p(params), stride(Eight<X>::kQuads * 2 * p.rows) {
    const Place me;
    places = ring + me.thread;
    feature = me.lane % 4 * 8;
    busy = tile.first + me.warp * 16 < tile.end;
    FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
      const int token = tile.first + me.row0 + half * 8;
      real[half] = token < tile.end;
      row[half] = units<X>(p.dout.data) + tile.image * p.dout.batch + token * p.dout.token + feature;
    }
  }
  // Where a quad of W2 lies: as in memory.
  FASTHT_DEVICE static int exchanged(int quad) { return quad; }

  FASTHT_DEVICE Quad* place(int step, int half) const {
    return places + (step % kDepth * 2 + half) * stride;
  }
  // Starts to copy a step. Ends a group.
  FASTHT_DEVICE void fetch(int step) const {
    if (busy && step * 32 < p.dim) {
      FASTHT_UNROLL for (int half = 0; half < 2; ++half)
        fetch_eight<X, kAligned>(place(step, half), 2 * p.rows, row[half] + step * 32,
                                 real[half] ? p.dim - feature - step * 32 : 0);
    }
    end_group();
  }
  // Adds a step's product with its blocks of W2, of the slice's step `part`, and fetches another step
  // in its place.
  FASTHT_DEVICE void multiply(float (&sums)[1][kBlocks][4], const Quad* weights, int part,
                              int step) const {
    if (busy && step * 32 < p.dim) {
      typename P::Left left;
      FASTHT_UNROLL for (int half = 0; half < 2; ++half)
        set_masked<P>(left, half, own_eight<X>(place(step, half), 2 * p.rows), real[half] ? ~0u : 0u);
      fetch(step + kDepth);
      if constexpr (Same<P, Float32Products>::value && kChannels == 128) {
        // A loop: what both halves of the depth need at once would be more registers than there are.
        // With fewer channels they have them, and the model has the loop slower by a hundredth.
        FASTHT_ROLLED for (int q = 0; q < 2; ++q) {
          float four[2][4];
          FASTHT_UNROLL for (int half = 0; half < 2; ++half) FASTHT_UNROLL for (int i = 0; i < 4; ++i) {
            four[half][i] = left.v[half][i];
            left.v[half][i] = left.v[half][4 + i];
          }
          P::multiply_half(sums[0], four, weights, part * kBlocks, 1, q, Place().lane);
        }
      } else {
        P::multiply_all(sums[0], left, weights, part * kBlocks, 1, Place().lane);
      }
    } else {
      end_group();
    }
  }
};

// Of 16-bit numbers: two warps share 32 rows, and each has every second step. A block of W2 is read
// once for all of these rows. Operands come as matrices of 8 rows, 16 bytes of each, whose rows are
// 64 bytes apart: chunks are exchanged (`exchanged`) so that the rows of a matrix meet no bank twice.
// What other lanes copied lies behind the barrier of the slice.
template <class X, class P, int kChannels, int kDepth, bool kAligned>
struct PairedSteps {
  static constexpr int kTall = 2, kBlocks = kChannels / 8;
  static constexpr int kSlice = slice_width(kChannels, P::Format::kBytes);

  const ContractParams& p;
  const typename X::Unit* row;  // at the features of the step that is fetched next
  Quad* ring;
  int at;             // that step's first feature; the lane's are some of it, and 16 further on
  int end[2];         // where the features end for the lane, of either row; 0: there is no such token
  int place, weight;  // of the lane's first quad; of what it reads of a block of W2
  int lower;          // rows to the lane's other one: 16, or 0 where the tile has none
  bool busy;

  FASTHT_DEVICE PairedSteps(const ContractParams& params, Quad* quads, const Tile& tile, int done)
      : p(params), ring(quads) {
    const Place me;
    const int row0 = me.warp / 2 * 32, share = me.warp % 2, here = row0 + me.lane % 16;
    busy = tile.first + row0 < tile.end;
    lower = tile.first + row0 + 16 < tile.end ? 16 : 0;
    const int feature = me.lane / 16 * 8;
    FASTHT_UNROLL for (int tall = 0; tall < 2; ++tall)
      end[tall] = tile.first + here + tall * lower < tile.end ? p.dim - feature : 0;
    at = (done * 2 + share) * 32;
    place = share * (4 * p.rows) + exchanged(here * 4 + me.lane / 16);
    weight = (share * kBlocks + me.lane / 16) * kLanes + exchanged(me.lane % 8 * 4 + me.lane / 8 % 2);
    row = units<X>(p.dout.data) + tile.image * p.dout.batch + (tile.first + here) * p.dout.token +
          feature + at;
  }
  // Where a quad lies of rows of four.
  FASTHT_DEVICE static int exchanged(int quad) { return quad ^ (quad >> 3 & 3); }

  // The lane's first quad of the step of feature `at`, of which there are kDepth.
  FASTHT_DEVICE int first() const {
    return static_cast<Word>(at) / 64 % kDepth * (8 * p.rows) + place;
  }
  // Features past the last one are zeros, up to the end of a slice.
  FASTHT_DEVICE void fetch(int) {
    if (busy && at < ceil_div(p.dim, kSlice) * kSlice) {
      FASTHT_UNROLL for (int tall = 0; tall < 2; ++tall)
        FASTHT_UNROLL for (int i = 0; i < 2; ++i)
          fetch_quad<X, kAligned>(ring + (first() ^ i * 2) + tall * lower * 4,
                                  row + tall * lower * p.dout.token + i * 16,
                                  end[tall] - at - i * 16);
    }
    end_group();
    at += 64, row += 64;
  }
  // As of RowSteps. The step that was fetched kDepth steps ago lies where the next one will.
  FASTHT_DEVICE void multiply(float (&sums)[2][kBlocks][4], const Quad* weights, int part, int step) {
    if (!busy) return end_group();
    const Quad* const block = weights + part * (2 * kBlocks * kLanes);
    // A loop: what both halves of the depth need at once would be more registers than there are.
    FASTHT_ROLLED for (int i = 0; i < 4; i += 2) {
      Word left[2][4];
      FASTHT_UNROLL for (int tall = 0; tall < 2; ++tall)
        load_tiles(left[tall], ring + (first() ^ i) + tall * lower * 4);
      keep_order();
      FASTHT_UNROLL for (int n = 0; n < kBlocks; n += 2) {
        Word right[4];
        load_tiles(right, block + (weight ^ i) + n * kLanes);
        FASTHT_UNROLL for (int tall = 0; tall < 2; ++tall) FASTHT_UNROLL for (int j = 0; j < 2; ++j)
          P::multiply_part(sums[tall][n + j], left[tall], right[2 * j], right[2 * j + 1]);
      }
    }
    keep_order();  // all lanes have what they read
    fetch(step + kDepth);
  }
};

template <bool kPaired, class Paired, class Row>
struct StepsOf {
  using Type = Row;
};
template <class Paired, class Row>
struct StepsOf<true, Paired, Row> {
  using Type = Paired;
};

template <class X, class P, int kChannels, int kWarps, int kAhead, bool kAligned>
struct Projection {
  static constexpr int kThreads = kWarps * kLanes, kBlocks = kChannels / 8;
  static constexpr int kBytes = P::Format::kBytes;
  static constexpr int kSlice = slice_width(kChannels, kBytes);
  static constexpr int kSliceQuads = kSlice * kChannels * kBytes / 16;
  static constexpr int kSteps = kSlice / 32, kRing = kAhead / (32 * X::kBytes);
  // Paired where W2 is most of what is read and registers hold 32 rows of sums, and where all steps of a
  // slice lie in shared memory twice.
  static constexpr bool kPaired = kBytes == 2 && kChannels == 64 && kRing >= 2 * kSteps;
  static constexpr int kTall = kPaired ? 2 : 1;
  static constexpr int kOwn = kSteps / kTall, kDepth = kRing / kTall;  // steps of a warp
  static constexpr int kGroups = 1 + kDepth;  // of copies that `start` leaves on their way
  using Steps = typename StepsOf<kPaired, PairedSteps<X, P, kChannels, kDepth, kAligned>,
                                 RowSteps<X, P, kChannels, kDepth, kAligned>>::Type;

  const ContractParams& p;
  Quad *ring, *slices;

  FASTHT_DEVICE void start(const Tile& tile) const {
    fetch_slice(0);
    Steps steps(p, ring, tile, 0);
    FASTHT_UNROLL for (int step = 0; step < kDepth; ++step) steps.fetch(step);
  }

  // Asks for the tile's features behind those that `start` copies: the memory has little else to do in
  // the phases before this product.
  FASTHT_DEVICE void prefetch_tokens(const Tile& tile) const {
    constexpr int kEach = 64 / X::kBytes, kFrom = kAhead / X::kBytes;  // features
    const int end = smaller(kFrom + p.prefetched, p.dim);
    const Place me;
    for (int token = tile.first + me.thread / 4; token < tile.end; token += kThreads / 4) {
      const typename X::Unit* const row =
          units<X>(p.dout.data) + tile.image * p.dout.batch + token * p.dout.token;
      const int first = kFrom + me.thread % 4 * kEach;
      FASTHT_ROLLED for (int feature = first; feature < end; feature += 4 * kEach) prefetch(row + feature);
    }
  }

  // grad = dout W2 for this warp's 16 tokens; behind a barrier.
  FASTHT_DEVICE void run(const Tile& tile, float (&grad)[kBlocks][4]) const {
    Steps steps(p, ring, tile, kDepth);
    float sums[kTall][kBlocks][4] = {};
    FASTHT_ROLLED for (int slice = 0; slice * kSlice < p.dim; ++slice) {
      // Groups younger than the slice are its steps' before, than a step those of the ring.
      wait_groups<(kOwn < kDepth ? kOwn : kDepth - 1)>();
      sync_block();  // the slice has arrived, and all have done with the other buffer
      if ((slice + 1) * kSlice < p.dim) fetch_slice(slice + 1);
      FASTHT_ROLLED for (int part = 0; part < kOwn; ++part) {
        if (kDepth < 2 * kOwn) wait_groups<kDepth - 1>();
        steps.multiply(sums, slices + slice % 2 * kSliceQuads, part, slice * kOwn + part);
      }
    }
    sync_block();  // all have done with slices and ring
    if constexpr (kPaired) {
      add_shares(tile, sums, grad);
    } else {
      FASTHT_UNROLL for (int n = 0; n < kBlocks; ++n)
        FASTHT_UNROLL for (int i = 0; i < 4; ++i) grad[n][i] = sums[0][n][i];
    }
  }

 private:
  FASTHT_DEVICE void fetch_slice(int slice) const {
    const int thread = reread_thread_index();
    copy_quads<kSliceQuads, kThreads>(
        slices + slice % 2 * kSliceQuads + (Steps::exchanged(thread) - thread),
        static_cast<const Quad*>(p.up) + slice * kSliceQuads, thread);
    end_group();
  }

  // Each of two warps that share 32 rows gets half of these, with the sums of the other.
  FASTHT_DEVICE void add_shares(const Tile& tile, const float (&sums)[kTall][kBlocks][4],
                                float (&grad)[kBlocks][4]) const {
    static_assert(kBlocks * kLanes <= kAhead, "a warp's sums lie where its 16 rows of dout were");
    const Place me;
    const bool second = me.warp % 2 == 1;
    const auto busy = [&](int warp) { return tile.first + warp * 16 < tile.end; };
    const auto place = [&](int warp) { return ring + warp * (kBlocks * kLanes) + me.lane; };
    FASTHT_UNROLL for (int n = 0; n < kBlocks; ++n) {
      Quad other;
      FASTHT_UNROLL for (int i = 0; i < 4; ++i) {
        grad[n][i] = second ? sums[1][n][i] : sums[0][n][i];
        other.v[i] = as_word(second ? sums[0][n][i] : sums[1][n][i]);
      }
      if (busy(me.warp ^ 1)) place(me.warp ^ 1)[n * kLanes] = other;
    }
    sync_block();
    if (!busy(me.warp)) return;
    FASTHT_UNROLL for (int n = 0; n < kBlocks; ++n) {
      const Quad other = place(me.warp)[n * kLanes];
      FASTHT_UNROLL for (int i = 0; i < 4; ++i) grad[n][i] += as_float(other.v[i]);
    }
  }
};

}  // namespace fastht::cuda
