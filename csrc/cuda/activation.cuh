// GELU in its exact (erf) form, and the counter-based dropout mask that all backends share.
#pragma once

#include "cuda/numbers.cuh"

namespace fastht::cuda {

// The standard normal distribution function, by which GELU multiplies, and its density.
FASTHT_DEVICE float normal_cdf(float y) { return 0.5f * (1.0f + error_function(y * 0.70710678f)); }
FASTHT_DEVICE float normal_density(float y) { return 0.39894228f * exponential(-0.5f * y * y); }

// Both at once. kNarrow, for numbers that will be rounded to 16 bits: the function comes of the
// density, less than 3e-7 off with its roundings (Abramowitz and Stegun, Handbook of Mathematical
// Functions, 26.2.17), in half of the instructions of erf.
struct Normal {
  float cdf, density;
};
template <bool kNarrow>
FASTHT_DEVICE Normal normal(float y) {
  if constexpr (kNarrow) {
    const float density = 0.39894228f * power_of_two(y * y * -0.72134752f);
    const float t = reciprocal(fused(0.2316419f, y < 0.0f ? -y : y, 1.0f));
    float series = fused(t, 1.330274429f, -1.821255978f);
    series = fused(t, series, 1.781477937f);
    series = fused(t, series, -0.356563782f);
    const float tail = fused(t, series, 0.319381530f) * t * density;
    return {y < 0.0f ? tail : 1.0f - tail, density};
  } else {
    return {normal_cdf(y), normal_density(y)};
  }
}

// Philox-4x32-10.
FASTHT_DEVICE void philox(Word (&words)[4], Long counter, Long seed) {
  Word c0 = static_cast<Word>(counter), c1 = static_cast<Word>(counter >> 32), c2 = 0, c3 = 0;
  Word k0 = static_cast<Word>(seed), k1 = static_cast<Word>(seed >> 32);
  FASTHT_UNROLL for (int round = 0; round < 10; ++round) {
    const Word h0 = high_product(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
    const Word h2 = high_product(0xCD9E8D57u, c2), l2 = 0xCD9E8D57u * c2;
    c0 = h2 ^ c1 ^ k0, c1 = l2, c2 = h0 ^ c3 ^ k1, c3 = l0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// The mask's factors, 0 or the scale, for channels 4 quad .. 4 quad + 3 of a token (counted over
// the whole batch); ones without dropout.
FASTHT_DEVICE void dropout_factors(float (&factors)[4], const Dropout& p, Long seed, Long token,
                                   int quad) {
  FASTHT_UNROLL for (int i = 0; i < 4; ++i) factors[i] = 1.0f;
  if (p.seed == nullptr) return;
  Word random[4];
  philox(random, token * p.quads + quad, seed);
  FASTHT_UNROLL for (int i = 0; i < 4; ++i)
    factors[i] = random[i] >> 8 >= p.threshold ? p.scale : 0.0f;
}
FASTHT_DEVICE Long read_seed(const Dropout& p) { return p.seed == nullptr ? 0 : *p.seed; }

}  // namespace fastht::cuda
