// Folds the parameters into what the token kernels read: one small launch before each pass.
#pragma once

#include "cuda/forward_params.h"
#include "cuda/gate.cuh"

namespace fastht::cuda {

// A power of two near the largest |gamma * ln_w|, the same in all threads. gamma starts at 1e-6:
// without it the folded weights, and the saved u_norm, would be subnormal in float16.
FASTHT_DEVICE float norm_scale(const FoldParams& p, float* shared) {
  float largest = 0.0f;
  for (int d = thread_index(); d < p.dim; d += kFoldThreads) {
    const float product = read(p.gamma, d) * read(p.norm_weight, d);
    const float size = product < 0.0f ? -product : product;
    largest = size > largest ? size : largest;
  }
  shared[thread_index()] = largest;
  sync_block();
  for (int i = 0; i < kFoldThreads; ++i) largest = shared[i] > largest ? shared[i] : largest;
  return largest > 1e-30f ? as_float(as_word(largest) & 0x7f800000u) : 1.0f;
}

template <class F>
FASTHT_DEVICE float rounded(float value) {
  if constexpr (F::kBytes == 4)
    return value;
  else
    return F::first(F::pack(value, 0.0f));
}

template <class F>
FASTHT_DEVICE void fold_matrix(const FoldParams& p, const FoldMatrix& m, int first, float scale) {
  const int lane = thread_index() % kLanes, block = first * kFoldBlocks + thread_index() / kLanes;
  if (block >= m.outputs * m.groups) return;
  const int output = m.depth_first ? block % m.outputs : block / m.groups;
  const int group = m.depth_first ? block / m.outputs : block % m.groups;
  const int row = m.wide ? wide_number(output, lane) : narrow_number(output, lane);
  typename F::Unit* const to = units<F>(m.to) + static_cast<long long>(block) * kBlock;
  FASTHT_UNROLL for (int w = 0; w < 8; ++w) {
    const int k = m.memory ? memory_order(group, lane, w) : register_order(group, lane, w);
    float value = 0.0f;
    if (row < m.rows && k < m.depth) {
      value = read(m.source, static_cast<long long>(row) * m.row_stride +
                                 static_cast<long long>(k) * m.k_stride);
      if (m.scaling == Scaling::kGammax) value *= read(p.gammax, k);
      if (m.scaling == Scaling::kNorm) value *= read(p.gamma, k) * read(p.norm_weight, k) / scale;
    }
    store_one<F>(to + fragment_at<F>(lane, w), value);
  }
}

// A warp for each channel. The row sums must be those of the rounded weights, or |mean| * rounding
// error remains.
template <class F>
FASTHT_DEVICE void fold_sums(const FoldParams& p, int first, int padded, float scale) {
  const int lane = thread_index() % kLanes;
  const int c = first * (kFoldThreads / kLanes) + thread_index() / kLanes;
  float sum = 0.0f, constant = 0.0f;
  for (int d = lane; d < p.dim && c < p.channels; d += kLanes) {
    const float weight = read(p.down_weight, static_cast<long long>(c) * p.dim + d);
    const float gamma = read(p.gamma, d);
    sum += rounded<F>(weight * (gamma * read(p.norm_weight, d) / scale));
    constant += weight * (gamma * read(p.norm_bias, d));
  }
  for (int mask = 16; mask > 0; mask /= 2) {
    sum += shuffle_xor(sum, mask);
    constant += shuffle_xor(constant, mask);
  }
  if (lane != 0 || c >= padded) return;
  p.sums[c] = sum;
  p.sums[padded + c] = c < p.channels ? constant + read(p.down_bias, c) : 0.0f;
}

template <class P, int kChannels>
FASTHT_DEVICE void fold(const FoldParams& p) {
  using F = typename P::Format;
  Carver carver;
  float* const shared = carver.take<float>(kFoldThreads);
  const int block = block_index(), thread = thread_index(), sums = p.matrix_count;
  if (block < p.first[sums + 1]) {
    const float scale = norm_scale(p, shared);
    for (int i = 0; i < p.matrix_count; ++i)
      if (block >= p.first[i] && block < p.first[i + 1])
        fold_matrix<F>(p, p.matrices[i], block - p.first[i], scale);
    if (block >= p.first[sums]) {
      fold_sums<F>(p, block - p.first[sums], kChannels, scale);
      if (block == p.first[sums] && thread == 0) *p.scale = scale;
    }
  } else if (block < p.first[sums + 2]) {
    const int step = (p.first[sums + 2] - p.first[sums + 1]) * kFoldThreads;
    for (int i = (block - p.first[sums + 1]) * kFoldThreads + thread;
         i < 3 * kBankRows * kChannels; i += step) {
      const int c = i % kChannels, row = i / kChannels % kBankRows, k = i / (kBankRows * kChannels);
      p.bank[i] = c < p.channels ? bank_value(p.conv_weight[k], p.conv_bias[k], k, row, c) : 0.0f;
    }
  } else if (block < p.first[sums + 3]) {
    for (int d = thread; d < p.padded_dim; d += kFoldThreads)
      p.up_bias_out[d] = d < p.dim ? read(p.up_bias, d) : 0.0f;
    for (int c = thread; c < kChannels; c += kFoldThreads)
      p.point_bias_out[c] = c < p.channels ? read(p.point_bias, c) : 0.0f;
    for (int b = thread; b < p.batch; b += kFoldThreads) p.counters[b] = 0;
  } else {
    const long long image = block - p.first[sums + 3];
    const float* const gate = p.gate + image * 4;
    for (int i = thread; i < kBankRows * kChannels; i += kFoldThreads) {
      const int c = i % kChannels, row = i / kChannels;
      float values[3] = {};
      if (c < p.channels)
        for (int k = 0; k < 3; ++k)
          values[k] = bank_value(p.conv_weight[k], p.conv_bias[k], k, row, c);
      float value = gate[0] * values[0] + gate[1] * values[1] + gate[2] * values[2];
      if (row < kTaps && p.filter == Filter::kChannel && c < p.channels)
        value *= read(p.spectral_filter, c);
      p.kernels[image * (kBankRows * kChannels) + i] = value;
    }
  }
}

}  // namespace fastht::cuda
