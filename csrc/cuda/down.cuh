// Forward, first launch over the tokens: LayerNorm mix and down-projection (eq. 1); then, in the
// block that finishes an image, its noise gate and its own 7x7 kernel (eq. 3 and 4).
//
// The LayerNorm is not applied but solved for: two products share x, the row's mean and variance
// are gathered on the way, and u = x skip + rstd (x norm - mean * row sum of norm) + constant.
#pragma once

#include "cuda/forward_params.h"
#include "cuda/gate.cuh"
#include "cuda/moments.cuh"

namespace fastht::cuda {

// Stores a lane's share of row g (+ 8) of results with wide numbers.
template <class F, int kChannels>
FASTHT_DEVICE void store_row(typename F::Unit* row, const float (&c)[kChannels / 8][4], int half) {
  FASTHT_UNROLL for (int j = 0; j < kChannels / 32; ++j) {
    float values[8];
    FASTHT_UNROLL for (int i = 0; i < 8; ++i) values[i] = c[j * 4 + i / 2][half * 2 + i % 2];
    Eight<F> result;
    result.set(values);
    store_eight<F, true>(row + j * 32, result, 8);
  }
}

// The gate of the block's image and its 7x7 kernel, from the partial sums of all its tiles.
template <int kChannels, int kThreads>
FASTHT_DEVICE void finish_image(const DownParams& p, int image, float* mean, float* scales,
                                float* hidden) {
  const int thread = reread_thread_index();
  const bool gated = p.gate_weight0.data != nullptr;
  // All parameters are on their way before the sums are known: one wait, not one after another.
  const GateLayers layers{p.gate_weight0, p.gate_bias0, p.gate_weight2, p.gate_bias2,
                          p.channels,     gated ? p.hidden : 0};
  HiddenLayer<kThreads> hidden_layer(layers);
  const GateOutput output(layers);
  constexpr int kSize = kBankRows * kChannels / 4, kMost = 7;
  constexpr int kEach = ceil_div(kSize, kThreads) < kMost ? ceil_div(kSize, kThreads) : kMost;
  Floats bank[kEach][3];
  const auto load_bank = [&](int start) {
    FASTHT_UNROLL for (int e = 0; e < kEach; ++e)
      FASTHT_UNROLL for (int k = 0; k < 3; ++k)
        bank[e][k] = reinterpret_cast<const Floats*>(
            p.bank)[k * kSize + smaller(start + e * kThreads, kSize - 1)];
  };
  load_bank(thread);
  for (int c = thread; c < kChannels; c += kThreads) {
    float total = 0.0f, scale = 1.0f;
    if (p.filter != Filter::kNone && c < p.channels)
      scale = read(p.spectral_filter, static_cast<long long>(c) * p.frequencies);
    FASTHT_UNROLL_BY(8)  // so many loads at once
    for (int tile = 0; tile < p.tiles; ++tile)
      total += p.partials[(static_cast<long long>(image) * p.tiles + tile) * kChannels + c];
    if (p.pooled != nullptr) p.pooled[static_cast<long long>(image) * kChannels + c] = total;
    scales[c] = p.filter == Filter::kChannel ? scale : 1.0f;
    mean[c] = total * scale / static_cast<float>(p.grid.tokens - p.grid.prefix);
  }
  sync_block();
  float gate[3] = {1.0f / 3.0f, 1.0f / 3.0f, 1.0f / 3.0f};
  if (gated) {
    hidden_layer.run(hidden, mean);
    sync_block();
    output.weights(gate, hidden);
  }
  if (thread == 0)
    *reinterpret_cast<Floats*>(p.gate + image * 4ll) = {{gate[0], gate[1], gate[2], 0.0f}};
  Floats* const kernels =
      reinterpret_cast<Floats*>(p.kernels + static_cast<long long>(image) * (kBankRows * kChannels));
  FASTHT_ROLLED for (int start = thread; start < kSize; start += kEach * kThreads) {
    if (start != thread) load_bank(start);
    FASTHT_UNROLL for (int e = 0; e < kEach; ++e) {
      const int i = start + e * kThreads;
      if (i >= kSize) break;
      Floats sum;
      FASTHT_UNROLL for (int j = 0; j < 4; ++j) {
        sum.v[j] = gate[0] * bank[e][0].v[j] + gate[1] * bank[e][1].v[j] + gate[2] * bank[e][2].v[j];
        if (i < kTaps * kChannels / 4) sum.v[j] *= scales[i * 4 % kChannels + j];
      }
      kernels[i] = sum;
    }
  }
}

// The end of a tile: u, u_norm and stats go to memory, sums of u over each warp's patches to
// `pools`. Places are read anew: the loop before needs all registers.
template <class X, class P, class Statistics, int kChannels, int kTall>
FASTHT_DEVICE void finish_tile(const DownParams& p, float (&by_skip)[kTall][kChannels / 8][4],
                               float (&by_norm)[kTall][kChannels / 8][4],
                               Statistics (&statistics)[kTall], const float* sums, float* pools,
                               const int* place) {
  using F = typename P::Format;
  constexpr int kBlocks = kChannels / 8, kRows = kTall * 16;
  const int thread = reread_thread_index(), lane = thread & 31, warp = thread >> 5, t = lane & 3;
  const int image = place[0];
  if (place[1] + warp * kRows >= place[2]) return;
  const float scale = *p.scale, each = 1.0f / static_cast<float>(p.dim);
  float rstd[kTall][2];
  bool real[kTall][2], patch[kTall][2];
  FASTHT_UNROLL for (int m = 0; m < kTall; ++m) {
    statistics[m].finish(p.dim, lane);
    FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
      const int row = place[1] + warp * kRows + lane / 4 + m * 16 + half * 8;
      rstd[m][half] = 1.0f / square_root(statistics[m].m2[half] * each + p.eps);
      real[m][half] = row < place[2];
      patch[m][half] = real[m][half] && row >= p.grid.prefix;
    }
  }
  FASTHT_UNROLL for (int n = 0; n < kBlocks; ++n) {
    const int channel = n / 4 * 32 + t * 8 + n % 4 * 2;
    const Pair row_sum = load_pair<Float32>(sums + channel);
    const Pair constant = load_pair<Float32>(sums + kChannels + channel);
    float pooled[2] = {};  // over the patches of this warp
    FASTHT_UNROLL for (int m = 0; m < kTall; ++m)
      FASTHT_UNROLL for (int i = 0; i < 4; ++i) {
        const float by_mean = statistics[m].mean[i / 2] * (i % 2 == 0 ? row_sum.x : row_sum.y);
        float& norm = by_norm[m][n][i];
        float& u = by_skip[m][n][i];
        norm = rstd[m][i / 2] * (norm - by_mean);
        u += scale * norm + (i % 2 == 0 ? constant.x : constant.y);
        pooled[i % 2] += patch[m][i / 2] ? u : 0.0f;
      }
    FASTHT_UNROLL for (int e = 0; e < 2; ++e) {
      float sum = pooled[e];
      FASTHT_UNROLL for (int mask = 4; mask < 32; mask *= 2) sum += shuffle_xor(sum, mask);
      if (lane < 4) pools[warp * kChannels + channel + e] = sum;
    }
  }
  const int row0 = place[1] + warp * kRows + lane / 4;  // not before: the loop needs its register
  FASTHT_UNROLL for (int m = 0; m < kTall; ++m)
    FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
      if (!real[m][half]) continue;
      const long long token = static_cast<long long>(image) * p.grid.tokens + row0 + m * 16 + half * 8;
      if (p.stats != nullptr && t == 0)
        *reinterpret_cast<Pair*>(p.stats + token * 2) = {
            statistics[m].mean[half] + statistics[m].shift[half], rstd[m][half]};
      store_row<F, kChannels>(units<F>(p.u) + token * kChannels + t * 8, by_skip[m], half);
      if (p.u_norm != nullptr)
        store_row<F, kChannels>(units<F>(p.u_norm) + token * kChannels + t * 8, by_norm[m], half);
    }
}

// Float32Products::multiply_half of numbers rounded to TensorFloat-32.
template <int kCount>
FASTHT_DEVICE void multiply_rounded(float (&c)[kCount][4], const float (&left)[2][4],
                                    const Quad* matrix, int first, int half_k, int lane) {
  Word part[2][4];
  FASTHT_UNROLL for (int i = 0; i < 2; ++i) FASTHT_UNROLL for (int r = 0; r < 4; ++r)
    part[i][r] = round_to_tf32(left[r % 2][i * 2 + r / 2]);
  FASTHT_UNROLL for (int n = 0; n < kCount; ++n) {
    const Quad right = matrix[((first + n) * 2 + half_k) * kLanes + lane];
    FASTHT_UNROLL for (int i = 0; i < 2; ++i)
      mma_tf32(c[n], part[i], round_to_tf32(as_float(right.v[2 * i])),
               round_to_tf32(as_float(right.v[2 * i + 1])));
  }
}

template <class X, class P, int kChannels, int kWarps, int kStages, bool kAligned>
FASTHT_DEVICE void down(const DownParams& p) {
  using F = typename P::Format;
  constexpr int kThreads = kWarps * kLanes, kBlocks = kChannels / 8;
  constexpr int kTall = down_tall(kChannels, F::kBytes), kRows = kTall * 16;  // of a warp
  constexpr int kSlice = slice_width(kChannels, F::kBytes), kParts = kSlice / 32;
  constexpr int kMatrixQuads = kSlice * kChannels * F::kBytes / 16;
  constexpr int kStageQuads = down_stage_bytes(kWarps, kChannels, F::kBytes, X::kBytes) / 16;
  // Registers are short: floats that products round are read again for the second operand, and
  // whole floats, and rounded ones of most channels whose rows are cut short, by halves for either,
  // in a loop that the compiler cannot take the loads out of.
  constexpr bool kTwice = X::kBytes == 2 * F::kBytes;
  constexpr bool kWhole = Same<P, Float32Products>::value;
  constexpr bool kHalves =
      kWhole || (Same<P, Tf32Products>::value && kChannels == 128 && !kAligned);
  const int thread = thread_index();
  const int image = block_index() / p.tiles, first = block_index() % p.tiles * p.rows;
  const int end = smaller(first + p.rows, p.grid.tokens);
  Carver carver;
  Quad* const stages = carver.take<Quad>(kStages * kStageQuads);
  float* const sums = carver.take<float>(2 * kChannels);
  float* const pools = carver.take<float>(kWarps * kChannels);
  float* const mean = carver.take<float>(kChannels);
  float* const scales = carver.take<float>(kChannels);
  float* const hidden = carver.take<float>(kMostHidden);
  int* const place = carver.take<int>(4);
  Word* const flag = carver.take<Word>(4);

  const int count = ceil_div(p.dim, kSlice);
  const auto own = [&](Quad* stage, int part, int m, int half) {
    constexpr int kEach = Eight<X>::kQuads * kThreads;
    return stage + 2 * kMatrixQuads + ((part * kTall + m) * 2 + half) * kEach +
           reread_thread_index();
  };
  // Slices come kStages - 1 ahead: the matrices for all, x into shared memory that each lane has for
  // itself. So many bytes are on their way that memory's latency does not show.
  const auto fetch = [&](int slice, int image, int first, int end) {
    if (slice < count) {
      const int me = reread_thread_index(), row = first + me / kLanes * kRows + me % kLanes / 4;
      Quad* const stage = stages + slice % kStages * kStageQuads;
      const long long from = static_cast<long long>(slice) * kMatrixQuads;
      copy_quads<kMatrixQuads, kThreads>(stage, static_cast<const Quad*>(p.skip) + from, me);
      copy_quads<kMatrixQuads, kThreads>(stage + kMatrixQuads,
                                         static_cast<const Quad*>(p.norm) + from, me);
      const typename X::Unit* const x = units<X>(p.x.data) + image * p.x.batch + row * p.x.token;
      FASTHT_UNROLL for (int part = 0; part < kParts; ++part) {
        const int feature = slice * kSlice + part * 32 + me % 4 * 8;
        FASTHT_UNROLL for (int m = 0; m < kTall; ++m)
          FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
            const int below = m * 16 + half * 8;
            fetch_eight<X, kAligned>(own(stage, part, m, half), kThreads,
                                     x + below * p.x.token + feature,
                                     row + below < end ? p.dim - feature : 0);
          }
      }
    }
    end_group();
  };
  FASTHT_UNROLL for (int slice = 0; slice < kStages - 1; ++slice) fetch(slice, image, first, end);
  for (int i = thread; i < 2 * kChannels; i += kThreads) sums[i] = p.sums[i];
  if (thread == 0) place[0] = image, place[1] = first, place[2] = end;

  Statistics<X, P, kAligned> statistics[kTall];
  wait_groups<kStages - 2>();
  if (first + thread / kLanes * kRows < end) {
    FASTHT_UNROLL for (int m = 0; m < kTall; ++m)
      FASTHT_UNROLL for (int half = 0; half < 2; ++half)
        statistics[m].start(half, own_eight<X>(own(stages, 0, m, half), kThreads), p.dim, thread % 4);
  }
  float by_skip[kTall][kBlocks][4] = {}, by_norm[kTall][kBlocks][4] = {};
  FASTHT_ROLLED for (int slice = 0; slice < count; ++slice) {
    wait_groups<kStages - 2>();
    sync_block();  // the slice has arrived, and all have done with the one before
    fetch(slice + kStages - 1, place[0], place[1], place[2]);
    // Where this thread is, is read anew in each turn: registers are short.
    const int me = reread_thread_index(), lane = me % kLanes, t = lane % 4;
    if (place[1] + me / kLanes * kRows >= place[2]) continue;
    Quad* const stage = stages + slice % kStages * kStageQuads;
    FASTHT_ROLLED for (int part = 0; part < kParts; ++part) {
      const int feature = slice * kSlice + part * 32;
      Eight<X> raw[kTall][2];
      typename P::Left left[kTall];
      const auto read_x = [&] {
        FASTHT_UNROLL for (int m = 0; m < kTall; ++m)
          FASTHT_UNROLL for (int half = 0; half < 2; ++half)
            raw[m][half] = own_eight<X>(own(stage, part, m, half), kThreads);
      };
      read_x();
      if constexpr (!kHalves) {
        const Word there = feature + t * 8 < p.dim ? 0xffffffffu : 0u;
        FASTHT_UNROLL for (int m = 0; m < kTall; ++m)
          FASTHT_UNROLL for (int half = 0; half < 2; ++half)
            set_masked<P>(left[m], half, raw[m][half], there);
        multiply_tall<P>(by_skip, left, stage, part * kBlocks, 1, lane);
      }
      if constexpr (kTwice) {
        keep_order();
        read_x();
      }
      FASTHT_UNROLL for (int m = 0; m < kTall; ++m)
        statistics[m].centre(left[m], raw[m], feature, p.dim, t);
      if constexpr (kHalves) {
        const int present = present_of(feature, p.dim, t);
        const auto by_halves = [&](float (&sums)[kBlocks][4], const Quad* matrix,
                                   const float (&less)[2]) {
          FASTHT_ROLLED for (int q = 0; q < 2; ++q) {
            float four[2][4];
            FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
              const Quad quad = own(stage, part, 0, half)[q * kThreads];
              FASTHT_UNROLL for (int i = 0; i < 4; ++i)
                four[half][i] =
                    kAligned || q * 4 + i < present ? as_float(quad.v[i]) - less[half] : 0.0f;
            }
            if constexpr (kWhole)
              P::multiply_half(sums, four, matrix, part * kBlocks, 1, q, lane);
            else
              multiply_rounded(sums, four, matrix, part * kBlocks, q, lane);
          }
        };
        const float nothing[2] = {};
        by_halves(by_skip[0], stage, nothing);
        by_halves(by_norm[0], stage + kMatrixQuads, statistics[0].shift);
      } else {
        multiply_tall<P>(by_norm, left, stage + kMatrixQuads, part * kBlocks, 1, lane);
      }
    }
  }

  finish_tile<X, P, Statistics<X, P, kAligned>, kChannels, kTall>(p, by_skip, by_norm, statistics,
                                                                  sums, pools, place);
  sync_block();
  for (int c = reread_thread_index(); c < kChannels; c += kThreads) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps && place[1] + w * kRows < place[2]; ++w)
      sum += pools[w * kChannels + c];
    p.partials[static_cast<long long>(block_index()) * kChannels + c] = sum;
  }
  if (last_to_arrive(p.counters + place[0], p.tiles, flag))
    finish_image<kChannels, kThreads>(p, place[0], mean, scales, hidden);
}

}  // namespace fastht::cuda
