// mix_up in the simulator against float64, in all number types, grids and paths.

#include "cuda/mix_up.cuh"
#include "tests/cuda_support.h"
#include "tests/cuda_tests.h"

namespace fastht::cuda::test {
namespace {

struct Case {
  int batch, prefix, height, width, dim, channels;
  float dropout;
  bool full = false;
  uint64_t order = 0;
  bool truncate = false;
};

constexpr int padded(int channels) { return channels <= 32 ? 32 : channels <= 64 ? 64 : 128; }

template <class X, class P, int C, int kWarps, int kPass, int kAhead, int kEarly, bool kAligned>
Buffer mix_up_case(const Case& c, double bound) {
  using F = typename P::Format;
  const Format narrow = format_of<F>(), wide = format_of<X>();
  const Grid grid{c.prefix + c.height * c.width, c.prefix, c.height, c.width};
  const int slice = slice_width(C, F::kBytes), all = ceil_div(c.dim, slice) * slice;
  const int N = grid.tokens, D = c.dim, B = c.batch;
  const int shift = kAligned ? 0 : 1, stride = kAligned ? D + 8 : D + 3;
  std::mt19937 random(1);
  Buffer x(static_cast<long long>(B) * N * stride, wide, shift), u(B * N * C, narrow),
      f(B * N * C, narrow), kernels(B * 50 * C, Format::kFloat32), point(C * C, narrow),
      up(D * C, narrow), point_bias(C, Format::kFloat32), up_bias(all, Format::kFloat32),
      out(static_cast<long long>(B) * N * stride, wide, shift);
  x.normal(random, 1), u.normal(random, 1), f.normal(random, 1), kernels.normal(random, 0.15f);
  point.normal(random, 0.12f), up.normal(random, 0.12f), point_bias.normal(random, 1);
  up_bias.normal(random, 1);
  const Buffer point_lanes = fragments(point, C, C, C, C, narrow, false, true);
  const Buffer up_lanes = fragments(up, D, C, all, C, narrow, true, false, false, true);
  const Buffer& source = c.full ? f : u;
  const int rows = tile_rows(kWarps, grid), tiles = ceil_div(N, rows);
  const unsigned long long seed = 0x123456789abcdefull;
  const long long batch = static_cast<long long>(N) * stride;
  MixUpParams p{{x.data(), batch, stride}, {out.data(), batch, stride}, u.data(), source.data(),
                kernels.floats(), point_lanes.data(), point_bias.floats(), up_lanes.data(),
                up_bias.floats(), grid, D, tiles, rows,
                mix_up_region(kWarps, grid, C, kPass, F::kBytes, X::kBytes, kAhead, kEarly), 64,
                {c.dropout > 0 ? &seed : nullptr, static_cast<unsigned>(c.dropout * (1 << 24)),
                 1 / (1 - c.dropout), ceil_div(c.channels, 4)}};
  run<MixUpParams>(mix_up<X, P, C, kWarps, kPass, kAhead, kEarly, kAligned>, p, B * tiles, kWarps * 32,
                   mix_up_shared(kWarps, grid, C, kPass, F::kBytes, X::kBytes, kAhead, kEarly),
                   c.order, c.truncate);
  Error error;
  for (int row = 0; row < B * N; ++row) {
    const int b = row / N, n = row % N;
    double v[C], z[C];
    for (int k = 0; k < C; ++k) {
      v[k] = u.at(row * C + k) + (n < c.prefix ? 0 : kernels.at((b * 50 + 49) * C + k));
      for (int tap = 0; tap < 49 && n >= c.prefix; ++tap) {
        const int y = (n - c.prefix) / c.width + tap / 7 - 3;
        const int xx = (n - c.prefix) % c.width + tap % 7 - 3;
        if (y < 0 || y >= c.height || xx < 0 || xx >= c.width) continue;
        const int at = (b * N + c.prefix + y * c.width + xx) * C + k;
        v[k] += double{kernels.at((b * 50 + tap) * C + k)} * source.at(at);
      }
    }
    for (int k = 0; k < C; ++k) {
      double y = v[k] + (n < c.prefix ? 0 : point_bias.at(k));
      for (int i = 0; i < C && n >= c.prefix; ++i) y += double{point.at(k * C + i)} * v[i];
      Word draw[4];
      philox(draw, Long(row) * ceil_div(c.channels, 4) + k / 4, seed);
      const bool kept = c.dropout == 0 || draw[k % 4] >> 8 >= p.dropout.threshold;
      z[k] = kept ? y * 0.5 * (1 + std::erf(y / std::sqrt(2.0))) * p.dropout.scale : 0;
    }
    for (int d = 0; d < stride; ++d) {
      const long long at = static_cast<long long>(row) * stride + d;
      if (d >= D) {
        expect(std::isnan(out.at(at)), "mix_up writes between the tokens");
        continue;
      }
      double exact = double{x.at(at)} + up_bias.at(d);
      for (int k = 0; k < C; ++k) exact += up.at(d * C + k) * z[k];
      error.add(out.at(at), exact);
    }
  }
  char text[200];
  std::snprintf(text, sizeof text, "mix_up B%d P%d %dx%d D%d C%d: %.2e, bound %.0e", B, c.prefix,
                c.height, c.width, D, C, error.relative(), bound);
  expect(error.relative() < bound, text);
  return out;
}

template <class X, class P, int C, int kWarps, int kPass, int kAhead, int kEarly, bool kAligned>
void mix_up_grids(double bound) {
  const int sizes[][4] = {{1, 1, 1, 64}, {5, 3, 5, 72}, {1, 5, 6, 72}, {0, 9, 13, 64}};
  for (const auto& s : sizes) {
    const int dim = kAligned ? s[3] : s[3] + 3;
    Case c{2, s[0], s[1], s[2], dim, C, 0.1f};
    const Buffer plain = mix_up_case<X, P, C, kWarps, kPass, kAhead, kEarly, kAligned>(c, bound);
    c.order = 7;
    const Buffer shuffled = mix_up_case<X, P, C, kWarps, kPass, kAhead, kEarly, kAligned>(c, bound);
    expect(plain.same_bits(shuffled), "mix_up: other bits in another order of threads");
    if (s[0] != 1) continue;
    mix_up_case<X, P, C, kWarps, kPass, kAhead, kEarly, kAligned>({1, 1, 4, 8, dim, C, 0.0f, true}, bound);
  }
}

}  // namespace

void test_mix_up(bool thorough) {
  mix_up_grids<Bfloat16, Bfloat16Products, 64, 4, 64, 3, 1, true>(6e-3);
  mix_up_grids<Float32, Float32Products, 64, 4, 32, 2, 0, true>(1e-6);
  mix_up_grids<Float32, Bfloat16Products, 32, 2, 32, 3, 0, false>(6e-3);
  if (!thorough) return;
  mix_up_grids<Float16, Float16Products, 128, 2, 64, 5, 3, true>(1e-3);
  mix_up_grids<Float32, Tf32Products, 128, 4, 32, 2, 2, false>(2e-3);
  mix_up_grids<Bfloat16, Bfloat16Products, 64, 8, 64, 3, 3, false>(6e-3);
}

}  // namespace fastht::cuda::test
