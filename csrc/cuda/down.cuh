// Forward, first launch over the tokens: LayerNorm mix and down-projection (eq. 1); then, in the
// block that finishes an image, its noise gate and its own 7x7 kernel (eq. 3 and 4).
//
// The LayerNorm is not applied but solved for: two products share x, the row's mean and variance
// are gathered on the way, and u = x skip + rstd (x norm - mean * row sum of norm) + constant.
#pragma once

#include "cuda/forward_params.h"
#include "cuda/gate.cuh"

namespace fastht::cuda {

// Mean and sum of squared deviations of `count` numbers, merged pairwise (Chan et al.): the mean of
// squares less the squared mean would lose everything where |mean| >> sigma.
struct Moments {
  float count, mean, m2;

  FASTHT_DEVICE void merge(const Moments& next) {
    const float total = count + next.count, share = total > 0.0f ? next.count / total : 0.0f;
    const float delta = next.mean - mean;
    mean += delta * share;
    m2 += next.m2 + delta * delta * (count * share);
    count = total;
  }
};

// All lanes of a row (four neighbours) get the merged moments, in the order of the lanes.
FASTHT_DEVICE void merge_lanes(Moments& mine, int lane) {
  FASTHT_UNROLL for (int mask = 1; mask < 4; mask *= 2) {
    Moments other;
    other.count = shuffle_xor(mine.count, mask);
    other.mean = shuffle_xor(mine.mean, mask);
    other.m2 = shuffle_xor(mine.m2, mask);
    // By member: a choice between structs would be one between addresses, in local memory.
    const bool second = (lane & mask) != 0;
    const float count = mine.count, mean = mine.mean, m2 = mine.m2;
    mine.count = second ? other.count : count;
    mine.mean = second ? other.mean : mean;
    mine.m2 = second ? other.m2 : m2;
    other.count = second ? count : other.count;
    other.mean = second ? mean : other.mean;
    other.m2 = second ? m2 : other.m2;
    mine.merge(other);
  }
}

// A rough mean of a row from its first features, or 0. Where |mean| >> sigma, the LayerNorm's part
// is lost to the mean, in the rounding of x for the product or in the sum itself. Rounded as x is,
// it leaves differences that are exact.
template <class X>
FASTHT_DEVICE float rough_mean(const Eight<X>& first, int count, int total) {
  float sum = 0.0f, spread = 0.0f;
  FASTHT_UNROLL for (int i = 0; i < 8; ++i) sum += first[i];
  FASTHT_UNROLL for (int mask = 1; mask < 4; mask *= 2) sum += shuffle_xor(sum, mask);
  const float mean = sum / static_cast<float>(total);
  FASTHT_UNROLL for (int i = 0; i < 8; ++i) {
    const float deviation = i < count ? first[i] - mean : 0.0f;
    spread = fused(deviation, deviation, spread);
  }
  FASTHT_UNROLL for (int mask = 1; mask < 4; mask *= 2) spread += shuffle_xor(spread, mask);
  const float shift = mean * mean * static_cast<float>(total) > 4.0f * spread ? mean : 0.0f;
  if constexpr (X::kBytes == 4)
    return shift;
  else
    return X::first(X::pack(shift, 0.0f));
}

// Adds the first `count` of eight numbers, less the shift, to the moments of the numbers before;
// `values` receives these. `each` is 1 / count or 0, `share` count / (before + count), and `weight`
// before * share: a merge of Moments in which both rows of a lane share the counts. kAligned: count
// is 8 or 0; then the numbers are zeros less the shift, which zeros of the weights are left with.
template <class X, bool kAligned>
FASTHT_DEVICE void gather(Moments& moments, float (&values)[8], const Eight<X>& raw, float shift,
                          int count, float each, float share, float weight) {
  float mean = 0.0f, m2 = 0.0f;
  FASTHT_UNROLL for (int i = 0; i < 8; ++i) {
    values[i] = kAligned || i < count ? raw[i] - shift : 0.0f;
    mean += values[i];
  }
  mean *= each;
  FASTHT_UNROLL for (int i = 0; i < 8; ++i) {
    const float deviation = kAligned || i < count ? values[i] - mean : 0.0f;
    m2 = fused(deviation, deviation, m2);
  }
  if (kAligned && count == 0) m2 = 0.0f;
  const float delta = mean - moments.mean;
  moments.mean = fused(delta, share, moments.mean);
  moments.m2 += fused(delta * delta, weight, m2);
}

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
  for (int c = thread; c < kChannels; c += kThreads) {
    float total = 0.0f;
    for (int tile = 0; tile < p.tiles; ++tile)
      total += p.partials[(static_cast<long long>(image) * p.tiles + tile) * kChannels + c];
    if (p.pooled != nullptr) p.pooled[static_cast<long long>(image) * kChannels + c] = total;
    float scale = 1.0f;
    if (p.filter != Filter::kNone && c < p.channels)
      scale = read(p.spectral_filter, static_cast<long long>(c) * p.frequencies);
    scales[c] = p.filter == Filter::kChannel ? scale : 1.0f;
    mean[c] = total * scale / static_cast<float>(p.grid.tokens - p.grid.prefix);
  }
  sync_block();
  float gate[3] = {1.0f / 3.0f, 1.0f / 3.0f, 1.0f / 3.0f};
  if (gated) {
    const GateLayers layers{p.gate_weight0, p.gate_bias0, p.gate_weight2, p.gate_bias2,
                            p.channels,     p.hidden};
    hidden_layer<kThreads>(hidden, mean, layers);
    sync_block();
    gate_weights(gate, hidden, layers);
  }
  if (thread == 0)
    *reinterpret_cast<Floats*>(p.gate + image * 4ll) = {{gate[0], gate[1], gate[2], 0.0f}};
  Floats* const kernels =
      reinterpret_cast<Floats*>(p.kernels + static_cast<long long>(image) * (kBankRows * kChannels));
  const Floats* const bank = reinterpret_cast<const Floats*>(p.bank);
  constexpr int kSize = kBankRows * kChannels / 4;
  FASTHT_ROLLED for (int i = thread; i < kSize; i += kThreads) {
    const Floats small = bank[i], middle = bank[kSize + i], large = bank[2 * kSize + i];
    Floats sum;
    FASTHT_UNROLL for (int j = 0; j < 4; ++j) {
      sum.v[j] = gate[0] * small.v[j] + gate[1] * middle.v[j] + gate[2] * large.v[j];
      if (i < kTaps * kChannels / 4) sum.v[j] *= scales[i * 4 % kChannels + j];
    }
    kernels[i] = sum;
  }
}

// The end of a tile: u, u_norm and stats go to memory, sums of u over each warp's patches to
// `pools`. Places are read anew: the loop before needs all registers.
template <class X, class P, int kChannels, int kWarps>
FASTHT_DEVICE void finish_tile(const DownParams& p, float (&by_skip)[kChannels / 8][4],
                               float (&by_norm)[kChannels / 8][4], Moments (&moments)[2],
                               const float (&shift)[2], const float* sums, float* pools,
                               const int* place) {
  using F = typename P::Format;
  constexpr int kBlocks = kChannels / 8;
  const int thread = reread_thread_index(), lane = thread & 31, warp = thread >> 5, t = lane & 3;
  const int image = place[0], row0 = place[1] + warp * 16 + lane / 4;
  if (place[1] + warp * 16 >= place[2]) return;
  const float scale = *p.scale;
  float rstd[2];
  bool real[2], patch[2];
  FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
    moments[half].count =
        static_cast<float>(p.dim / 32 * 8 + smaller(larger(p.dim % 32 - t * 8, 0), 8));
    merge_lanes(moments[half], lane);
    rstd[half] = 1.0f / square_root(moments[half].m2 / static_cast<float>(p.dim) + p.eps);
    real[half] = row0 + half * 8 < place[2];
    patch[half] = real[half] && row0 + half * 8 >= p.grid.prefix;
  }
  FASTHT_UNROLL for (int n = 0; n < kBlocks; ++n) {
    const int channel = n / 4 * 32 + t * 8 + n % 4 * 2;
    const Pair row_sum = load_pair<Float32>(sums + channel);
    const Pair constant = load_pair<Float32>(sums + kChannels + channel);
    FASTHT_UNROLL for (int i = 0; i < 4; ++i) {
      const float by_mean = moments[i / 2].mean * (i % 2 == 0 ? row_sum.x : row_sum.y);
      by_norm[n][i] = rstd[i / 2] * (by_norm[n][i] - by_mean);
      by_skip[n][i] += scale * by_norm[n][i] + (i % 2 == 0 ? constant.x : constant.y);
    }
    // Sums of u over the patches of this warp.
    FASTHT_UNROLL for (int e = 0; e < 2; ++e) {
      float sum = (patch[0] ? by_skip[n][e] : 0.0f) + (patch[1] ? by_skip[n][e + 2] : 0.0f);
      FASTHT_UNROLL for (int mask = 4; mask < 32; mask *= 2) sum += shuffle_xor(sum, mask);
      if (lane < 4) pools[warp * kChannels + channel + e] = sum;
    }
  }
  FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
    if (!real[half]) continue;
    const long long token = static_cast<long long>(image) * p.grid.tokens + row0 + half * 8;
    if (p.stats != nullptr && t == 0)
      *reinterpret_cast<Pair*>(p.stats + token * 2) = {moments[half].mean + shift[half],
                                                       rstd[half]};
    store_row<F, kChannels>(units<F>(p.u) + token * kChannels + t * 8, by_skip, half);
    if (p.u_norm != nullptr)
      store_row<F, kChannels>(units<F>(p.u_norm) + token * kChannels + t * 8, by_norm, half);
  }
}

template <class X, class P, int kChannels, int kWarps, int kStages, bool kAligned>
FASTHT_DEVICE void down(const DownParams& p) {
  using F = typename P::Format;
  constexpr int kThreads = kWarps * kLanes, kBlocks = kChannels / 8;
  constexpr int kSlice = slice_width(kChannels, F::kBytes), kParts = kSlice / 32;
  constexpr int kMatrixQuads = kSlice * kChannels * F::kBytes / 16;
  constexpr int kStageQuads = down_stage_bytes(kWarps, kChannels, F::kBytes, X::kBytes) / 16;
  // Registers are short: floats that products round are read again for the second operand, and
  // whole floats by halves for either, in a loop that the compiler cannot take the loads out of.
  constexpr bool kTwice = X::kBytes == 2 * F::kBytes;
  constexpr bool kHalves = Same<P, Float32Products>::value;
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
  const auto own = [&](Quad* stage, int part, int half) {
    constexpr int kEach = Eight<X>::kQuads * kThreads;
    return stage + 2 * kMatrixQuads + (part * 2 + half) * kEach + reread_thread_index();
  };
  // Slices come kStages - 1 ahead: the matrices for all, x into shared memory that each lane has for
  // itself. So many bytes are on their way that memory's latency does not show.
  const auto fetch = [&](int slice, int image, int first, int end) {
    if (slice < count) {
      const int me = reread_thread_index(), row = first + me / kLanes * 16 + me % kLanes / 4;
      Quad* const stage = stages + slice % kStages * kStageQuads;
      const long long from = static_cast<long long>(slice) * kMatrixQuads;
      copy_quads<kMatrixQuads, kThreads>(stage, static_cast<const Quad*>(p.skip) + from, me);
      copy_quads<kMatrixQuads, kThreads>(stage + kMatrixQuads,
                                         static_cast<const Quad*>(p.norm) + from, me);
      const typename X::Unit* const x = units<X>(p.x.data) + image * p.x.batch + row * p.x.token;
      FASTHT_UNROLL for (int part = 0; part < kParts; ++part) {
        const int feature = slice * kSlice + part * 32 + me % 4 * 8;
        FASTHT_UNROLL for (int half = 0; half < 2; ++half)
          fetch_eight<X, kAligned>(own(stage, part, half), kThreads,
                                   x + half * 8 * p.x.token + feature,
                                   row + half * 8 < end ? p.dim - feature : 0);
      }
    }
    end_group();
  };
  FASTHT_UNROLL for (int slice = 0; slice < kStages - 1; ++slice) fetch(slice, image, first, end);
  for (int i = thread; i < 2 * kChannels; i += kThreads) sums[i] = p.sums[i];
  if (thread == 0) place[0] = image, place[1] = first, place[2] = end;

  float shift[2] = {};
  wait_groups<kStages - 2>();
  if (first + thread / kLanes * 16 < end) {
    const int t = thread % 4;
    FASTHT_UNROLL for (int half = 0; half < 2; ++half)
      shift[half] = rough_mean(own_eight<X>(own(stages, 0, half), kThreads), p.dim - t * 8,
                               smaller(p.dim, 32));
  }
  Moments moments[2] = {};
  float by_skip[kBlocks][4] = {}, by_norm[kBlocks][4] = {};
  FASTHT_ROLLED for (int slice = 0; slice < count; ++slice) {
    wait_groups<kStages - 2>();
    sync_block();  // the slice has arrived, and all have done with the one before
    fetch(slice + kStages - 1, place[0], place[1], place[2]);
    // Where this thread is, is read anew in each turn: registers are short.
    const int me = reread_thread_index(), lane = me % kLanes, t = lane % 4;
    if (place[1] + me / kLanes * 16 >= place[2]) continue;
    Quad* const stage = stages + slice % kStages * kStageQuads;
    FASTHT_ROLLED for (int part = 0; part < kParts; ++part) {
      const int feature = slice * kSlice + part * 32;
      Eight<X> raw[2];
      FASTHT_UNROLL for (int half = 0; half < 2; ++half)
        raw[half] = own_eight<X>(own(stage, part, half), kThreads);
      if constexpr (!kHalves) {
        typename P::Left plain;
        FASTHT_UNROLL for (int half = 0; half < 2; ++half) plain.set(half, raw[half]);
        P::multiply_all(by_skip, plain, stage, part * kBlocks, 1, lane);
      }
      if constexpr (kTwice) keep_order();
      typename P::Left centred;
      const int left = p.dim - feature - t * 8;
      const int present = kAligned ? (left > 0 ? 8 : 0) : smaller(larger(left, 0), 8);
      const float before = static_cast<float>(feature / 4), found = static_cast<float>(present);
      const float share = found / larger_of(before + found, 1.0f), weight = before * share;
      const float each = kAligned || present == 8 ? 0.125f : 1.0f / larger_of(found, 1.0f);
      FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
        float values[8];
        if constexpr (kTwice) raw[half] = own_eight<X>(own(stage, part, half), kThreads);
        gather<X, kAligned>(moments[half], values, raw[half], shift[half], present, each, share,
                            weight);
        centred.set(half, values);
      }
      if constexpr (kHalves) {
        const auto by_halves = [&](float (&sums)[kBlocks][4], const Quad* matrix,
                                   const float (&less)[2]) {
          FASTHT_ROLLED for (int q = 0; q < 2; ++q) {
            float four[2][4];
            FASTHT_UNROLL for (int half = 0; half < 2; ++half) {
              const Quad quad = own(stage, part, half)[q * kThreads];
              FASTHT_UNROLL for (int i = 0; i < 4; ++i)
                four[half][i] =
                    kAligned || q * 4 + i < present ? as_float(quad.v[i]) - less[half] : 0.0f;
            }
            P::multiply_half(sums, four, matrix, part * kBlocks, 1, q, lane);
          }
        };
        const float nothing[2] = {};
        by_halves(by_skip, stage, nothing);
        by_halves(by_norm, stage + kMatrixQuads, shift);
      } else {
        P::multiply_all(by_norm, centred, stage + kMatrixQuads, part * kBlocks, 1, lane);
      }
    }
  }

  finish_tile<X, P, kChannels, kWarps>(p, by_skip, by_norm, moments, shift, sums, pools, place);
  sync_block();
  for (int c = reread_thread_index(); c < kChannels; c += kThreads) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps && place[1] + w * 16 < place[2]; ++w)
      sum += pools[w * kChannels + c];
    p.partials[static_cast<long long>(block_index()) * kChannels + c] = sum;
  }
  if (last_to_arrive(p.counters + place[0], p.tiles, flag))
    finish_image<kChannels, kThreads>(p, place[0], mean, scales, hidden);
}

}  // namespace fastht::cuda
