// mix_back in the simulator, against float64.

#include "cuda/mix_back.cuh"
#include "tests/cuda_support.h"
#include "tests/cuda_tests.h"

namespace fastht::cuda::test {
namespace {

struct Case {
  int batch, prefix, height, width;
  bool gate = true, skip = true;
};

template <class P, int C, int kWarps, int kPass>
void check(const Case& c, double bound) {
  using F = typename P::Format;
  constexpr Format kNarrow = format_of<F>(), kFloat = Format::kFloat32;
  constexpr int kRecord = record_size(C, 8), kDim = 96;
  const int B = c.batch, N = c.prefix + c.height * c.width;
  const Grid grid{N, c.prefix, c.height, c.width};
  const int rows = tile_rows(kWarps, grid), tiles = ceil_div(N, rows);
  std::mt19937 random(1);
  Buffer dv(B * N * C, kNarrow), u_norm(B * N * C, kNarrow), kernels(B * 50 * C, kFloat),
      records(B * kRecord, kFloat), row_sum(C, kFloat), scale(1, kFloat);
  dv.normal(random, 1), u_norm.normal(random, 1), kernels.normal(random, 0.15f);
  records.normal(random, 0.5f), row_sum.normal(random, 1), scale.fill(0.25f);
  std::vector<double> exact(B * N * C);
  for (int b = 0; b < B; ++b)
    for (int n = 0; n < N; ++n)
      for (int k = 0; k < C; ++k) {
        const int at = (b * N + n) * C + k;
        exact[at] = n < c.prefix || c.skip ? dv[at] : 0;
        if (n < c.prefix) continue;
        if (c.gate) exact[at] += records[b * kRecord + record_constant() + k];
        for (int tap = 0; tap < 49; ++tap) {
          const int y = (n - c.prefix) / c.width - tap / 7 + 3;
          const int x = (n - c.prefix) % c.width - tap % 7 + 3;
          if (y < 0 || y >= c.height || x < 0 || x >= c.width) continue;
          exact[at] += kernels[(b * 50 + tap) * C + k] *
                       dv[(b * N + c.prefix + y * c.width + x) * C + k];
        }
      }
  Buffer first(B * N * C, kNarrow);
  for (uint64_t order : {0, 5}) {
    Buffer du(B * N * C, kNarrow), means(B * N * 2, kFloat);
    const MixBackParams p{dv.data(), u_norm.data(), kernels.floats(), c.gate ? records.floats() : nullptr,
                          row_sum.floats(), scale.floats(), du.data(), means.floats(), grid, kDim,
                          tiles, rows, kRecord, c.skip};
    run<MixBackParams>(mix_back<P, C, kWarps, kPass>, p, B * tiles, kWarps * kLanes,
                       mix_back_shared(kWarps, grid, C, kPass, F::kBytes), order);
    Error error, mean_error;
    for (int row = 0; row < B * N; ++row) {
      double dots[2] = {};
      for (int k = 0; k < C; ++k) {
        const double grad = du[row * C + k];
        error.add(grad, exact[row * C + k]);
        dots[0] += grad * row_sum[k], dots[1] += grad * u_norm[row * C + k];
      }
      for (int i = 0; i < 2; ++i) mean_error.add(means[row * 2 + i], dots[i] * 0.25 / kDim);
    }
    char text[200];
    std::snprintf(text, sizeof text, "mix_back B%d P%d %dx%d C%d: %.2e, bound %.0e; means %.2e", B,
                  c.prefix, c.height, c.width, C, error.relative(), bound, mean_error.relative());
    expect(error.relative() < bound && mean_error.relative() < 2e-6, text);
    if (order == 0) first = std::move(du);
    else expect(first.same_bits(du), "mix_back: other bits in another order of threads");
  }
}

template <class P, int C, int kWarps, int kPass>
void check_grids(double bound) {
  for (const Case& c : {Case{2, 1, 1, 1}, Case{2, 5, 3, 5}, Case{1, 0, 9, 23}, Case{2, 1, 8, 7, false},
                        Case{1, 1, 5, 6, true, false}})
    check<P, C, kWarps, kPass>(c, bound);
}

}  // namespace

void test_mix_back(bool thorough) {
  check_grids<Bfloat16Products, 64, 8, 64>(4e-3);
  check_grids<Float32Products, 64, 4, 32>(1e-6);
  if (!thorough) return;
  check_grids<Float16Products, 64, 8, 64>(5e-4);
  check_grids<Bfloat16Products, 32, 4, 32>(4e-3);
  check_grids<Bfloat16Products, 32, 2, 16>(4e-3);
  check_grids<Bfloat16Products, 128, 8, 64>(4e-3);
  check_grids<Tf32Products, 128, 4, 128>(1e-6);
}

}  // namespace fastht::cuda::test
