// Backward: the two means over D that the LayerNorm's gradient needs, as dots of length C:
// mean(dh_norm) = du . row_sum / D, mean(dh_norm * x_hat) = du . u_norm / D.
#pragma once

#include "cuda/fragments.cuh"
#include "cuda/spectral_params.h"

namespace fastht::cuda {

// kLanesOf neighbouring lanes have a token, eight channels each.
template <class F, int kChannels>
struct RowMeans {
  static constexpr int kLanesOf = kChannels / 8;
  float row_sum[8], factor;

  FASTHT_DEVICE RowMeans(const float* sums, const float* scale, int dim)
      : factor(*scale / static_cast<float>(dim)) {
    FASTHT_UNROLL for (int i = 0; i < 8; ++i) row_sum[i] = sums[first_channel() + i];
  }
  FASTHT_DEVICE static int first_channel() { return thread_index() % kLanesOf * 8; }

  // All lanes of a warp call it; `to`: the token's two means, null where there is no token.
  FASTHT_DEVICE void write(const Eight<F>& grad, const Eight<F>& norm, float* to) const {
    float first = 0.0f, second = 0.0f;
    FASTHT_UNROLL for (int i = 0; i < 8; ++i) {
      first = fused(grad[i], row_sum[i], first);
      second = fused(grad[i], norm[i], second);
    }
    FASTHT_UNROLL for (int mask = kLanesOf / 2; mask > 0; mask /= 2) {
      first += shuffle_xor(first, mask);
      second += shuffle_xor(second, mask);
    }
    if (to != nullptr && first_channel() == 0)
      store_pair<Float32>(to, first * factor, second * factor);
  }
};

// The means of all tokens, where du was not finished by mix_back: with a full spectral filter.
template <class P, int kChannels>
FASTHT_DEVICE void row_means(const RowMeansParams& p) {
  using F = typename P::Format;
  using Means = RowMeans<F, kChannels>;
  const Means means(p.row_sum, p.scale, p.dim);
  const int token = block_index() * row_means_tokens(kChannels) + thread_index() / Means::kLanesOf;
  const bool real = token < p.tokens;
  const long long at = static_cast<long long>(token) * kChannels + Means::first_channel();
  const Eight<F> grad = load_eight<F>(units<F>(p.du) + at, real);
  const Eight<F> norm = load_eight<F>(units<F>(p.u_norm) + at, real);
  means.write(grad, norm, real ? p.row_means + token * 2ll : nullptr);
}

}  // namespace fastht::cuda
