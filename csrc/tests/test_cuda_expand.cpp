// expand in the simulator, against float64.

#include "cuda/expand.cuh"
#include "tests/cuda_support.h"
#include "tests/cuda_tests.h"

namespace fastht::cuda::test {
namespace {

struct Case {
  int batch, tokens, dim, each;
  bool input = true, weights = true;
};

template <class X, class P, int C, int kTokens, int kStages, bool kAligned>
void check(const Case& c, double bound, double sum_bound) {
  using F = typename P::Format;
  constexpr Format kNarrow = format_of<F>(), kWide = format_of<X>(), kFloat = Format::kFloat32;
  const int B = c.batch, N = c.tokens, D = c.dim, total = B * N, row = kAligned ? D + 8 : D + 3;
  const int slices = ceil_div(D, expand_width(F::kBytes)), padded = slices * expand_width(F::kBytes), tiles = ceil_div(total, kTokens);
  const int groups = ceil_div(tiles, c.each), shift = kAligned ? 0 : 1;
  const long long batch = static_cast<long long>(N) * row;
  std::mt19937 random(1);
  Buffer x(B * batch, kWide, shift), dout(B * batch, kWide, shift), du(total * C, kNarrow),
      z(total * C, kNarrow), stats(total * 2, kFloat), means(total * 2, kFloat), down(C * D, kNarrow),
      down_back(D * C, kNarrow), skip(D, kFloat), norm(D, kFloat), gamma(D, kFloat);
  x.normal(random, 2, 0.5f), dout.normal(random, 1), du.normal(random, 1), z.normal(random, 1);
  means.normal(random, 0.3f), down.normal(random, 0.12f);
  skip.normal(random, 1), norm.normal(random, 1), gamma.fill(2);
  for (int n = 0; n < total; ++n) stats.set(2 * n, 0.5f + n % 3 * 0.1f), stats.set(2 * n + 1, 0.5f);
  for (int i = 0; i < C * D; ++i) down_back.set(i, down.at(i % C * D + i / C));
  const Buffer lanes = fragments(down_back, D, C, padded, C, kNarrow, true, true);
  std::vector<double> dx(B * batch), sums(3 * C * D), sum_out(D), sum_du(C);
  for (int b = 0; b < B; ++b)
    for (int n = 0; n < N; ++n) {
      const int token = b * N + n;
      for (int k = 0; k < C; ++k) sum_du[k] += du[token * C + k];
      for (int d = 0; d < D; ++d) {
        const long long at = b * batch + n * row + d;
        const double hat = (x[at] - stats[2 * token]) * stats[2 * token + 1];
        double dh = 0;
        for (int k = 0; k < C; ++k) {
          dh += du[token * C + k] * down[k * D + d];
          sums[k * D + d] += du[token * C + k] * x[at];
          sums[(C + k) * D + d] += du[token * C + k] * hat;
          sums[(2 * C + k) * D + d] += z[token * C + k] * dout[at];
        }
        sum_out[d] += dout[at];
        dx[at] = dout[at] + dh * skip[d] +
                 stats[2 * token + 1] * (dh * 2 * norm[d] - means[2 * token] - hat * means[2 * token + 1]);
      }
    }
  std::vector<Buffer> kept;
  for (uint64_t order : {0, 5, 6}) {
    Buffer found(B * batch, kWide, shift), found_sums(groups * 3 * C * padded, kFloat),
        found_out(groups * padded, kFloat), found_du(groups * C, kFloat);
    ExpandParams p = {};
    p.x = {x.data(), batch, row}, p.dout = {dout.data(), batch, row};
    if (c.input) p.dx = {found.data(), batch, row};
    p.du = du.data(), p.z = c.weights ? z.data() : nullptr;
    p.stats = stats.floats(), p.row_means = means.floats(), p.down = lanes.data();
    p.gammax = skip.array(), p.gamma = gamma.array(), p.norm_weight = norm.array();
    p.d_weights = found_sums.floats();
    p.d_up_bias = found_out.floats(), p.d_down_bias = found_du.floats();
    p.tokens = divisor(N), p.total = total, p.dim = D, p.slices = slices;
    p.tiles = tiles, p.each = c.each;
    run<ExpandParams>(expand<X, P, C, kTokens, kStages, kAligned>, p, slices * groups,
                      expand_warps(C) * kLanes,
                      expand_shared(kTokens, kStages, C, F::kBytes, X::kBytes), order, order == 6);
    Error e_dx, e_x, e_hat, e_out, e_sum_out, e_sum_du;
    for (long long i = 0; i < B * batch && c.input; ++i)
      if (i % row < D) e_dx.add(found[i], dx[i]);
      else expect(std::isnan(found[i]), "expand writes between the tokens");
    const auto sum = [&](const Buffer& parts, int size, int at) {
      double result = 0;
      for (int g = 0; g < groups; ++g) result += parts[static_cast<long long>(g) * size + at];
      return result;
    };
    for (int d = 0; d < D && c.weights; ++d) {
      for (int k = 0; k < C; ++k) {
        const auto one = [&](int i) { return sum(found_sums, 3 * C * padded, (i * C + k) * padded + d); };
        e_x.add(one(0), sums[k * D + d]);
        e_hat.add(one(1), sums[(C + k) * D + d]);
        e_out.add(one(2), sums[(2 * C + k) * D + d]);
      }
      e_sum_out.add(sum(found_out, padded, d), sum_out[d]);
    }
    for (int k = 0; k < C && c.weights; ++k) e_sum_du.add(sum(found_du, C, k), sum_du[k]);
    char text[240];
    std::snprintf(text, sizeof text, "expand B%d N%d D%d C%d by %d: dx %.2e, x %.2e, hat %.2e, out %.2e, "
                  "sum out %.2e, sum du %.2e, bounds %.0e, %.0e", B, N, D, C, kTokens, e_dx.relative(),
                  e_x.relative(), e_hat.relative(), e_out.relative(), e_sum_out.relative(),
                  e_sum_du.relative(), bound, sum_bound);
    expect(e_dx.relative() < bound && e_x.relative() < sum_bound && e_hat.relative() < sum_bound &&
               e_out.relative() < sum_bound && e_sum_out.relative() < 3e-6 &&
               e_sum_du.relative() < 3e-6, text);
    if (order == 6) continue;
    kept.push_back(std::move(found)), kept.push_back(std::move(found_sums));
    const size_t last = kept.size() - 2;
    expect(kept[0].same_bits(kept[last]) && kept[1].same_bits(kept[last + 1]),
           "expand: other bits in another order of threads");
  }
}

template <class X, class P, int C, int kTokens, int kStages, bool kAligned>
void check_sizes(double bound, double sum_bound) {
  const int odd = kAligned ? 0 : 3;
  check<X, P, C, kTokens, kStages, kAligned>({3, 50, 136 + odd, 2}, bound, sum_bound);
  check<X, P, C, kTokens, kStages, kAligned>({2, 1, 64 + odd, 1}, bound, sum_bound);
  check<X, P, C, kTokens, kStages, kAligned>({1, 70, 72 + odd, 5, false, true}, bound, sum_bound);
  check<X, P, C, kTokens, kStages, kAligned>({1, 70, 72 + odd, 1, true, false}, bound, sum_bound);
}

}  // namespace

void test_expand(bool thorough) {
  check_sizes<Bfloat16, Bfloat16Products, 64, 64, 3, true>(5e-3, 3e-3);
  check_sizes<Float32, Float32Products, 32, 32, 3, true>(2e-6, 2e-6);
  check_sizes<Float32, Bfloat16Products, 32, 32, 2, false>(5e-3, 5e-3);
  if (!thorough) return;
  check_sizes<Bfloat16, Bfloat16Products, 64, 32, 2, false>(5e-3, 3e-3);
  check_sizes<Bfloat16, Bfloat16Products, 32, 64, 2, true>(5e-3, 3e-3);
  check_sizes<Bfloat16, Bfloat16Products, 128, 64, 3, true>(5e-3, 3e-3);
  check_sizes<Float32, Bfloat16Products, 128, 32, 2, false>(5e-3, 5e-3);
  check_sizes<Float16, Float16Products, 64, 32, 2, true>(6e-4, 4e-4);
  check_sizes<Float32, Float16Products, 64, 32, 3, true>(1e-3, 1e-3);
  check_sizes<Float32, Tf32Products, 64, 64, 2, true>(1e-3, 1e-3);
  check_sizes<Float32, Float32Products, 64, 64, 2, false>(2e-6, 2e-6);
  check_sizes<Float32, Float32Products, 128, 32, 2, true>(2e-6, 2e-6);
}

}  // namespace fastht::cuda::test
