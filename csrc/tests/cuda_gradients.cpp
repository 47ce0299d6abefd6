#include "tests/cuda_gradients.h"

#include "cuda/activation.cuh"

namespace fastht::cuda::test {
namespace {

using Numbers = std::vector<double>;

struct Names {
  std::vector<Array*> arrays;
  std::vector<std::string> names;
};
Names list(Parameters& p, const Problem& problem) {
  Names all;
  const auto add = [&](Array& array, const char* name) {
    all.arrays.push_back(&array), all.names.push_back(name);
  };
  add(p.norm_weight, "norm.weight"), add(p.norm_bias, "norm.bias");
  add(p.gamma, "gamma"), add(p.gammax, "gammax");
  add(p.down_weight, "down.weight"), add(p.down_bias, "down.bias");
  if (problem.filter != Filter::kNone) add(p.spectral_filter, "spectral_filter");
  if (problem.has_gate) {
    add(p.gate_weight0, "noise_gate.0.weight"), add(p.gate_bias0, "noise_gate.0.bias");
    add(p.gate_weight2, "noise_gate.2.weight"), add(p.gate_bias2, "noise_gate.2.bias");
  }
  const char* const convs[] = {"conv3.weight", "conv3.bias", "conv5.weight",
                               "conv5.bias", "conv7.weight", "conv7.bias"};
  for (int i = 0; i < 3; ++i) {
    add(p.conv_weight[i], convs[2 * i]), add(p.conv_bias[i], convs[2 * i + 1]);
  }
  add(p.pointwise_weight, "pointwise.weight"), add(p.pointwise_bias, "pointwise.bias");
  add(p.up_weight, "up.weight"), add(p.up_bias, "up.bias");
  return all;
}

double cdf(double y) { return 0.5 * (1 + std::erf(y / std::sqrt(2.0))); }
double density(double y) { return std::exp(-0.5 * y * y) / std::sqrt(2 * 3.14159265358979323846); }

}  // namespace

std::vector<Array*> arrays_of(Parameters& params, const Problem& problem) {
  return list(params, problem).arrays;
}
std::vector<std::string> names_of(const Problem& problem) {
  Parameters none{};
  return list(none, problem).names;
}

Gradients gradients_of(const Model& model, const Buffer& dout) {
  const Setting& s = model.setting;
  const Problem& problem = model.problem;
  const int n = problem.grid.tokens, d = s.dim, c = s.channels, q = problem.hidden;
  const int pixels = s.height * s.width, P = s.prefix;
  Parameters p = model.params;
  const std::vector<Array*> arrays = arrays_of(p, problem);
  Gradients result;
  result.dx.resize(static_cast<size_t>(s.batch) * n * d);
  for (size_t i = 0; i < arrays.size(); ++i) result.params.emplace_back(model.arrays[i].size());
  const auto grad = [&](const Array& of) -> Numbers& {
    for (size_t i = 0; i < arrays.size(); ++i)
      if (arrays[i]->data == of.data) return result.params[i];
    std::abort();
  };
  const bool scaled = s.filter == Filter::kChannel;
  for (int b = 0; b < s.batch; ++b) {
    const auto at = [&](const Buffer& x, int token, int j) {
      return double{x.at((static_cast<long long>(b) * n + token) * model.stride + j)};
    };
    // Forward.
    Numbers rstd(n), hat(n * d), h(n * d), u(n * c), f(pixels * c), pooled(c), hidden(q);
    for (int token = 0; token < n; ++token) {
      double mean = 0, variance = 0;
      for (int j = 0; j < d; ++j) mean += at(model.x, token, j) / d;
      for (int j = 0; j < d; ++j) variance += std::pow(at(model.x, token, j) - mean, 2) / d;
      rstd[token] = 1 / std::sqrt(variance + double{problem.eps});
      for (int j = 0; j < d; ++j) {
        hat[token * d + j] = (at(model.x, token, j) - mean) * rstd[token];
        h[token * d + j] = (hat[token * d + j] * read(p.norm_weight, j) + read(p.norm_bias, j)) *
                               read(p.gamma, j) + at(model.x, token, j) * read(p.gammax, j);
      }
      for (int k = 0; k < c; ++k) {
        u[token * c + k] = read(p.down_bias, k);
        for (int j = 0; j < d; ++j) u[token * c + k] += h[token * d + j] * read(p.down_weight, k * d + j);
      }
    }
    const auto channel_of = [&](const Numbers& map, int k) {
      Numbers one(pixels);
      for (int i = 0; i < pixels; ++i) one[i] = map[i * c + k];
      return one;
    };
    const auto filter = [&](const Numbers& map) {  // its own transpose, of either kind
      Numbers to(map.size());
      for (int k = 0; k < c; ++k) {
        Numbers one = channel_of(map, k);
        if (s.filter == Filter::kFull) one = filtered(one, p.spectral_filter, k, s.height, s.width);
        for (int i = 0; i < pixels; ++i)
          to[i * c + k] = one[i] * (scaled ? read(p.spectral_filter, k) : 1.0f);
      }
      return to;
    };
    const Numbers patches(u.begin() + P * c, u.end());
    f = filter(patches);
    for (int i = 0; i < pixels * c; ++i) pooled[i % c] += f[i] / pixels;
    double gate[3] = {1.0 / 3, 1.0 / 3, 1.0 / 3};
    if (s.gate) {
      double total = 0;
      for (int i = 0; i < q; ++i) {
        hidden[i] = read(p.gate_bias0, i);
        for (int k = 0; k < c; ++k) hidden[i] += pooled[k] * read(p.gate_weight0, i * c + k);
        hidden[i] = std::max(hidden[i], 0.0);
      }
      for (int k = 0; k < 3; ++k) {
        gate[k] = read(p.gate_bias2, k);
        for (int i = 0; i < q; ++i) gate[k] += hidden[i] * read(p.gate_weight2, k * q + i);
        total += gate[k] = std::exp(gate[k]);
      }
      for (double& g : gate) g /= total;
    }
    const auto taps = [&](int i, int pixel, auto each) {  // each(tap, the pixel it reads)
      const int side = 3 + 2 * i;
      for (int tap = 0; tap < side * side; ++tap) {
        const int row = pixel / s.width + tap / side - side / 2;
        const int column = pixel % s.width + tap % side - side / 2;
        if (row >= 0 && row < s.height && column >= 0 && column < s.width)
          each(tap, row * s.width + column);
      }
    };
    Numbers conv(3 * pixels * c), v(u), dv(n * c), du(n * c), df(pixels * c);
    for (int pixel = 0; pixel < pixels; ++pixel)
      for (int k = 0; k < c; ++k)
        for (int i = 0; i < 3; ++i) {
          double& sum = conv[(i * pixels + pixel) * c + k];
          const int size = (3 + 2 * i) * (3 + 2 * i);
          sum = read(p.conv_bias[i], k);
          taps(i, pixel, [&](int tap, int from) {
            sum += read(p.conv_weight[i], k * size + tap) * f[from * c + k];
          });
          v[(P + pixel) * c + k] += gate[i] * sum;
        }
    // Backward, token by token as far as the map.
    for (int token = 0; token < n; ++token) {
      const bool patch = token >= P;
      Numbers dy(c);
      for (int k = 0; k < c; ++k) {
        double y = v[token * c + k], dz = 0;
        if (patch) {
          y += read(p.pointwise_bias, k);
          for (int i = 0; i < c; ++i) y += read(p.pointwise_weight, k * c + i) * v[token * c + i];
        }
        Word draw[4];
        philox(draw, (Long(b) * n + token) * ceil_div(c, 4) + k / 4, model.seed);
        const bool kept = draw[k % 4] >> 8 >= dropout_of(problem, &model.seed).threshold;
        const double scale = kept ? 1 / (1 - problem.dropout) : 0;
        const double z = y * cdf(y) * scale;
        for (int j = 0; j < d; ++j) {
          dz += at(dout, token, j) * read(p.up_weight, j * c + k);
          grad(p.up_weight)[j * c + k] += at(dout, token, j) * z;
        }
        dy[k] = dz * (cdf(y) + y * density(y)) * scale;
      }
      for (int j = 0; j < d; ++j) grad(p.up_bias)[j] += at(dout, token, j);
      for (int k = 0; k < c; ++k) {
        (patch ? dv : du)[token * c + k] += dy[k];
        if (!patch) continue;
        grad(p.pointwise_bias)[k] += dy[k];
        for (int i = 0; i < c; ++i) {
          dv[token * c + i] += dy[k] * read(p.pointwise_weight, k * c + i);
          grad(p.pointwise_weight)[k * c + i] += dy[k] * v[token * c + i];
        }
      }
    }
    double by_gate[3] = {}, mean_gradient = 0;
    for (int pixel = 0; pixel < pixels; ++pixel)
      for (int k = 0; k < c; ++k) {
        const double g = dv[(P + pixel) * c + k];
        du[(P + pixel) * c + k] += g;
        for (int i = 0; i < 3; ++i) {
          const int size = (3 + 2 * i) * (3 + 2 * i);
          by_gate[i] += g * conv[(i * pixels + pixel) * c + k];
          grad(p.conv_bias[i])[k] += gate[i] * g;
          taps(i, pixel, [&](int tap, int from) {
            grad(p.conv_weight[i])[k * size + tap] += gate[i] * g * f[from * c + k];
            df[from * c + k] += gate[i] * g * read(p.conv_weight[i], k * size + tap);
          });
        }
      }
    if (s.gate) {
      for (int i = 0; i < 3; ++i) mean_gradient += gate[i] * by_gate[i];
      Numbers d_hidden(q);
      for (int k = 0; k < 3; ++k) {
        const double logit = gate[k] * (by_gate[k] - mean_gradient);
        grad(p.gate_bias2)[k] += logit;
        for (int i = 0; i < q; ++i) {
          grad(p.gate_weight2)[k * q + i] += logit * hidden[i];
          if (hidden[i] > 0) d_hidden[i] += logit * read(p.gate_weight2, k * q + i);
        }
      }
      for (int i = 0; i < q; ++i) {
        grad(p.gate_bias0)[i] += d_hidden[i];
        for (int k = 0; k < c; ++k) {
          grad(p.gate_weight0)[i * c + k] += d_hidden[i] * pooled[k];
          for (int pixel = 0; pixel < pixels; ++pixel)
            df[pixel * c + k] += d_hidden[i] * read(p.gate_weight0, i * c + k) / pixels;
        }
      }
    }
    const Numbers back = filter(df);
    for (int i = 0; i < pixels * c; ++i) {
      if (scaled) grad(p.spectral_filter)[i % c] += df[i] * patches[i];
      du[P * c + i] += back[i];
    }
    for (int k = 0; k < c && s.filter == Filter::kFull; ++k)
      add_filter_gradient(grad(p.spectral_filter), channel_of(patches, k), channel_of(df, k), k,
                          s.height, s.width);
    for (int token = 0; token < n; ++token) {
      Numbers inner(d);
      double mean = 0, mean_hat = 0;
      for (int k = 0; k < c; ++k) grad(p.down_bias)[k] += du[token * c + k];
      for (int j = 0; j < d; ++j) {
        const double norm = hat[token * d + j];
        double dh = 0;
        for (int k = 0; k < c; ++k) {
          dh += du[token * c + k] * read(p.down_weight, k * d + j);
          grad(p.down_weight)[k * d + j] += du[token * c + k] * h[token * d + j];
        }
        grad(p.gammax)[j] += dh * at(model.x, token, j);
        grad(p.gamma)[j] += dh * (norm * read(p.norm_weight, j) + read(p.norm_bias, j));
        grad(p.norm_weight)[j] += dh * read(p.gamma, j) * norm;
        grad(p.norm_bias)[j] += dh * read(p.gamma, j);
        inner[j] = dh * read(p.gamma, j) * read(p.norm_weight, j);
        mean += inner[j] / d, mean_hat += inner[j] * norm / d;
        result.dx[(static_cast<size_t>(b) * n + token) * d + j] =
            at(dout, token, j) + dh * read(p.gammax, j);
      }
      for (int j = 0; j < d; ++j)
        result.dx[(static_cast<size_t>(b) * n + token) * d + j] +=
            rstd[token] * (inner[j] - mean - hat[token * d + j] * mean_hat);
    }
  }
  return result;
}

}  // namespace fastht::cuda::test
