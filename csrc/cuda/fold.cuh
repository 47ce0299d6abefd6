// Folds the parameters into what the token kernels read: one small launch before each pass.
#pragma once

#include "cuda/forward_params.h"
#include "cuda/gate.cuh"

namespace fastht::cuda {

constexpr int kFoldEach = 8;  // numbers that a thread reads at a time

// A power of two near the largest |gamma * ln_w|, the same in all threads. gamma starts at 1e-6:
// without it the folded weights, and the saved u_norm, would be subnormal in float16. To multiply by its
// inverse is exact.
FASTHT_DEVICE float norm_scale(const FoldParams& p, float* shared) {
  const int thread = thread_index();
  float largest = 0.0f;
  for (int first = thread; first < p.dim; first += kFoldEach * kFoldThreads) {
    int at[kFoldEach];
    float gamma[kFoldEach], weight[kFoldEach];
    FASTHT_UNROLL for (int i = 0; i < kFoldEach; ++i)
      at[i] = first + i * kFoldThreads < p.dim ? first + i * kFoldThreads : -1;
    read_all(gamma, p.gamma, at);
    read_all(weight, p.norm_weight, at);
    FASTHT_UNROLL for (int i = 0; i < kFoldEach; ++i) {
      const float product = gamma[i] * weight[i];
      largest = larger_of(product < 0.0f ? -product : product, largest);  // a NaN goes
    }
  }
  for (int mask = 16; mask > 0; mask /= 2) largest = larger_of(largest, shuffle_xor(largest, mask));
  if (thread % kLanes == 0) shared[thread / kLanes] = largest;
  sync_block();
  FASTHT_UNROLL for (int i = 0; i < kFoldThreads / kLanes; ++i) largest = larger_of(largest, shared[i]);
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
  int depth[8], at[8];
  float values[8], gamma[8];
  FASTHT_UNROLL for (int w = 0; w < 8; ++w) {
    const int k = m.memory ? memory_order(group, lane, w) : register_order(group, lane, w);
    depth[w] = row < m.rows && k < m.depth ? k : -1;
    at[w] = depth[w] < 0 ? -1 : row * m.row_stride + k * m.k_stride;
  }
  read_all(values, m.source, at);
  if (m.scaling == Scaling::kGammax) {
    read_all(gamma, p.gammax, depth);
    FASTHT_UNROLL for (int w = 0; w < 8; ++w) values[w] *= gamma[w];
  }
  if (m.scaling == Scaling::kNorm) {
    float weight[8];
    read_all(gamma, p.gamma, depth);
    read_all(weight, p.norm_weight, depth);
    const float inverse = 1.0f / scale;
    FASTHT_UNROLL for (int w = 0; w < 8; ++w) values[w] *= gamma[w] * weight[w] * inverse;
  }
  FASTHT_UNROLL for (int w = 0; w < 8; w += 2)
    store_pair<F>(to + (m.tiles ? tile_at<F>(lane, w) : fragment_at<F>(lane, w)), values[w],
                  values[w + 1]);
}

// A block for each channel: its numbers are asked for at once. The row sums must be those of the rounded
// weights, or |mean| * rounding error remains. `shared`: two numbers a warp.
template <class F>
FASTHT_DEVICE void fold_sums(const FoldParams& p, int c, int padded, float scale, float* shared) {
  const int thread = thread_index();
  const float inverse = 1.0f / scale;
  float sum = 0.0f, constant = 0.0f;
  for (int start = thread; start < p.dim && c < p.channels; start += kFoldEach * kFoldThreads) {
    int feature[kFoldEach], at[kFoldEach];
    float weight[kFoldEach], gamma[kFoldEach], norm_weight[kFoldEach], norm_bias[kFoldEach];
    FASTHT_UNROLL for (int i = 0; i < kFoldEach; ++i) {
      const int d = start + i * kFoldThreads;
      feature[i] = d < p.dim ? d : -1;
      at[i] = d < p.dim ? c * p.dim + d : -1;
    }
    read_all(weight, p.down_weight, at);
    read_all(gamma, p.gamma, feature);
    read_all(norm_weight, p.norm_weight, feature);
    read_all(norm_bias, p.norm_bias, feature);
    FASTHT_UNROLL for (int i = 0; i < kFoldEach; ++i) {
      sum += rounded<F>(weight[i] * (gamma[i] * norm_weight[i] * inverse));
      constant += weight[i] * (gamma[i] * norm_bias[i]);
    }
  }
  for (int mask = 16; mask > 0; mask /= 2) {
    sum += shuffle_xor(sum, mask);
    constant += shuffle_xor(constant, mask);
  }
  if (thread % kLanes == 0)
    shared[thread / kLanes * 2] = sum, shared[thread / kLanes * 2 + 1] = constant;
  sync_block();
  if (thread != 0) return;
  sum = constant = 0.0f;
  FASTHT_UNROLL for (int i = 0; i < kFoldThreads / kLanes; ++i)
    sum += shared[i * 2], constant += shared[i * 2 + 1];
  p.sums[c] = sum;
  p.sums[padded + c] = c < p.channels ? constant + read(p.down_bias, c) : 0.0f;
}

// The images' own kernels: a thread makes one number of each of some images.
template <int kChannels>
FASTHT_DEVICE void fold_kernels(const FoldParams& p, int block) {
  constexpr int kParts = fold_kernel_parts(kChannels), kSize = kBankRows * kChannels;
  const int i = block % kParts * kFoldThreads + thread_index(), c = i % kChannels, row = i / kChannels;
  if (i >= kSize) return;
  float values[3] = {}, factor = 1.0f;
  if (c < p.channels) {
    FASTHT_UNROLL for (int k = 0; k < 3; ++k)
      values[k] = bank_value(p.conv_weight[k], p.conv_bias[k], k, row, c);
    if (row < kTaps && p.filter == Filter::kChannel) factor = read(p.spectral_filter, c);
  }
  const int first = block / kParts * kFoldImages, end = smaller(first + kFoldImages, p.batch);
  for (int image = first; image < end; image += kFoldEach) {
    Floats gates[kFoldEach];  // all on their way at once
    FASTHT_UNROLL for (int n = 0; n < kFoldEach; ++n)
      if (image + n < end) gates[n] = load_four<Float32>(p.gate + (image + n) * 4ll);
    FASTHT_UNROLL for (int n = 0; n < kFoldEach; ++n) {
      if (image + n >= end) continue;
      const float* const gate = gates[n].v;
      const float value = gate[0] * values[0] + gate[1] * values[1] + gate[2] * values[2];
      p.kernels[static_cast<long long>(image + n) * kSize + i] = value * factor;
    }
  }
}

template <class P, int kChannels>
FASTHT_DEVICE void fold(const FoldParams& p) {
  using F = typename P::Format;
  Carver carver;
  float* const shared = carver.take<float>(kFoldThreads);
  const int block = block_index(), thread = thread_index(), sums = p.matrix_count;
  if (block < p.first[sums + 1]) {
    int matrix = 0;  // or one past the last: the sums
    while (block >= p.first[matrix + 1]) ++matrix;
    const bool scaled = matrix == sums || p.matrices[matrix].scaling == Scaling::kNorm;
    const float scale = scaled ? norm_scale(p, shared) : 1.0f;
    if (matrix < sums) {
      fold_matrix<F>(p, p.matrices[matrix], block - p.first[matrix], scale);
    } else {
      fold_sums<F>(p, block - p.first[sums], kChannels, scale, shared + kFoldThreads / kLanes);
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
    for (int first = thread; first < p.padded_dim; first += kFoldEach * kFoldThreads) {
      int at[kFoldEach];
      float values[kFoldEach];
      FASTHT_UNROLL for (int i = 0; i < kFoldEach; ++i)
        at[i] = first + i * kFoldThreads < p.dim ? first + i * kFoldThreads : -1;
      read_all(values, p.up_bias, at);
      FASTHT_UNROLL for (int i = 0; i < kFoldEach; ++i)
        if (first + i * kFoldThreads < p.padded_dim) p.up_bias_out[first + i * kFoldThreads] = values[i];
    }
    for (int c = thread; c < kChannels; c += kFoldThreads)
      p.point_bias_out[c] = c < p.channels ? read(p.point_bias, c) : 0.0f;
    for (int b = thread; b < p.batch; b += kFoldThreads) p.counters[b] = 0;
  } else {
    fold_kernels<kChannels>(p, block - p.first[sums + 3]);
  }
}

}  // namespace fastht::cuda
