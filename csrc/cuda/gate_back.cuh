// Backward through the noise gate of one image (eq. 3), by the block that has its last correlation.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/gate.cuh"

namespace fastht::cuda {

// `correlation`: [tiles, 50, C] of this image; its sum goes into the first tile's place. `scratch`:
// gate_back_floats of shared memory that nobody else uses now.
template <int kChannels, int kThreads>
FASTHT_DEVICE void gate_back(const GateParams& p, int image, int tiles, int pixels,
                             float* correlation, float* scratch) {
  constexpr int kSize = kBankRows * kChannels, kWarps = kThreads / kLanes;
  constexpr int kRows = kThreads > kChannels ? kThreads / kChannels : 1;  // that are summed at a time
  // Rows of a thread whose numbers are on their way at once.
  constexpr int kEach = ceil_div(kBankRows, kRows) < 13 ? ceil_div(kBankRows, kRows) : 13;
  constexpr int kRounds = ceil_div(kBankRows, kRows * kEach);
  const int thread = reread_thread_index(), lane = thread % kLanes, warp = thread / kLanes;
  float* const mean = scratch;              // [C] of the filtered map
  float* const hidden = mean + kChannels;   // [hidden], C at most
  float* const d_hidden = hidden + kChannels;
  float* const factors = d_hidden + kChannels;  // [C] of a channel filter
  float* const by_filter = factors + kChannels;  // [kRows, C]
  float* const parts = by_filter + kRows * kChannels;  // [3][kWarps]
  const bool gated = p.hidden > 0, scaled = p.filter == Filter::kChannel;
  const bool needed = gated || scaled;
  const float g3 = p.gate[image * 4], g5 = p.gate[image * 4 + 1], g7 = p.gate[image * 4 + 2];
  const float* const pooled = p.pooled + static_cast<long long>(image) * kChannels;
  const float per_pixel = 1.0f / static_cast<float>(pixels);
  for (int c = thread; c < kChannels; c += kThreads) {
    float factor = 1.0f;
    if (p.filter != Filter::kNone && c < p.channels) factor = read(p.spectral_filter, c * p.frequencies);
    mean[c] = pooled[c] * factor * per_pixel;
    factors[c] = scaled ? factor : 1.0f;
  }
  sync_block();

  // The softmax's gradient subtracts the gated mean of the three convolutions. Taken from the
  // kernels, not from the sums, it keeps the digits that would cancel.
  float by_gate[3] = {};
  FASTHT_ROLLED for (int column = 0; column < kChannels; column += kThreads) {
    const int c = column + thread % kChannels;
    const float factor = factors[c];
    float along = 0.0f;  // the sums and the kernels
    FASTHT_ROLLED for (int round = 0; round < kRounds; ++round) {
      const int first = round * (kEach * kRows) + thread / kChannels;
      float sums[kEach] = {}, kernels[kEach][3] = {};
      FASTHT_UNROLL for (int i = 0; i < kEach; ++i) FASTHT_UNROLL for (int k = 0; k < 3; ++k)
        if (needed && first + i * kRows < kBankRows)
          kernels[i][k] = p.bank[k * kSize + (first + i * kRows) * kChannels + c];
      FASTHT_ROLLED for (int tile = 0; tile < tiles; ++tile)
        FASTHT_UNROLL for (int i = 0; i < kEach; ++i)
          if (first + i * kRows < kBankRows)
            sums[i] += correlation[tile * kSize + (first + i * kRows) * kChannels + c];
      FASTHT_UNROLL for (int i = 0; i < kEach; ++i) {
        const int row = first + i * kRows;
        if (row >= kBankRows) continue;
        correlation[row * kChannels + c] = sums[i];
        const float middle = g3 * kernels[i][0] + g5 * kernels[i][1] + g7 * kernels[i][2];
        const float g = row < kTaps ? sums[i] * factor : sums[i];  // not of biases
        FASTHT_UNROLL for (int k = 0; k < 3; ++k) by_gate[k] += (kernels[i][k] - middle) * g;
        if (row < kTaps) along += middle * sums[i];
      }
    }
    by_filter[thread / kChannels * kChannels + c] = along;
  }
  if (!needed) return;
  float* const record = p.records + static_cast<long long>(image) * record_size(kChannels, p.hidden);
  FASTHT_UNROLL for (int k = 0; k < 3; ++k) {
    FASTHT_UNROLL for (int mask = 16; mask > 0; mask /= 2) by_gate[k] += shuffle_xor(by_gate[k], mask);
    if (lane == 0) parts[k * kWarps + warp] = by_gate[k];
  }
  const GateLayers layers{p.weight0, p.bias0, {}, {}, p.channels, p.hidden};
  HiddenLayer<kThreads>(layers).run(hidden, mean);
  sync_block();
  if (gated) {
    float logits[3] = {};
    FASTHT_UNROLL for (int k = 0; k < 3; ++k) {
      FASTHT_UNROLL for (int w = 0; w < kWarps; ++w) logits[k] += parts[k * kWarps + w];
      logits[k] *= k == 0 ? g3 : k == 1 ? g5 : g7;
      if (thread == k) record[k] = logits[k];
    }
    for (int q = thread; q < p.hidden; q += kThreads) {
      float back = 0.0f;
      FASTHT_UNROLL for (int k = 0; k < 3; ++k) back += read(p.weight2, k * p.hidden + q) * logits[k];
      const bool closed = hidden[q] <= 0.0f;  // a NaN goes through, as in PyTorch
      d_hidden[q] = closed ? 0.0f : back;
      record[record_d_hidden(kChannels) + q] = d_hidden[q];
      record[record_hidden(kChannels, p.hidden) + q] = closed ? 0.0f : hidden[q];
    }
    sync_block();
  }
  for (int c = thread; c < kChannels; c += kThreads) {
    const bool real = c < p.channels;
    float d_mean = 0.0f;
    for (int first = 0; first < p.hidden; first += 8) {
      int at[8];
      float weight[8];
      FASTHT_UNROLL for (int i = 0; i < 8; ++i)
        at[i] = real && first + i < p.hidden ? (first + i) * p.channels + c : -1;
      read_all(weight, p.weight0, at);
      FASTHT_UNROLL for (int i = 0; i < 8; ++i)
        if (at[i] >= 0) d_mean += weight[i] * d_hidden[first + i];
    }
    record[record_mean(kChannels) + c] = mean[c];
    record[record_constant() + c] = d_mean * factors[c] * per_pixel;
    if (!scaled) continue;
    float total = d_mean * (pooled[c] * per_pixel);
    FASTHT_UNROLL for (int i = 0; i < kRows; ++i) total += by_filter[i * kChannels + c];
    record[record_filter(kChannels) + c] = total;
  }
}

}  // namespace fastht::cuda
