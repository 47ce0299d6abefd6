#include "tests/cuda_model.h"

#include "cuda/activation.cuh"

namespace fastht::cuda::test {

Model::Model(const Setting& s, Format format, Format products, bool tf32, bool aligned)
    : problem{s.batch,
              {s.prefix + s.height * s.width, s.prefix, s.height, s.width},
              s.dim,
              s.channels,
              s.gate ? (s.channels < 8 ? 1 : s.channels / 4) : 0,
              1e-5f,
              s.gate,
              s.filter,
              format,
              products,
              tf32,
              s.dropout,
              aligned},
      setting(s),
      stride(aligned ? s.dim + 8 : s.dim + 3),
      x(static_cast<long long>(s.batch) * problem.grid.tokens * stride, format, aligned ? 0 : 1),
      out(static_cast<long long>(s.batch) * problem.grid.tokens * stride, format, aligned ? 0 : 1) {
  std::mt19937 random(3);
  x.normal(random, 1, s.offset);
  const int d = s.dim, c = s.channels, q = problem.hidden, frequencies = s.height * (s.width / 2 + 1);
  const auto make = [&](Array& to, int size, float deviation, float mean = 0.0f) {
    arrays.emplace_back(size, s.format);
    arrays.back().normal(random, deviation, mean);
    to = arrays.back().array();
  };
  make(params.norm_weight, d, 0.2f, 1);
  make(params.norm_bias, d, 0.2f);
  make(params.gamma, d, 0.3f, 0.5f);
  make(params.gammax, d, s.offset != 0 ? 0.0f : 0.3f, s.offset != 0 ? 0.0f : 1.0f);
  make(params.down_weight, c * d, 1 / std::sqrt(static_cast<float>(d)));
  make(params.down_bias, c, 0.2f);
  if (s.filter == Filter::kNone)
    params.spectral_filter = {nullptr, s.format};
  else
    make(params.spectral_filter, s.filter == Filter::kFull ? c * frequencies : c, 0.3f, 1);
  Array* const gates[] = {&params.gate_weight0, &params.gate_bias0, &params.gate_weight2,
                          &params.gate_bias2};
  const int sizes[] = {q * c, q, 3 * q, 3};
  for (int i = 0; i < 4; ++i) {
    if (s.gate)
      make(*gates[i], sizes[i], 0.6f);
    else
      *gates[i] = {nullptr, s.format};
  }
  for (int i = 0; i < 3; ++i) {
    const int side = 3 + 2 * i;
    make(params.conv_weight[i], c * side * side, 1.0f / side);
    make(params.conv_bias[i], c, 0.2f);
  }
  make(params.pointwise_weight, c * c, 1 / std::sqrt(static_cast<float>(c)));
  make(params.pointwise_bias, c, 0.2f);
  make(params.up_weight, d * c, 1 / std::sqrt(static_cast<float>(c)));
  make(params.up_bias, d, 0.2f);
}

namespace {

using Numbers = std::vector<double>;

double gelu(double y) { return y * 0.5 * (1 + std::erf(y / std::sqrt(2.0))); }

struct Complex {
  double real = 0, imaginary = 0;
};
// Calls each(frequency, cosine and sine by pixel, how often it counts in the plane, by 1 / pixels).
template <class Each>
void for_frequencies(int height, int width, Each each) {
  const int half = width / 2 + 1, pixels = height * width;
  std::vector<Complex> waves(pixels);
  for (int ky = 0; ky < height; ++ky)
    for (int kx = 0; kx < half; ++kx) {
      for (int i = 0; i < pixels; ++i) {
        const double turns =
            ky * (i / width) % height / double(height) + kx * (i % width) % width / double(width);
        const double angle = 2 * 3.14159265358979323846 * turns;
        waves[i] = {std::cos(angle), std::sin(angle)};
      }
      each(ky * half + kx, waves, (kx == 0 || kx * 2 == width ? 1.0 : 2.0) / pixels);
    }
}
Complex coefficient(const Numbers& s, const std::vector<Complex>& waves) {
  Complex sum;
  for (size_t i = 0; i < s.size(); ++i)
    sum.real += s[i] * waves[i].real, sum.imaginary -= s[i] * waves[i].imaginary;
  return sum;
}

}  // namespace

Numbers filtered(const Numbers& s, const Array& filter, int c, int height, int width) {
  const int size = height * (width / 2 + 1);
  Numbers result(s.size());
  for_frequencies(height, width, [&](int at, const std::vector<Complex>& waves, double weight) {
    const Complex sum = coefficient(s, waves);
    const double scale = weight * read(filter, c * size + at);
    for (size_t i = 0; i < s.size(); ++i)
      result[i] += scale * (sum.real * waves[i].real - sum.imaginary * waves[i].imaginary);
  });
  return result;
}

void add_filter_gradient(Numbers& to, const Numbers& s, const Numbers& gradient, int c, int height,
                         int width) {
  const int size = height * (width / 2 + 1);
  for_frequencies(height, width, [&](int at, const std::vector<Complex>& waves, double weight) {
    const Complex a = coefficient(s, waves), b = coefficient(gradient, waves);
    to[c * size + at] += weight * (a.real * b.real + a.imaginary * b.imaginary);
  });
}

std::vector<double> Model::update() const {
  const Setting& s = setting;
  const int n = problem.grid.tokens, d = s.dim, c = s.channels, q = problem.hidden;
  const int pixels = s.height * s.width;
  Numbers result(static_cast<size_t>(s.batch) * n * d);
  for (int b = 0; b < s.batch; ++b) {
    Numbers u(n * c), v(n * c);
    for (int token = 0; token < n; ++token) {
      const long long row = (static_cast<long long>(b) * n + token) * stride;
      double mean = 0, variance = 0;
      for (int j = 0; j < d; ++j) mean += x.at(row + j) / double(d);
      for (int j = 0; j < d; ++j) variance += std::pow(x.at(row + j) - mean, 2) / d;
      const double rstd = 1 / std::sqrt(variance + double(problem.eps));
      Numbers h(d);
      for (int j = 0; j < d; ++j) {
        const double normed = (x.at(row + j) - mean) * rstd * read(params.norm_weight, j) +
                              read(params.norm_bias, j);
        h[j] = normed * read(params.gamma, j) + double(x.at(row + j)) * read(params.gammax, j);
      }
      for (int k = 0; k < c; ++k) {
        double sum = read(params.down_bias, k);
        for (int j = 0; j < d; ++j) sum += h[j] * read(params.down_weight, k * d + j);
        u[token * c + k] = sum;
      }
    }
    Numbers f(pixels * c), pooled(c);
    for (int k = 0; k < c; ++k) {
      Numbers map(pixels);
      for (int i = 0; i < pixels; ++i) map[i] = u[(s.prefix + i) * c + k];
      if (s.filter == Filter::kFull) map = filtered(map, params.spectral_filter, k, s.height, s.width);
      for (int i = 0; i < pixels; ++i) {
        if (s.filter == Filter::kChannel) map[i] *= read(params.spectral_filter, k);
        f[i * c + k] = map[i];
        pooled[k] += map[i] / pixels;
      }
    }
    double gate[3] = {1.0 / 3, 1.0 / 3, 1.0 / 3};
    if (s.gate) {
      double total = 0;
      for (int i = 0; i < 3; ++i) {
        gate[i] = read(params.gate_bias2, i);
        for (int j = 0; j < q; ++j) {
          double hidden = read(params.gate_bias0, j);
          for (int k = 0; k < c; ++k) hidden += pooled[k] * read(params.gate_weight0, j * c + k);
          gate[i] += std::max(hidden, 0.0) * read(params.gate_weight2, i * q + j);
        }
        total += std::exp(gate[i]);
      }
      for (double& g : gate) g = std::exp(g) / total;
    }
    for (int token = 0; token < n; ++token) {
      const int pixel = token - s.prefix;
      Numbers y(c), z(c);
      for (int k = 0; k < c; ++k) {
        y[k] = u[token * c + k];
        for (int i = 0; i < 3 && pixel >= 0; ++i) {
          const int side = 3 + 2 * i;
          double sum = read(params.conv_bias[i], k);
          for (int tap = 0; tap < side * side; ++tap) {
            const int row = pixel / s.width + tap / side - side / 2;
            const int column = pixel % s.width + tap % side - side / 2;
            if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
            sum += read(params.conv_weight[i], k * side * side + tap) *
                   f[(row * s.width + column) * c + k];
          }
          y[k] += gate[i] * sum;
        }
      }
      for (int k = 0; k < c; ++k) {
        double value = y[k];
        if (pixel >= 0) {
          value += read(params.pointwise_bias, k);
          for (int i = 0; i < c; ++i) value += read(params.pointwise_weight, k * c + i) * y[i];
        }
        Word draw[4];
        philox(draw, (Long(b) * n + token) * ceil_div(c, 4) + k / 4, seed);
        const bool kept = draw[k % 4] >> 8 >= dropout_of(problem, &seed).threshold;
        z[k] = kept ? gelu(value) / (1 - problem.dropout) : 0.0;
      }
      for (int j = 0; j < d; ++j) {
        double sum = read(params.up_bias, j);
        for (int k = 0; k < c; ++k) sum += z[k] * read(params.up_weight, j * c + k);
        result[(static_cast<size_t>(b) * n + token) * d + j] = sum;
      }
    }
  }
  return result;
}

Launch launcher(const std::vector<Kernel>& kernels, const std::vector<Instance>& instances,
                uint64_t order, bool truncate) {
  return [=](int kernel, int blocks, int shared, const void* params) {
    for (const Instance& instance : instances)
      if (kernels[kernel].function == instance.function)
        return instance.run(params, blocks, kernels[kernel].threads, shared, order, truncate);
    expect(false, "no instance of " + kernels[kernel].function);
  };
}

}  // namespace fastht::cuda::test
