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
  // Adds numbers that lie `step` apart, `count` of them, to sums[k], from k * apart on: kAtOnce of each
  // are on their way at once, also the last ones.
  template <int kAtOnce, int kCount>
  FASTHT_DEVICE static void add_parts(float (&sums)[kCount], const float* from, long long apart,
                                      int count, long long step) {
    FASTHT_ROLLED for (int first = 0; first < count; first += kAtOnce, from += kAtOnce * step) {
      float parts[kAtOnce][kCount];
      FASTHT_UNROLL for (int i = 0; i < kAtOnce; ++i) FASTHT_UNROLL for (int k = 0; k < kCount; ++k)
        parts[i][k] = first + i < count ? from[i * step + k * apart] : 0.0f;
      FASTHT_UNROLL for (int i = 0; i < kAtOnce; ++i)
        FASTHT_UNROLL for (int k = 0; k < kCount; ++k) sums[k] += parts[i][k];
    }
  }

  // With E = du' x, F = du' x_hat and S = the sum of du, all gradients of width D are sums over C,
  // or over nothing at all (identity 6 of the design).
  FASTHT_DEVICE void finish_features(int block) {
    constexpr int kRows = kThreads / kFinishWidth, kEach = kChannels / kRows;  // channels of a thread
    const int d = block * kFinishWidth + thread % kFinishWidth, row = thread / kFinishWidth;
    const bool inside = d < p.dim;
    // The sums of du and of dout are made by warps of their own.
    if (thread < kChannels) {
      float sum[1] = {};
      add_parts<32>(sum, p.d_down_bias + thread, 0, p.groups, kChannels);
      total[thread] = sum[0];
      if (block == 0 && thread < p.channels) write(p.d_down_bias_out, thread, sum[0]);
    } else if (thread >= kThreads - kFinishWidth && inside) {
      float sum[1] = {};
      add_parts<32>(sum, p.d_up_bias + d, 0, p.groups, p.padded_dim);
      write(p.d_up_bias_out, d, sum[0]);
    }
    float gamma = 0.0f, gammax = 0.0f, norm_weight = 0.0f, norm_bias = 0.0f;
    if (inside) {
      gamma = read(p.gamma, d), gammax = read(p.gammax, d);
      norm_weight = read(p.norm_weight, d), norm_bias = read(p.norm_bias, d);
    }
    int at[kEach];
    float weights[kEach];
    FASTHT_UNROLL for (int i = 0; i < kEach; ++i) {
      const int c = row + i * kRows;
      at[i] = inside && c < p.channels ? c * p.dim + d : -1;
    }
    read_all(weights, p.down_weight, at);
    // Of a channel by x, by x_hat and by dout. They are multiples of the array's rows apart.
    float sums[3 * kEach] = {};
    const long long size = static_cast<long long>(kChannels) * p.padded_dim;
    add_parts<16 / kEach>(sums, p.d_weights + static_cast<long long>(row) * p.padded_dim + d,
                          static_cast<long long>(kRows) * p.padded_dim, p.groups, 3 * size);
    sync_block();
    float on_skip = 0.0f, on_norm = 0.0f, on_bias = 0.0f;
    FASTHT_UNROLL for (int i = 0; i < kEach; ++i) {
      if (at[i] < 0) continue;
      const int c = row + i * kRows;
      const float by_x = sums[i], by_hat = sums[kEach + i], by_out = sums[2 * kEach + i];
      on_skip += weights[i] * by_x;
      on_norm += weights[i] * by_hat;
      on_bias += weights[i] * total[c];
      write(p.d_down_weight, at[i],
            gamma * (norm_weight * by_hat + norm_bias * total[c]) + gammax * by_x);
      write(p.d_up_weight, static_cast<long long>(d) * p.channels + c, by_out);
    }
    shared[thread] = on_skip;
    shared[kThreads + thread] = on_norm;
    shared[2 * kThreads + thread] = on_bias;
    sync_block();
    if (row > 0 || !inside) return;
    float on[3] = {};
    for (int i = 0; i < kRows; ++i)
      FASTHT_UNROLL for (int k = 0; k < 3; ++k) on[k] += shared[k * kThreads + i * kFinishWidth + thread];
    write(p.d_gammax, d, on[0]);
    write(p.d_norm_weight, d, gamma * on[1]);
    write(p.d_norm_bias, d, gamma * on[2]);
    write(p.d_gamma, d, norm_weight * on[1] + norm_bias * on[2]);
  }

  // Adds this thread's share of a channel's `count` numbers, `step` apart.
  FASTHT_DEVICE void add_own(float (&sum)[1], const float* from, int count, long long step) const {
    const int first = thread / kChannels;
    add_parts<32>(sum, from + first * step + thread % kChannels, 0,
                  ceil_div(count - first, kLanesOf), kLanesOf * step);
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
    constexpr int kAtOnce = 16;
    const int c = thread % kChannels, own = thread / kChannels;
    const long long step = static_cast<long long>(p.tiles) * kRow * kLanesOf;
    const float* from = p.correlation + own * (step / kLanesOf) + row * kChannels + c;
    const float* gate = p.gate + own * 4;
    float sums[3] = {};
    FASTHT_ROLLED for (int left = ceil_div(p.batch - own, kLanesOf); left > 0; left -= kAtOnce) {
      float values[kAtOnce];
      Floats gates[kAtOnce];
      FASTHT_UNROLL for (int i = 0; i < kAtOnce; ++i) {
        values[i] = i < left ? from[i * step] : 0.0f;
        gates[i] = i < left ? load_four<Float32>(gate + i * (4 * kLanesOf)) : Floats{};
      }
      FASTHT_UNROLL for (int i = 0; i < kAtOnce; ++i)
        FASTHT_UNROLL for (int k = 0; k < 3; ++k) sums[k] += gates[i].v[k] * values[i];
      from += kAtOnce * step, gate += kAtOnce * 4 * kLanesOf;
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
    add_own(sums, p.d_point + row * kChannels, p.point_blocks, (kChannels + 1) * kChannels);
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
    constexpr int kAtOnce = 16, kWarps = kThreads / kLanes;
    float weight[1] = {}, small[7] = {};  // small: bias0, weight2, bias2, of some images each
    for (int b = thread; b < p.batch; b += kThreads) {
      const float* const record = p.records + b * size;
      const float back = record[record_d_hidden(kChannels) + q];
      const float value = record[record_hidden(kChannels, p.hidden) + q];
      const Floats logits = load_four<Float32>(record);
      small[0] += back;
      FASTHT_UNROLL for (int k = 0; k < 3; ++k) {
        small[1 + k] += logits.v[k] * value;
        small[4 + k] += logits.v[k];
      }
    }
    FASTHT_ROLLED for (int first = thread / kChannels; first < p.batch; first += kAtOnce * kLanesOf) {
      float back[kAtOnce], mean[kAtOnce];
      FASTHT_UNROLL for (int i = 0; i < kAtOnce; ++i) {
        const int b = first + i * kLanesOf;
        const float* const record = p.records + b * size;
        back[i] = b < p.batch ? record[record_d_hidden(kChannels) + q] : 0.0f;
        mean[i] = b < p.batch ? record[record_mean(kChannels) + thread % kChannels] : 0.0f;
      }
      FASTHT_UNROLL for (int i = 0; i < kAtOnce; ++i) weight[0] += back[i] * mean[i];
    }
    add_lanes(weight);
    if (thread < p.channels) write(p.d_gate_weight0, q * p.channels + thread, weight[0]);
    sync_block();
    FASTHT_UNROLL for (int i = 0; i < 7; ++i) {
      FASTHT_UNROLL for (int mask = 16; mask > 0; mask /= 2) small[i] += shuffle_xor(small[i], mask);
      if (thread % kLanes == 0) shared[i * kWarps + thread / kLanes] = small[i];
    }
    sync_block();
    if (thread >= 7) return;
    float sum = 0.0f;
    for (int warp = 0; warp < kWarps; ++warp) sum += shared[thread * kWarps + warp];
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
    add_own(sums, p.records + record_filter(kChannels), p.batch, record_size(kChannels, p.hidden));
    add_lanes(sums);
    if (thread < p.channels) write(p.d_spectral_filter, thread, sums[0]);
  }
};

template <int kChannels>
FASTHT_DEVICE void finish(const FinishParams& p) {
  Finish<kChannels>(p).run();
}

}  // namespace fastht::cuda
