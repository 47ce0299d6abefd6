// The full spectral filter in the simulator, forward, transposed and with its gradient, and the
// means of rows after it, against float64.

#include <stdexcept>

#include "cuda/row_means.cuh"
#include "cuda/spectral.cuh"
#include "tests/cuda_model.h"
#include "tests/cuda_tests.h"

namespace fastht::cuda::test {
namespace {

using Numbers = std::vector<double>;

struct Case {
  int batch, prefix, height, width, channels;
  int each = 1;
  bool gradient = true, skip = true, in_place = true;
};

template <class P, int C, int kSlice, int kThreads>
void check(const Case& c, double bound, double gradient_bound) {
  constexpr Format kNarrow = format_of<typename P::Format>(), kFloat = Format::kFloat32;
  const int B = c.batch, pixels = c.height * c.width, N = c.prefix + pixels;
  const int size = c.height * half_width(c.width), groups = ceil_div(B, c.each);
  const long long maps = static_cast<long long>(B) * N * C;
  std::mt19937 random(1);
  Buffer from(maps, kNarrow), input(maps, kNarrow), skip(maps, kNarrow);
  Buffer weights(c.channels * size, kFloat);
  from.normal(random, 1), input.normal(random, 1), skip.normal(random, 0.3f);
  weights.normal(random, 0.3f, 1);
  for (long long i = 0; i < maps; ++i)
    if (i % C >= c.channels) from.set(i, 0), input.set(i, 0), skip.set(i, 0);
  const auto map_of = [&](const Buffer& buffer, int b, int k) {
    Numbers map(pixels);
    for (int i = 0; i < pixels; ++i)
      map[i] = buffer[(static_cast<long long>(b) * N + c.prefix + i) * C + k];
    return map;
  };
  Numbers exact(maps), exact_gradient(c.channels * size);
  for (int b = 0; b < B; ++b)
    for (int k = 0; k < c.channels; ++k) {
      const Numbers map = filtered(map_of(from, b, k), weights.array(), k, c.height, c.width);
      if (c.gradient)
        add_filter_gradient(exact_gradient, map_of(input, b, k), map_of(from, b, k), k, c.height,
                            c.width);
      for (int i = 0; i < pixels; ++i) {
        const long long at = (static_cast<long long>(b) * N + c.prefix + i) * C + k;
        exact[at] = map[i] + (c.skip ? skip[at] : 0);
      }
    }
  Buffer first(maps, kNarrow), first_gradient(1, kFloat);
  for (uint64_t order : {0, 5, 9}) {
    Buffer to(maps, kNarrow), d_filter(static_cast<long long>(groups) * c.channels * size, kFloat);
    if (c.in_place) std::memcpy(to.data(), from.data(), maps * bytes_of(kNarrow));
    const SpectralParams p{c.in_place ? to.data() : from.data(),
                           c.gradient ? input.data() : nullptr,
                           c.skip ? skip.data() : nullptr,
                           to.data(),
                           weights.array(),
                           c.gradient ? d_filter.floats() : nullptr,
                           {N, c.prefix, c.height, c.width},
                           B,
                           c.channels,
                           c.each};
    run<SpectralParams>(spectral<P, C, kSlice, kThreads>, p, groups * (C / kSlice), kThreads,
                        spectral_shared(p.grid, kSlice), order);
    Error error, gradient_error;
    for (long long i = 0; i < maps; ++i) {
      if (i / C % N >= c.prefix)
        error.add(to[i], exact[i]);
      else
        expect(c.in_place ? to.at(i) == from.at(i) : std::isnan(to.at(i)),
               "spectral: a prefix token");
    }
    for (int i = 0; i < c.channels * size && c.gradient; ++i) {
      double sum = 0;
      for (int group = 0; group < groups; ++group) sum += d_filter[group * (c.channels * size) + i];
      gradient_error.add(sum, exact_gradient[i]);
    }
    char text[200];
    std::snprintf(text, sizeof text,
                  "spectral B%d P%d %dx%d C%d of %d, slice %d: %.2e, bound %.0e; "
                  "gradient %.2e, bound %.0e",
                  B, c.prefix, c.height, c.width, c.channels, C, kSlice, error.relative(), bound,
                  gradient_error.relative(), gradient_bound);
    expect(error.relative() < bound && gradient_error.relative() < gradient_bound, text);
    if (order == 0) {
      first = std::move(to), first_gradient = std::move(d_filter);
    } else {
      expect(first.same_bits(to) && first_gradient.same_bits(d_filter),
             "spectral: other bits in another order of threads and blocks");
    }
  }
}

template <class P, int C, int kSlice, int kThreads>
void check_grids(double bound, double gradient_bound = 1e-6) {
  for (const Case& c :
       {Case{2, 1, 1, 1, C}, Case{3, 5, 3, 5, 16, 2}, Case{2, 0, 1, 8, C, 2, true, false},
        Case{2, 1, 6, 1, C, 1, false, false, false}, Case{3, 1, 9, 4, 16, 3},
        Case{2, 1, 5, 6, C, 1, false, true, false}})
    check<P, C, kSlice, kThreads>(c, bound, gradient_bound);
}

template <class P, int C>
void check_means(int tokens, double bound) {
  constexpr Format kNarrow = format_of<typename P::Format>(), kFloat = Format::kFloat32;
  constexpr int kDim = 96;
  std::mt19937 random(1);
  Buffer du(tokens * C, kNarrow), u_norm(tokens * C, kNarrow), row_sum(C, kFloat), scale(1, kFloat);
  du.normal(random, 1), u_norm.normal(random, 1), row_sum.normal(random, 1), scale.fill(0.25f);
  for (uint64_t order : {0, 5}) {
    Buffer means(tokens * 2, kFloat);
    const RowMeansParams p{du.data(), u_norm.data(), row_sum.floats(), scale.floats(),
                           means.floats(), tokens, kDim};
    run<RowMeansParams>(row_means<P, C>, p, ceil_div(tokens, row_means_tokens(C)), kRowMeansThreads,
                        0, order);
    Error error;
    for (int row = 0; row < tokens; ++row) {
      double dots[2] = {};
      for (int k = 0; k < C; ++k) {
        dots[0] += du[row * C + k] * row_sum[k];
        dots[1] += du[row * C + k] * u_norm[row * C + k];
      }
      for (int i = 0; i < 2; ++i) error.add(means[row * 2 + i], dots[i] * 0.25 / kDim);
    }
    expect(error.relative() < bound,
           "row_means of " + std::to_string(tokens) + " tokens, C " + std::to_string(C) + ": " +
               std::to_string(error.relative()));
  }
}

// Larger grids take fewer channels at a time, until a block's shared memory has no room for two.
void check_plan() {
  const Device small{101376, 102400, 84};
  const auto slice = [&](int height, int width) -> std::string {
    Problem problem{};
    problem.batch = 2, problem.channels = 64, problem.filter = Filter::kFull;
    problem.grid = {height * width, 0, height, width};
    try {
      const SpectralPlan plan(problem, small);
      expect(plan.shared() <= small.shared_per_block, "the full filter takes too much memory");
      return plan.kernels(problem)[0].function;
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
  };
  expect(slice(14, 14) == "spectral<Bfloat16Products, 64, 8, 128>", "spectral: plan of 14x14");
  expect(slice(37, 37) == "spectral<Bfloat16Products, 64, 8, 256>", "spectral: plan of 37x37");
  expect(slice(50, 40) == "spectral<Bfloat16Products, 64, 4, 256>", "spectral: plan of 50x40");
  expect(slice(64, 64) == "spectral<Bfloat16Products, 64, 2, 256>", "spectral: plan of 64x64");
  expect(slice(90, 90).find("90x90") != std::string::npos, "spectral: plan of 90x90");
}

}  // namespace

void test_spectral(bool thorough) {
  check_plan();
  for (int period = 1; period <= 64; ++period)
    for (int m = 0; m < period; ++m) {
      const double angle = 2 * 3.14159265358979323846 * m / period;
      const Pair found = root(m, period);
      const double error =
          std::abs(found.x - std::cos(angle)) + std::abs(found.y - std::sin(angle));
      expect(error < 2e-7, "root " + std::to_string(m) + " of " + std::to_string(period));
      expect(4 * m % period != 0 || found.x * found.y == 0, "a quarter turn is not exact");
    }
  check_grids<Bfloat16Products, 64, 8, 128>(4e-3);
  check_grids<Float32Products, 32, 8, 128>(1e-6);
  check_means<Bfloat16Products, 64>(37, 1e-6);
  check_means<Float32Products, 128>(16, 1e-6);
  if (!thorough) return;
  check<Float32Products, 32, 8, 256>({1, 1, 37, 37, 16}, 1e-6, 1e-6);
  check_grids<Float16Products, 32, 4, 256>(5e-4);
  check_grids<Float32Products, 128, 2, 256>(1e-6);
  check_grids<Tf32Products, 64, 8, 128>(1e-6);
  check_means<Float16Products, 32>(70, 1e-6);
}

}  // namespace fastht::cuda::test
