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
  const int thread = reread_thread_index(), lane = thread % kLanes, warp = thread / kLanes;
  float* const sums = scratch;              // [50, C]
  float* const mean = sums + kSize;         // [C] of the filtered map
  float* const hidden = mean + kChannels;   // [hidden], C at most
  float* const d_hidden = hidden + kChannels;
  float* const factors = d_hidden + kChannels;  // [C] of a channel filter
  float* const parts = factors + kChannels;     // [3][kWarps]
  FASTHT_UNROLL_EIGHT for (int i = thread; i < kSize; i += kThreads) sums[i] = correlation[i];
  for (int tile = 1; tile < tiles; ++tile)
    FASTHT_UNROLL_EIGHT for (int i = thread; i < kSize; i += kThreads) sums[i] += correlation[tile * kSize + i];
  for (int i = thread; i < kSize; i += kThreads) correlation[i] = sums[i];
  const bool gated = p.hidden > 0, scaled = p.filter == Filter::kChannel;
  if (!gated && !scaled) return;
  float* const record = p.records + static_cast<long long>(image) * record_size(kChannels, p.hidden);
  const float* const pooled = p.pooled + static_cast<long long>(image) * kChannels;
  const float g3 = p.gate[image * 4], g5 = p.gate[image * 4 + 1], g7 = p.gate[image * 4 + 2];
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
  FASTHT_UNROLL_EIGHT for (int i = thread; i < kSize; i += kThreads) {
    const float k3 = p.bank[i], k5 = p.bank[kSize + i], k7 = p.bank[2 * kSize + i];
    const float middle = g3 * k3 + g5 * k5 + g7 * k7;
    const float factor = i < kTaps * kChannels ? factors[i % kChannels] : 1.0f;  // not of biases
    const float g = sums[i] * factor;
    by_gate[0] += (k3 - middle) * g;
    by_gate[1] += (k5 - middle) * g;
    by_gate[2] += (k7 - middle) * g;
  }
  FASTHT_UNROLL for (int k = 0; k < 3; ++k) {
    FASTHT_UNROLL for (int mask = 16; mask > 0; mask /= 2) by_gate[k] += shuffle_xor(by_gate[k], mask);
    if (lane == 0) parts[k * kWarps + warp] = by_gate[k];
  }
  const GateLayers layers{p.weight0, p.bias0, {}, {}, p.channels, p.hidden};
  hidden_layer<kThreads>(hidden, mean, layers);
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
    float by_filter = d_mean * (pooled[c] * per_pixel);
    FASTHT_UNROLL_EIGHT for (int row = 0; row < kTaps; ++row) {
      const int i = row * kChannels + c;
      by_filter += (g3 * p.bank[i] + g5 * p.bank[kSize + i] + g7 * p.bank[2 * kSize + i]) * sums[i];
    }
    record[record_filter(kChannels) + c] = by_filter;
  }
}

}  // namespace fastht::cuda
