// Backward: adds up the partial sums, in a fixed order, into the parameters' gradients.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/numbers.cuh"

namespace fastht::cuda {

template <int kChannels>
struct Finish {
  static constexpr int kThreads = kFinishThreads, kLanesOf = kThreads / kChannels;
  static constexpr int kRow = kBankRows * kChannels;

  const FinishParams& p;
  float* shared;  // [3][kThreads]
  float* total;   // [C]
  const int thread = thread_index();

  FASTHT_DEVICE explicit Finish(const FinishParams& params) : p(params) {
    Carver carver;
    shared = carver.take<float>(3 * kThreads);
    total = carver.take<float>(kChannels);
  }

  FASTHT_DEVICE void run() {
    int block = block_index();
    const int features = p.padded_dim / kFinishWidth;
    if (block < features) return finish_features(block);
    block -= features;
    if (block < kBankRows) return finish_bank(block);
    block -= kBankRows;
    if (block < kChannels + 1) return finish_point(block);
    block -= kChannels + 1;
    if (block < p.hidden) return finish_gate(block);
    finish_filter(block - p.hidden);
  }

 private:
  // With E = du' x, F = du' x_hat and S = the sum of du, all gradients of width D are sums over C,
  // or over nothing at all (identity 6 of the design).
  FASTHT_DEVICE void finish_features(int block) {
    for (int c = thread; c < kChannels; c += kThreads) {
      float sum = 0.0f;
      FASTHT_UNROLL_EIGHT for (int group = 0; group < p.groups; ++group) sum += p.d_down_bias[group * kChannels + c];
      total[c] = sum;
      if (block == 0 && c < p.channels) write(p.d_down_bias_out, c, sum);
    }
    sync_block();
    constexpr int kRows = kThreads / kFinishWidth;  // of channels at a time
    const int d = block * kFinishWidth + thread % kFinishWidth, row = thread / kFinishWidth;
    const bool inside = d < p.dim;
    const long long size = static_cast<long long>(kChannels) * p.padded_dim;
    float gamma = 0.0f, gammax = 0.0f, norm_weight = 0.0f, norm_bias = 0.0f;
    if (inside) {
      gamma = read(p.gamma, d), gammax = read(p.gammax, d);
      norm_weight = read(p.norm_weight, d), norm_bias = read(p.norm_bias, d);
    }
    float on_skip = 0.0f, on_norm = 0.0f, on_bias = 0.0f;
    for (int c = row; c < kChannels; c += kRows) {
      float by_x = 0.0f, by_hat = 0.0f, by_out = 0.0f;
      const float* from = p.d_weights + static_cast<long long>(c) * p.padded_dim + d;
      FASTHT_UNROLL_EIGHT for (int group = 0; group < p.groups; ++group, from += 3 * size) {
        by_x += from[0];
        by_hat += from[size];
        by_out += from[2 * size];
      }
      if (!inside || c >= p.channels) continue;
      const long long at = static_cast<long long>(c) * p.dim + d;
      const float weight = read(p.down_weight, at);
      on_skip += weight * by_x;
      on_norm += weight * by_hat;
      on_bias += weight * total[c];
      write(p.d_down_weight, at,
            gamma * (norm_weight * by_hat + norm_bias * total[c]) + gammax * by_x);
      write(p.d_up_weight, static_cast<long long>(d) * p.channels + c, by_out);
    }
    shared[thread] = on_skip;
    shared[kThreads + thread] = on_norm;
    shared[2 * kThreads + thread] = on_bias;
    sync_block();
    if (row > 0 || !inside) return;
    float sums[3] = {}, up_bias = 0.0f;
    for (int i = 0; i < kRows; ++i)
      FASTHT_UNROLL for (int k = 0; k < 3; ++k) sums[k] += shared[k * kThreads + i * kFinishWidth + thread];
    FASTHT_UNROLL_EIGHT for (int group = 0; group < p.groups; ++group)
      up_bias += p.d_up_bias[static_cast<long long>(group) * p.padded_dim + d];
    write(p.d_gammax, d, sums[0]);
    write(p.d_norm_weight, d, gamma * sums[1]);
    write(p.d_norm_bias, d, gamma * sums[2]);
    write(p.d_gamma, d, norm_weight * sums[1] + norm_bias * sums[2]);
    write(p.d_up_bias_out, d, up_bias);
  }

  // The sum over kLanesOf threads of one channel, in the first of them. All threads call it.
  template <int kCount>
  FASTHT_DEVICE void add_lanes(float (&sums)[kCount]) {
    FASTHT_UNROLL for (int k = 0; k < kCount; ++k) shared[k * kThreads + thread] = sums[k];
    sync_block();
    if (thread >= kChannels) return;
    FASTHT_UNROLL for (int k = 0; k < kCount; ++k)
      for (int lane = 1; lane < kLanesOf; ++lane) sums[k] += shared[k * kThreads + lane * kChannels + thread];
  }

  // One tap of the bank, or its biases: the correlations of all images, weighted by each gate.
  FASTHT_DEVICE void finish_bank(int row) {
    const int c = thread % kChannels;
    float sums[3] = {};
    FASTHT_UNROLL_EIGHT for (int b = thread / kChannels; b < p.batch; b += kLanesOf) {
      const float value = p.correlation[static_cast<long long>(b) * p.tiles * kRow + row * kChannels + c];
      FASTHT_UNROLL for (int k = 0; k < 3; ++k) sums[k] += p.gate[b * 4 + k] * value;
    }
    add_lanes(sums);
    if (thread >= p.channels) return;
    if (row == kTaps) {
      FASTHT_UNROLL for (int k = 0; k < 3; ++k) write(p.d_conv_bias[k], c, sums[k]);
      return;
    }
    const float factor = p.filter == Filter::kChannel ? read(p.spectral_filter, c) : 1.0f;
    FASTHT_UNROLL for (int k = 0; k < 3; ++k) {
      const int side = 3 + 2 * k, i = row / 7 - (2 - k), j = row % 7 - (2 - k);
      if (i >= 0 && i < side && j >= 0 && j < side)
        write(p.d_conv_weight[k], (c * side + i) * side + j, factor * sums[k]);
    }
  }

  // A row of the 1x1 weight, the last one its bias.
  FASTHT_DEVICE void finish_point(int row) {
    float sums[1] = {};
    const float* const from = p.d_point + row * kChannels + thread % kChannels;
    FASTHT_UNROLL_EIGHT for (int block = thread / kChannels; block < p.point_blocks; block += kLanesOf)
      sums[0] += from[static_cast<long long>(block) * ((kChannels + 1) * kChannels)];
    add_lanes(sums);
    if (thread >= p.channels) return;
    if (row == kChannels)
      write(p.d_point_bias, thread, sums[0]);
    else if (row < p.channels)
      write(p.d_point_weight, row * p.channels + thread, sums[0]);
  }

  // One number of the gate's hidden layer, with the weights before and after it.
  FASTHT_DEVICE void finish_gate(int q) {
    const long long size = record_size(kChannels, p.hidden);
    const int c = thread % kChannels;
    float weight[1] = {}, small[7] = {};  // bias0, weight2, bias2
    for (int b = thread / kChannels; b < p.batch; b += kLanesOf) {
      const float* const record = p.records + b * size;
      const float back = record[record_d_hidden(kChannels) + q];
      const float value = record[record_hidden(kChannels, p.hidden) + q];
      weight[0] += back * record[record_mean(kChannels) + c];
      small[0] += back;
      FASTHT_UNROLL for (int k = 0; k < 3; ++k) {
        small[1 + k] += record[k] * value;
        small[4 + k] += record[k];
      }
    }
    add_lanes(weight);
    if (thread < p.channels) write(p.d_gate_weight0, q * p.channels + c, weight[0]);
    sync_block();
    // Each channel's threads have the same sums of these.
    if (c == 0)
      FASTHT_UNROLL for (int i = 0; i < 7; ++i) shared[i * kLanesOf + thread / kChannels] = small[i];
    sync_block();
    if (thread >= 7) return;
    float sum = 0.0f;
    for (int lane = 0; lane < kLanesOf; ++lane) sum += shared[thread * kLanesOf + lane];
    if (thread == 0)
      write(p.d_gate_bias0, q, sum);
    else if (thread < 4)
      write(p.d_gate_weight2, (thread - 1) * p.hidden + q, sum);
    else if (q == 0)
      write(p.d_gate_bias2, thread - 4, sum);
  }

  FASTHT_DEVICE void finish_filter(int block) {
    if (p.filter == Filter::kFull) {
      const int i = block * kThreads + thread;
      if (i >= p.filter_size) return;
      float sum = 0.0f;
      for (int group = 0; group < p.filter_groups; ++group)
        sum += p.d_filter[static_cast<long long>(group) * p.filter_size + i];
      write(p.d_spectral_filter, i, sum);
      return;
    }
    float sums[1] = {};
    const float* const from = p.records + record_filter(kChannels) + thread % kChannels;
    FASTHT_UNROLL_EIGHT for (int b = thread / kChannels; b < p.batch; b += kLanesOf)
      sums[0] += from[static_cast<long long>(b) * record_size(kChannels, p.hidden)];
    add_lanes(sums);
    if (thread < p.channels) write(p.d_spectral_filter, thread, sums[0]);
  }
};

template <int kChannels>
FASTHT_DEVICE void finish(const FinishParams& p) {
  Finish<kChannels>(p).run();
}

}  // namespace fastht::cuda
