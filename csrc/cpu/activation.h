// GELU in its exact (erf) form with its derivative, and the counter-based dropout mask.
#pragma once

#include "cpu/problem.h"
#include "cpu/vec.h"

namespace fastht::cpu {
namespace {

// exp(-v) for v >= 0; NaN stays NaN. Relative error about 1e-7.
FASTHT_INLINE Vec exp_negative(Vec v) {
  v = select(v > 87.0f, broadcast(87.0f), v);  // below that, the result is not a normal number
  const Vec shifter = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec n = (v * 1.44269504f + shifter) - shifter;
  const Vec r = n * 0.693145752f - v + n * 1.42860677e-6f;  // n * log(2) - v in two parts
  Vec p = broadcast(0.001383684459f);
  p = p * r + 0.008374815807f;
  p = p * r + 0.041668225080f;
  p = p * r + 0.166664198041f;
  p = p * r + 0.499999910593f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const VecInt exponent = 127 - __builtin_convertvector(n, VecInt);
  return p * (Vec)(exponent << 23);
}

struct Gelu {
  Vec value, slope;
};

// y * Phi(y) and Phi(y) + y * phi(y), with Phi and phi the normal distribution and its density.
FASTHT_INLINE Gelu gelu(Vec y) {
  const Vec square = y * y;
  const Vec density = exp_negative(square * 0.5f);
  // Near zero Phi = 1/2 + y * polynomial(y^2) keeps the digits of the odd part.
  Vec near = broadcast(4.1155590225e-07f);
  near = near * square - 8.7183034339e-06f;
  near = near * square + 1.1435638589e-04f;
  near = near * square - 1.1864885455e-03f;
  near = near * square + 9.9732410163e-03f;
  near = near * square - 6.6490337253e-02f;
  near = near * square + 3.9894229174e-01f;
  near = y * near + 0.5f;
  // Farther out Phi(-a) = exp(-a^2 / 2) * q(a), with q a polynomial in t = 1 / (1 + 0.35 a).
  const Vec magnitude = select(y < 0.0f, -y, y);
  const Vec t = 1.0f / (magnitude * 0.35f + 1.0f);
  Vec q = broadcast(-0.029145966f);
  q = q * t + 0.143971864f;
  q = q * t - 0.255714595f;
  q = q * t + 0.159174547f;
  q = q * t - 0.023110094f;
  q = q * t + 0.105508111f;
  q = q * t + 0.119832844f;
  q = q * t + 0.139861867f;
  q = q * t + 0.139621407f;
  const Vec tail = q * t * density;
  const Vec far = select(y < 0.0f, tail, 1.0f - tail);
  const Vec phi = select(magnitude < 1.5f, near, far);
  return {y * phi, phi + y * density * 0.398942280f};
}

// The halves of a * b, lane by lane.
struct Product {
  VecBits low, high;
};

FASTHT_INLINE Product multiply_wide(VecBits a, uint32_t b) {
  typedef uint64_t Pairs __attribute__((vector_size(kLanes * 4)));
  const Pairs lanes = (Pairs)a;
#if defined(__AVX512F__)
  // Masked with every lane: GCC 12 warns of its own header at the plain form.
  const __m512i factor = _mm512_set1_epi64(b);
  const Pairs even = (Pairs)_mm512_maskz_mul_epu32(0xff, (__m512i)lanes, factor);
  const Pairs odd = (Pairs)_mm512_maskz_mul_epu32(0xff, (__m512i)(lanes >> 32), factor);
#elif defined(__AVX2__)
  const Pairs even = (Pairs)_mm256_mul_epu32((__m256i)lanes, _mm256_set1_epi64x(b));
  const Pairs odd = (Pairs)_mm256_mul_epu32((__m256i)(lanes >> 32), _mm256_set1_epi64x(b));
#else
  const Pairs even = (lanes & 0xffffffffu) * b, odd = (lanes >> 32) * b;
#endif
  const Pairs low_half = Pairs{} + 0xffffffffu;
  return {(VecBits)((even & low_half) | odd << 32), (VecBits)(even >> 32 | (odd & ~low_half))};
}

// Factors of the dropout mask for one token: 0 or the scale, by channel.
//
// Channel c of token t (counted over the whole batch) takes word c % 4 of Philox-4x32-10 at counter
// t * ceil(C / 4) + c / 4 with the seed as its key: the definition that every backend shares.
void dropout_factors(const Problem& call, int64_t token, float* factors) {
  const int64_t quads = ceil_div(call.channels, 4);
  for (int64_t q0 = 0; q0 < quads; q0 += kLanes) {
    const uint64_t start = static_cast<uint64_t>(token) * quads + q0;
    uint32_t counters[4][kLanes] = {};
    for (int i = 0; i < kLanes; ++i) {
      counters[0][i] = static_cast<uint32_t>(start + i);
      counters[1][i] = static_cast<uint32_t>((start + i) >> 32);
    }
    VecBits words[4];
    __builtin_memcpy(words, counters, sizeof words);
    uint32_t key0 = static_cast<uint32_t>(call.seed);
    uint32_t key1 = static_cast<uint32_t>(call.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const Product first = multiply_wide(words[0], 0xD2511F53u);
      const Product second = multiply_wide(words[2], 0xCD9E8D57u);
      words[0] = second.high ^ words[1] ^ key0;
      words[1] = second.low;
      words[2] = first.high ^ words[3] ^ key1;
      words[3] = first.low;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    float kept[4][kLanes];
    for (int w = 0; w < 4; ++w)
      store(kept[w],
            select((words[w] >> 8) < call.dropout_threshold, Vec{}, broadcast(call.dropout_scale)));
    const int64_t count = min<int64_t>(kLanes, quads - q0);
    for (int64_t i = 0; i < count; ++i)
      for (int w = 0; w < 4; ++w) factors[(q0 + i) * 4 + w] = kept[w][i];
  }
}

}  // namespace
}  // namespace fastht::cpu
