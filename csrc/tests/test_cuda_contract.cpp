// contract.cuh, with correlation and gate, against double arithmetic on the same numbers.
#include "cuda/contract.cuh"
#include "tests/cuda_test.h"

namespace fastht::cuda::test {
namespace {

struct Case {
  int batch, prefix, height, width, dim, channels, hidden, each;
  bool gated = true, channel_filter = true, full = false, weights = true;
  float dropout = 0.1f;
  int slack = 0;  // between the rows of dout

  std::string name() const {
    std::string text;
    for (int n : {batch, prefix, height, width, dim, channels, each}) text += std::to_string(n) + " ";
    return text + (gated ? "gated " : "") + (channel_filter ? "filter " : "") + (full ? "full " : "");
  }
};

template <class X, class P, int C, int kWarps, int kPart, bool kAligned>
void check(const Case& c, double limit, double sum_limit, const std::vector<How>& orders) {
  using F = typename P::Format;
  const int N = c.prefix + c.height * c.width, B = c.batch, D = c.dim, rows = 16 * kWarps;
  const int tiles = ceil_div(N, rows), row = D + c.slack, pool_tiles = 2, pixels = c.height * c.width;
  const int padded_dim = ceil_div(D, 64) * 64, Q = c.hidden, record = record_size(C, Q);
  const int total = B * tiles, blocks = ceil_div(total, c.each);
  const auto in_channels = [&](int i) { return i < c.channels; };
  Numbers<X> dout(size_t(B) * N * row, 1.0f);
  Numbers<F> u(size_t(B) * N * C, 1.0f), f_own(size_t(B) * N * C, 1.0f);
  for (size_t i = 0; i < u.size(); ++i)
    if (!in_channels(i % C)) u.set(i, 0), f_own.set(i, 0);
  const Numbers<F>& f = c.full ? f_own : u;
  Numbers<Float32> bank(3 * 50 * C, 0.2f), kernels(size_t(B) * 50 * C), gate(B * 4), filter(C, 0.2f, 1),
      point_bias(C, 0.5f), weight0(Q * C, 0.3f), bias0(Q, 0.3f), weight2(3 * Q, 0.5f),
      pooled(B * pool_tiles * C, 5.0f);
  if (!c.channel_filter) filter.fill(1.0f);
  for (int i = 0; i < 3 * 50 * C; ++i)
    if (!in_channels(i % C)) bank.set(i, 0);
  for (int b = 0; b < B; ++b) {
    const float g[4] = {0.5f, 0.2f, 0.3f, 0.0f};
    for (int k = 0; k < 4; ++k) gate.set(b * 4 + k, c.gated ? g[(k + b) % 3] * (k < 3) : k < 3 ? 1 / 3.0f : 0);
    for (int i = 0; i < 50 * C; ++i) {
      double value = 0;
      for (int k = 0; k < 3; ++k) value += gate[b * 4 + k] * bank[k * 50 * C + i];
      kernels.set(size_t(b) * 50 * C + i, float(i < 49 * C ? value * filter[i % C] : value));
    }
  }
  Numbers<F> up(size_t(D) * C, 0.05f), point(C * C, 0.12f);
  Numbers<F> up_lanes(size_t(padded_dim) * C), point_lanes(C * C), back_lanes(C * C);
  for (int i = 0; i < C * C; ++i)
    if (!in_channels(i % C) || !in_channels(i / C)) point.set(i, 0);
  for (size_t i = 0; i < up.size(); ++i)
    if (!in_channels(i % C)) up.set(i, 0);
  for (int i = 0; i < C; ++i)
    if (!in_channels(i)) point_bias.set(i, 0);
  put_fragments(up_lanes, Order::kMemory, Names::kNarrow, padded_dim / 32, C / 8, true,
                [&](int k, int n) { return k < D ? float(up[size_t(k) * C + n]) : 0.0f; });
  put_fragments(point_lanes, Order::kMemory, Names::kNarrow, C / 32, C / 8, false,
                [&](int k, int n) { return float(point[n * C + k]); });
  put_fragments(back_lanes, Order::kRegister, Names::kNarrow, C / 32, C / 8, false,
                [&](int k, int n) { return float(point[k * C + n]); });

  // The same in double. v and dy are rounded as the kernel has to.
  Numbers<Float32> unused(1);
  const Long seed = 7;
  const Word threshold = Word(std::lround(c.dropout * (1 << 24)));
  const float scale = 1.0f / (1.0f - c.dropout);
  const int quads = ceil_div(c.channels, 4);
  std::vector<double> z(u.size()), dv(u.size()), correlation(size_t(B) * 50 * C),
      d_point((C + 1) * C), records(size_t(B) * record);
  const auto is_patch = [&](int n) { return n >= c.prefix; };
  for (int b = 0; b < B; ++b)
    for (int n = 0; n < N; ++n) {
      const size_t at = (size_t(b) * N + n) * C;
      std::vector<double> v(C), dy(C);
      for (int i = 0; i < C; ++i) {
        v[i] = u[at + i];
        if (!is_patch(n)) continue;
        v[i] += kernels[(size_t(b) * 50 + 49) * C + i];
        for (int tap = 0; tap < 49; ++tap) {
          const int y = (n - c.prefix) / c.width + tap / 7 - 3, x = (n - c.prefix) % c.width + tap % 7 - 3;
          if (y < 0 || y >= c.height || x < 0 || x >= c.width) continue;
          v[i] += kernels[(size_t(b) * 50 + tap) * C + i] *
                  f[(size_t(b) * N + c.prefix + y * c.width + x) * C + i];
        }
      }
      for (int i = 0; i < c.channels; ++i) {
        double y = v[i], dz = 0;
        if (is_patch(n)) {
          y += point_bias[i];
          for (int k = 0; k < C; ++k) y += point[i * C + k] * v[k];
        }
        for (int d = 0; d < D; ++d) dz += dout[(size_t(b) * N + n) * row + d] * up[size_t(d) * C + i];
        Word words[4];
        philox(words, (Long(b) * N + n) * quads + i / 4, seed);
        const double keep = c.dropout == 0 ? 1 : words[i % 4] >> 8 >= threshold ? scale : 0;
        const double cdf = 0.5 * (1 + std::erf(y / std::sqrt(2.0)));
        z[at + i] = y * cdf * keep;
        dy[i] = dz * (cdf + y * std::exp(-0.5 * y * y) / std::sqrt(2 * M_PI)) * keep;
      }
      for (int i = 0; i < c.channels; ++i) {
        dv[at + i] = dy[i];
        if (!is_patch(n)) continue;
        d_point[C * C + i] += dy[i];
        for (int k = 0; k < C; ++k) {
          dv[at + i] += dy[k] * point[k * C + i];
          d_point[i * C + k] += dy[i] * v[k];
        }
      }
    }
  for (int b = 0; b < B; ++b) {
    double* const g = &correlation[size_t(b) * 50 * C];
    for (int n = c.prefix; n < N; ++n)
      for (int tap = 0; tap < 50; ++tap) {
        const int y = (n - c.prefix) / c.width + tap / 7 - 3, x = (n - c.prefix) % c.width + tap % 7 - 3;
        const bool inside = y >= 0 && y < c.height && x >= 0 && x < c.width;
        for (int i = 0; i < C; ++i) {
          const double grad = dv[(size_t(b) * N + n) * C + i];
          if (tap == 49)
            g[49 * C + i] += grad;
          else if (inside)
            g[tap * C + i] += grad * f[(size_t(b) * N + c.prefix + y * c.width + x) * C + i];
        }
      }
    double by_gate[3] = {}, mean_gradient = 0, mean[C], hidden[C];
    double* const r = &records[size_t(b) * record];
    for (int k = 0; k < 3; ++k) {
      for (int i = 0; i < 50 * C; ++i)
        by_gate[k] += bank[k * 50 * C + i] * g[i] * (i < 49 * C ? filter[i % C] : 1.0);
      mean_gradient += gate[b * 4 + k] * by_gate[k];
    }
    for (int k = 0; k < 3; ++k) r[k] = gate[b * 4 + k] * (by_gate[k] - mean_gradient) * c.gated;
    for (int i = 0; i < C; ++i) {
      mean[i] = (pooled[(b * pool_tiles) * C + i] + pooled[(b * pool_tiles + 1) * C + i]) * filter[i] / pixels;
      r[record_mean(C) + i] = mean[i];
    }
    for (int q = 0; q < Q; ++q) {
      hidden[q] = bias0[q];
      for (int i = 0; i < C; ++i) hidden[q] += weight0[q * C + i] * mean[i];
      for (int k = 0; k < 3; ++k)
        if (hidden[q] > 0) r[record_d_hidden(C) + q] += weight2[k * Q + q] * r[k];
      r[record_hidden(C, Q) + q] = std::max(0.0, hidden[q]);
    }
    for (int i = 0; i < C; ++i) {
      double d_mean = 0;
      for (int q = 0; q < Q && c.gated; ++q) d_mean += weight0[q * C + i] * r[record_d_hidden(C) + q];
      r[record_constant() + i] = d_mean * filter[i] / pixels;
      r[record_filter(C) + i] = d_mean * mean[i] / filter[i];
      for (int tap = 0; tap < 49; ++tap)
        r[record_filter(C) + i] += kernels[(size_t(b) * 50 + tap) * C + i] / filter[i] * g[tap * C + i];
    }
  }

  std::vector<std::unique_ptr<Numbers<F>>> kept_dv;
  std::vector<std::unique_ptr<Numbers<Float32>>> kept_sums;
  for (const How& how : orders) {
    auto found_dv = std::make_unique<Numbers<F>>(u.size());
    Numbers<F> found_z(u.size());
    Numbers<Float32> found_point(size_t(blocks) * (C + 1) * C), found_records(size_t(B) * record);
    auto found_correlation = std::make_unique<Numbers<Float32>>(size_t(total) * 50 * C);
    std::vector<Word> counters(B, 0);
    ContractParams p = {};
    p.dout = {dout.data(), (long long)N * row, row};
    p.u = u.data(), p.f = f.data(), p.kernels = kernels.data();
    p.up = up_lanes.data(), p.point = point_lanes.data(), p.point_back = back_lanes.data();
    p.point_bias = point_bias.data();
    p.dv = found_dv->data();
    if (c.weights) p.z = found_z.data(), p.d_point = found_point.data();
    p.correlation = found_correlation->data(), p.counters = counters.data();
    p.grid = {N, c.prefix, c.height, c.width};
    p.dim = D, p.tiles = tiles, p.total = total, p.each = c.each;
    p.work = contract_work(kWarps, p.grid, C, kPart, F::kBytes);
    p.dropout = {c.dropout > 0 ? &seed : nullptr, threshold, scale, quads};
    p.gate = {gate.data(), bank.data(), filter.data(), filter.data(), pooled.data(), weight0.data(),
              bias0.data(), weight2.data(), found_records.data(), pool_tiles, Q, c.gated, c.channel_filter};
    launch<ContractParams, contract<X, P, C, kWarps, kPart, kAligned>>(
        blocks, kWarps * kLanes, contract_shared(kWarps, p.grid, C, kPart, F::kBytes), p, how);
    Error e_dv, e_z, e_correlation, e_point, e_bias, e_logits, e_constant, e_filter, e_hidden;
    for (size_t i = 0; i < u.size(); ++i) {
      e_dv.add((*found_dv)[i], dv[i]);
      if (c.weights) e_z.add(found_z[i], z[i]);
    }
    for (int b = 0; b < B; ++b) {
      for (int i = 0; i < 50 * C; ++i)
        e_correlation.add((*found_correlation)[size_t(b) * tiles * 50 * C + i], correlation[size_t(b) * 50 * C + i]);
      const auto compare = [&](Error& to, int at, int count) {
        for (int i = 0; i < count; ++i) to.add(found_records[size_t(b) * record + at + i], records[size_t(b) * record + at + i]);
      };
      if (c.gated) {
        compare(e_logits, 0, 4);
        compare(e_hidden, record_hidden(C, Q), Q);
        compare(e_hidden, record_mean(C), C);
        compare(e_logits, record_d_hidden(C), Q);
      }
      if (c.gated || c.channel_filter) compare(e_constant, record_constant(), C);
      if (c.channel_filter) compare(e_filter, record_filter(C), C);
    }
    for (int i = 0; i < (C + 1) * C && c.weights; ++i) {
      double sum = 0;
      for (int block = 0; block < blocks; ++block) sum += found_point[size_t(block) * (C + 1) * C + i];
      (i < C * C ? e_point : e_bias).add(sum, d_point[i]);
    }
    const std::string name = c.name();
    e_dv.expect_below(limit, name + "dv");
    if (c.weights) {
      e_z.expect_below(limit, name + "z");
      e_point.expect_below(sum_limit, name + "d point");
      e_bias.expect_below(sum_limit, name + "d point bias");
    }
    e_correlation.expect_below(sum_limit, name + "correlation");
    if (c.gated) {
      e_logits.expect_below(3 * sum_limit, name + "logits");
      e_hidden.expect_below(1e-5, name + "hidden");
    }
    if (c.gated) e_constant.expect_below(3 * sum_limit, name + "constant");
    if (c.channel_filter) e_filter.expect_below(sum_limit, name + "filter");
    if (how.truncate) continue;
    kept_dv.push_back(std::move(found_dv));
    kept_sums.push_back(std::move(found_correlation));
    for (auto* one : {&kept_dv}) expect(one->front()->same_bits(*one->back()), name + "order changes dv");
    expect(kept_sums.front()->same_bits(*kept_sums.back()), name + "order changes the correlation");
  }
  expect(simulate::race_count() == 0, c.name() + "races");
}

}  // namespace
}  // namespace fastht::cuda::test

int main() {
  using namespace fastht::cuda;
  using namespace fastht::cuda::test;
  const std::vector<How> orders = {{0, false}, {3, false}, {4, true}};
  const Case vit = {2, 1, 14, 14, 128, 64, 16, 1}, tiny = {2, 0, 1, 1, 72, 64, 16, 1};
  const Case wide = {2, 5, 9, 23, 192, 64, 16, 2}, small = {3, 0, 3, 5, 64, 32, 8, 1};
  Case plain = wide, full = wide, odd = wide, lone = small;
  plain.gated = plain.channel_filter = false, plain.dropout = 0;
  full.full = true, full.channel_filter = false, full.weights = false;
  odd.dim = 101, odd.slack = 3;
  lone.channels = 16, lone.hidden = 4, lone.gated = false;
  using B16 = Bfloat16Products;
  using H16 = Float16Products;
  using Tf = Tf32Products;
  using F32 = Float32Products;
  const double half = 1.2e-2, fine = 2e-3, strict = 4e-6;
  check<Bfloat16, B16, 64, 8, 64, true>(vit, half, half, orders);
  check<Bfloat16, B16, 64, 8, 64, true>(tiny, half, half, orders);
  check<Bfloat16, B16, 64, 4, 32, true>(wide, half, half, orders);
  check<Bfloat16, B16, 64, 8, 64, true>(plain, half, half, orders);
  check<Bfloat16, B16, 64, 8, 64, true>(full, half, half, orders);
  check<Bfloat16, B16, 64, 8, 64, false>(odd, half, half, orders);
  check<Bfloat16, B16, 32, 8, 32, true>(small, half, half, orders);
  check<Bfloat16, B16, 32, 4, 16, true>(lone, half, half, orders);
  check<Bfloat16, B16, 128, 8, 128, true>({2, 1, 7, 7, 64, 128, 32, 1}, half, half, orders);
  check<Bfloat16, B16, 128, 4, 64, true>({2, 1, 7, 9, 64, 100, 25, 2}, half, half, orders);
  check<Float16, H16, 64, 8, 64, true>(vit, fine, fine, orders);
  check<Float32, B16, 64, 8, 64, true>(wide, half, half, orders);
  check<Float32, H16, 64, 8, 64, false>(odd, fine, fine, orders);
  check<Float32, Tf, 64, 4, 32, true>(vit, fine, fine, orders);
  check<Float32, F32, 64, 4, 32, true>(vit, strict, strict, orders);
  check<Float32, F32, 64, 8, 64, false>(odd, strict, strict, orders);
  check<Float32, F32, 32, 4, 32, true>(small, strict, strict, orders);
  check<Float32, F32, 128, 2, 16, true>({2, 1, 7, 7, 64, 128, 32, 1}, strict, strict, orders);
  std::printf("%d failures\n", failures);
  return failures > 0;
}
