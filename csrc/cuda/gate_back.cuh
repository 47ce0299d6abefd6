// Backward through the noise gate of one image (eq. 3), by the block that has its last correlation.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/numbers.cuh"

namespace fastht::cuda {

// Sums `count` numbers, `step` apart, the block's threads sharing them, in a fixed order.
FASTHT_DEVICE float warp_sum(float value) {
  FASTHT_UNROLL for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// `correlation`: [tiles, 50, C] of this image; its sum goes into the first tile's place. `scratch`:
// (54 C + 4 kThreads) floats of shared memory that nobody else uses now.
template <int kChannels, int kThreads>
FASTHT_DEVICE void gate_backward(const GateParams& p, int image, int tiles, int pixels,
                                 float* correlation, float* scratch) {
  constexpr int kSize = kBankRows * kChannels, kWarps = kThreads / kLanes;
  const int thread = reread_thread_index(), lane = thread % kLanes, warp = thread / kLanes;
  float* const sums = scratch;                 // [50, C]
  float* const mean = sums + kSize;            // [C] of the filtered map
  float* const parts = mean + 4 * kChannels;   // [4][kThreads]
  float* const d_hidden = mean + kChannels;    // [hidden], at most C
  for (int i = thread; i < kSize; i += kThreads) {
    float total = 0.0f;
    for (int tile = 0; tile < tiles; ++tile) total += correlation[tile * kSize + i];
    correlation[i] = total;
    sums[i] = total;
  }
  if (!p.gated && !p.channel_filter) return;
  float* const record = p.records + static_cast<long long>(image) * record_size(kChannels, p.hidden);
  const float g3 = p.gate[image * 4], g5 = p.gate[image * 4 + 1], g7 = p.gate[image * 4 + 2];
  for (int c = thread; c < kChannels; c += kThreads) {
    float total = 0.0f;
    for (int tile = 0; tile < p.pool_tiles; ++tile)
      total += p.pooled[(static_cast<long long>(image) * p.pool_tiles + tile) * kChannels + c];
    mean[c] = total * p.filter_mean[c] / static_cast<float>(pixels);
  }
  sync_block();

  // The softmax's gradient subtracts the gated mean of the three convolutions. Taken from the
  // kernels, not from the sums, it keeps the digits that would cancel.
  float by_gate[3] = {};
  for (int i = thread; i < kSize; i += kThreads) {
    const float k3 = p.bank[i], k5 = p.bank[kSize + i], k7 = p.bank[2 * kSize + i];
    const float middle = g3 * k3 + g5 * k5 + g7 * k7;
    // The filter does not scale the biases.
    const float g = i < kTaps * kChannels ? sums[i] * p.filter[i % kChannels] : sums[i];
    by_gate[0] += (k3 - middle) * g;
    by_gate[1] += (k5 - middle) * g;
    by_gate[2] += (k7 - middle) * g;
  }
  FASTHT_UNROLL for (int k = 0; k < 3; ++k) {
    const float total = warp_sum(by_gate[k]);
    if (lane == 0) parts[k * kWarps + warp] = total;
  }
  sync_block();
  float logits[3] = {};
  FASTHT_UNROLL for (int k = 0; k < 3; ++k) {
    for (int w = 0; w < kWarps; ++w) logits[k] += parts[k * kWarps + w];
    logits[k] *= k == 0 ? g3 : k == 1 ? g5 : g7;
  }
  if (p.gated) {
    if (thread < 4) record[thread] = thread == 0 ? logits[0] : thread == 1 ? logits[1] : thread == 2 ? logits[2] : 0.0f;
    for (int q = warp; q < p.hidden; q += kWarps) {  // a warp for each number of the hidden layer
      float value = 0.0f;
      for (int c = lane; c < kChannels; c += kLanes) value += p.weight0[q * kChannels + c] * mean[c];
      value = warp_sum(value) + p.bias0[q];
      float back = 0.0f;
      FASTHT_UNROLL for (int k = 0; k < 3; ++k) back += p.weight2[k * p.hidden + q] * logits[k];
      if (value <= 0.0f) value = back = 0.0f;  // a NaN goes through, as in PyTorch
      if (lane == 0) {
        d_hidden[q] = back;
        record[record_d_hidden(kChannels) + q] = back;
        record[record_hidden(kChannels, p.hidden) + q] = value;
      }
    }
    sync_block();
  }
  for (int c = thread; c < kChannels; c += kThreads) {
    float d_mean = 0.0f;
    if (p.gated) {
      for (int q = 0; q < p.hidden; ++q) d_mean += p.weight0[q * kChannels + c] * d_hidden[q];
      record[record_mean(kChannels) + c] = mean[c];
    }
    record[record_constant() + c] = d_mean * p.filter[c] / static_cast<float>(pixels);
    if (!p.channel_filter) continue;
    float by_filter = 0.0f, total = 0.0f;
    for (int row = 0; row < kTaps; ++row) {
      const int i = row * kChannels + c;
      by_filter += (g3 * p.bank[i] + g5 * p.bank[kSize + i] + g7 * p.bank[2 * kSize + i]) * sums[i];
    }
    for (int tile = 0; tile < p.pool_tiles; ++tile)
      total += p.pooled[(static_cast<long long>(image) * p.pool_tiles + tile) * kChannels + c];
    record[record_filter(kChannels) + c] = by_filter + d_mean * (total / static_cast<float>(pixels));
  }
}

}  // namespace fastht::cuda
