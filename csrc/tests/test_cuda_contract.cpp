// contract in the simulator, with the correlation and the gate's gradient, against float64.

#include "cuda/contract.cuh"
#include "tests/cuda_support.h"
#include "tests/cuda_tests.h"

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

struct How {
  uint64_t order;
  bool truncate;
};

template <class X, class P, int C, int kWarps, int kPass, bool kAligned>
void check(const Case& c, double limit, double sum_limit, const std::vector<How>& orders) {
  using F = typename P::Format;
  constexpr int kAhead = kWarps == 8 ? 256 : 128;
  constexpr Format kNarrow = format_of<F>(), kFloat = Format::kFloat32;
  std::mt19937 random(1);
  const auto draw = [&](Format format, long long size, float deviation, float mean = 0.0f) {
    Buffer buffer(size, format);
    buffer.normal(random, deviation, mean);
    return buffer;
  };
  const int N = c.prefix + c.height * c.width, B = c.batch, D = c.dim, rows = tile_rows(kWarps, {N, c.prefix, c.height, c.width});
  const int tiles = ceil_div(N, rows), row = D + c.slack, pixels = c.height * c.width;
  const int padded_dim = ceil_div(D, 64) * 64, Q = c.gated ? c.hidden : 0, record = record_size(C, Q);
  const int total = B * tiles, blocks = ceil_div(total, c.each);
  const auto in_channels = [&](int i) { return i < c.channels; };
  const long long maps = static_cast<long long>(B) * N * C;
  Buffer dout = draw(format_of<X>(), static_cast<long long>(B) * N * row, 1.0f);
  Buffer u = draw(kNarrow, maps, 1.0f), f_own = draw(kNarrow, maps, 1.0f);
  for (long long i = 0; i < maps; ++i)
    if (!in_channels(i % C)) u.set(i, 0), f_own.set(i, 0);
  const Buffer& f = c.full ? f_own : u;
  Buffer bank = draw(kFloat, 3 * 50 * C, 0.2f), filter = draw(kFloat, C, 0.2f, 1.0f),
         point_bias = draw(kFloat, C, 0.5f), weight0 = draw(kFloat, Q * C, 0.3f),
         bias0 = draw(kFloat, Q, 0.3f), weight2 = draw(kFloat, 3 * Q, 0.5f),
         pooled = draw(kFloat, B * C, 5.0f), kernels(B * 50 * C, kFloat),
         gate(B * 4, kFloat);
  if (!c.channel_filter) filter.fill(1.0f);
  for (int i = 0; i < 3 * 50 * C; ++i)
    if (!in_channels(i % C)) bank.set(i, 0);
  for (int b = 0; b < B; ++b) {
    const float g[4] = {0.5f, 0.2f, 0.3f, 0.0f};
    for (int k = 0; k < 4; ++k) gate.set(b * 4 + k, c.gated ? g[(k + b) % 3] * (k < 3) : k < 3 ? 1 / 3.0f : 0);
    for (int i = 0; i < 50 * C; ++i) {
      double value = 0;
      for (int k = 0; k < 3; ++k) value += gate[b * 4 + k] * bank[k * 50 * C + i];
      kernels.set(b * 50 * C + i, float(i < 49 * C ? value * filter[i % C] : value));
    }
  }
  // As outputs by inputs: W2' [C][D], P1, P1' [C][C].
  Buffer up = draw(kNarrow, C * D, 0.05f), point = draw(kNarrow, C * C, 0.12f), back(C * C, kNarrow);
  for (int i = 0; i < C * C; ++i)
    if (!in_channels(i % C) || !in_channels(i / C)) point.set(i, 0);
  for (int i = 0; i < C * D; ++i)
    if (!in_channels(i / D)) up.set(i, 0);
  for (int i = 0; i < C * C; ++i) back.set(i, point[i % C * C + i / C]);
  for (int i = 0; i < C; ++i)
    if (!in_channels(i)) point_bias.set(i, 0);
  const Buffer up_lanes = fragments(up, C, D, C, padded_dim, kNarrow, false, true, true);
  const Buffer point_lanes = fragments(point, C, C, C, C, kNarrow, false, true);
  const Buffer back_lanes = fragments(back, C, C, C, C, kNarrow, false, true);

  // The same in double. v and dy are rounded as the kernel has to.
  const Long seed = 7;
  const Word threshold = Word(std::lround(c.dropout * (1 << 24)));
  const float scale = 1.0f / (1.0f - c.dropout);
  const int quads = ceil_div(c.channels, 4);
  std::vector<double> z(maps), dv(maps), correlation(B * 50 * C), d_point((C + 1) * C),
      records(B * record);
  const auto is_patch = [&](int n) { return n >= c.prefix; };
  for (int b = 0; b < B; ++b)
    for (int n = 0; n < N; ++n) {
      const size_t at = (b * N + n) * C;
      std::vector<double> v(C), dy(C);
      for (int i = 0; i < C; ++i) {
        v[i] = u[at + i];
        if (!is_patch(n)) continue;
        v[i] += kernels[(b * 50 + 49) * C + i];
        for (int tap = 0; tap < 49; ++tap) {
          const int y = (n - c.prefix) / c.width + tap / 7 - 3, x = (n - c.prefix) % c.width + tap % 7 - 3;
          if (y < 0 || y >= c.height || x < 0 || x >= c.width) continue;
          v[i] += kernels[(b * 50 + tap) * C + i] *
                  f[(b * N + c.prefix + y * c.width + x) * C + i];
        }
      }
      for (int i = 0; i < c.channels; ++i) {
        double y = v[i], dz = 0;
        if (is_patch(n)) {
          y += point_bias[i];
          for (int k = 0; k < C; ++k) y += point[i * C + k] * v[k];
        }
        for (int d = 0; d < D; ++d) dz += dout[(b * N + n) * row + d] * up[i * D + d];
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
    double* const g = &correlation[b * 50 * C];
    for (int n = c.prefix; n < N; ++n)
      for (int tap = 0; tap < 50; ++tap) {
        const int y = (n - c.prefix) / c.width + tap / 7 - 3, x = (n - c.prefix) % c.width + tap % 7 - 3;
        const bool inside = y >= 0 && y < c.height && x >= 0 && x < c.width;
        for (int i = 0; i < C; ++i) {
          const double grad = dv[(b * N + n) * C + i];
          if (tap == 49)
            g[49 * C + i] += grad;
          else if (inside)
            g[tap * C + i] += grad * f[(b * N + c.prefix + y * c.width + x) * C + i];
        }
      }
    double by_gate[3] = {}, mean_gradient = 0, mean[C], hidden[C];
    double* const r = &records[b * record];
    for (int k = 0; k < 3; ++k) {
      for (int i = 0; i < 50 * C; ++i)
        by_gate[k] += bank[k * 50 * C + i] * g[i] * (i < 49 * C ? filter[i % C] : 1.0);
      mean_gradient += gate[b * 4 + k] * by_gate[k];
    }
    for (int k = 0; k < 3; ++k) r[k] = gate[b * 4 + k] * (by_gate[k] - mean_gradient) * c.gated;
    for (int i = 0; i < C; ++i) {
      mean[i] = pooled[b * C + i] * filter[i] / pixels;
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
        r[record_filter(C) + i] += kernels[(b * 50 + tap) * C + i] / filter[i] * g[tap * C + i];
    }
  }

  std::vector<Buffer> kept;  // dv and correlation of each order
  for (const How& how : orders) {
    Buffer found_dv(maps, kNarrow), found_z(maps, kNarrow), found_point(blocks * (C + 1) * C, kFloat),
        found_records(B * record, kFloat), found_correlation(total * 50 * C, kFloat);
    std::vector<Word> counters(B, 0);
    ContractParams p = {};
    p.dout = {dout.data(), (long long)N * row, row};
    p.u = u.data(), p.f = f.data(), p.kernels = kernels.floats();
    p.up = up_lanes.data(), p.point = point_lanes.data(), p.point_back = back_lanes.data();
    p.point_bias = point_bias.floats();
    p.dv = found_dv.data();
    if (c.weights) p.z = found_z.data(), p.d_point = found_point.floats();
    p.correlation = found_correlation.floats(), p.counters = counters.data();
    p.grid = {N, c.prefix, c.height, c.width};
    p.dim = D, p.tiles = tiles, p.rows = rows, p.total = total, p.each = c.each;
    p.work = contract_work(kWarps, p.grid, C, kPass, F::kBytes);
    p.dropout = {c.dropout > 0 ? &seed : nullptr, threshold, scale, quads};
    p.gate = {gate.floats(), bank.floats(), pooled.floats(), filter.array(), weight0.array(),
              bias0.array(), weight2.array(), found_records.floats(),
              c.channel_filter ? Filter::kChannel : Filter::kNone, C, Q, 1};
    run<ContractParams>(contract<X, P, C, kWarps, kPass, kAhead, kAligned>, p, blocks, kWarps * kLanes,
                        contract_shared(kWarps, p.grid, C, kPass, F::kBytes, kAhead), how.order,
                        how.truncate);
    Error e_dv, e_z, e_correlation, e_point, e_bias, e_logits, e_constant, e_filter, e_hidden;
    for (long long i = 0; i < maps; ++i) {
      e_dv.add(found_dv[i], dv[i]);
      if (c.weights) e_z.add(found_z[i], z[i]);
    }
    for (int b = 0; b < B; ++b) {
      for (int i = 0; i < 50 * C; ++i)
        e_correlation.add(found_correlation[b * tiles * 50 * C + i], correlation[b * 50 * C + i]);
      const auto compare = [&](Error& to, int at, int count) {
        for (int i = 0; i < count; ++i) to.add(found_records[b * record + at + i], records[b * record + at + i]);
      };
      if (c.gated) {
        compare(e_logits, 0, 3);
        compare(e_hidden, record_hidden(C, Q), Q);
        compare(e_hidden, record_mean(C), C);
        compare(e_logits, record_d_hidden(C), Q);
      }
      if (c.gated || c.channel_filter) compare(e_constant, record_constant(), C);
      if (c.channel_filter) compare(e_filter, record_filter(C), C);
    }
    for (int i = 0; i < (C + 1) * C && c.weights; ++i) {
      double sum = 0;
      for (int block = 0; block < blocks; ++block) sum += found_point[block * (C + 1) * C + i];
      (i < C * C ? e_point : e_bias).add(sum, d_point[i]);
    }
    const std::string name = "contract " + c.name();
    const auto below = [&](const Error& error, double bound, const char* what) {
      char text[80];
      std::snprintf(text, sizeof text, ": %.2e, bound %.0e", error.relative(), bound);
      expect(error.relative() < bound, name + what + text);
    };
    below(e_dv, limit, "dv");
    if (c.weights) {
      below(e_z, limit, "z");
      below(e_point, sum_limit, "d point");
      below(e_bias, sum_limit, "d point bias");
    }
    below(e_correlation, sum_limit, "correlation");
    if (c.gated) {
      below(e_logits, 3 * sum_limit, "logits");
      below(e_hidden, 1e-5, "hidden");
    }
    if (c.gated) below(e_constant, 3 * sum_limit, "constant");
    if (c.channel_filter) below(e_filter, sum_limit, "filter");
    if (how.truncate) continue;
    kept.push_back(std::move(found_dv)), kept.push_back(std::move(found_correlation));
    const size_t last = kept.size() - 2;
    expect(kept[0].same_bits(kept[last]) && kept[1].same_bits(kept[last + 1]),
           name + "other bits in another order of threads");
  }
}

}  // namespace

void test_contract(bool thorough) {
  const std::vector<How> orders = {{0, false}, {3, false}, {4, true}};
  const Case vit = {2, 1, 14, 14, 128, 64, 16, 1}, tiny = {2, 0, 1, 1, 72, 64, 16, 1};
  const Case wide = {2, 5, 9, 23, 192, 64, 16, 2}, small = {3, 0, 3, 5, 64, 32, 8, 1},
             small_wide = {2, 1, 6, 9, 64, 64, 16, 2};
  Case plain = wide, full = wide, odd = wide, lone = small;
  plain.gated = plain.channel_filter = false, plain.dropout = 0;
  full.full = true, full.channel_filter = false, full.weights = false;
  odd.dim = 101, odd.slack = 2;
  Case images = vit, three = wide;  // two tiles of an image together, and of two images
  images.each = 2, three.each = 3;
  Case images32 = images;
  images32.channels = 32, images32.hidden = 8;
  lone.channels = 16, lone.hidden = 4, lone.gated = false;
  using B16 = Bfloat16Products;
  using H16 = Float16Products;
  using Tf = Tf32Products;
  using F32 = Float32Products;
  const double half = 1.2e-2, fine = 2e-3, strict = 4e-6;
  check<Bfloat16, B16, 64, 8, 64, true>(vit, half, half, orders);
  check<Bfloat16, B16, 64, 4, 32, true>(wide, half, half, orders);
  check<Bfloat16, B16, 64, 8, 64, false>(odd, half, half, orders);
  check<Bfloat16, B16, 64, 8, 64, true>(images, half, half, orders);
  check<Float32, F32, 64, 4, 32, true>(small_wide, strict, strict, orders);
  check<Bfloat16, B16, 32, 4, 16, true>(lone, half, half, orders);
  if (!thorough) return;
  check<Bfloat16, B16, 64, 8, 64, true>(tiny, half, half, orders);
  check<Bfloat16, B16, 64, 8, 64, true>(plain, half, half, orders);
  check<Bfloat16, B16, 64, 8, 64, true>(full, half, half, orders);
  check<Bfloat16, B16, 64, 8, 64, true>(three, half, half, orders);
  check<Bfloat16, B16, 32, 8, 32, true>(images32, half, half, orders);
  check<Bfloat16, B16, 32, 8, 32, true>(small, half, half, orders);
  check<Bfloat16, B16, 128, 8, 128, true>({2, 1, 7, 7, 64, 128, 32, 1}, half, half, orders);
  check<Bfloat16, B16, 128, 4, 64, true>({2, 1, 7, 9, 64, 100, 25, 2}, half, half, orders);
  check<Float16, H16, 64, 8, 64, true>(images, fine, fine, orders);
  check<Float32, B16, 64, 8, 64, true>(wide, half, half, orders);
  check<Float32, H16, 64, 8, 64, false>(odd, fine, fine, orders);
  check<Float32, Tf, 64, 4, 32, true>(vit, fine, fine, orders);
  check<Float32, F32, 64, 8, 64, false>(odd, strict, strict, orders);
  check<Float32, F32, 32, 4, 32, true>(small, strict, strict, orders);
  check<Float32, F32, 128, 2, 16, true>({2, 1, 7, 7, 64, 128, 32, 1}, strict, strict, orders);
}

}  // namespace fastht::cuda::test
