// The native CPU kernels without Python: what sanitizers and valgrind run.
//
// Every array has exactly the size that the operator promises to stay within, and is full of NaN
// before it is written. Whether results are right is the Python tests' question; here every path
// has to agree with the portable one, with itself on any number of threads, and to refuse what does
// not fit.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/paths.h"

namespace {

using namespace fastht::cpu;

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

// An exact allocation of one array, so that a sanitizer sees every step beyond it.
class Buffer {
 public:
  Buffer(int64_t size, DType dtype) : size_(size), dtype_(dtype) {
    if (dtype == DType::kFloat32) {
      wide_ = std::make_unique<float[]>(size);
      for (int64_t i = 0; i < size; ++i) wide_[i] = std::numeric_limits<float>::quiet_NaN();
    } else {
      half_ = std::make_unique<uint16_t[]>(size);
      for (int64_t i = 0; i < size; ++i) half_[i] = 0x7fc0;
    }
  }

  void fill(std::mt19937& random, float mean, float deviation) {
    std::normal_distribution<float> normal(mean, deviation);
    for (int64_t i = 0; i < size_; ++i) {
      const float value = normal(random);
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      if (wide_) wide_[i] = value;
      if (half_) half_[i] = static_cast<uint16_t>(bits >> 16);
    }
  }

  float at(int64_t i) const {
    if (wide_) return wide_[i];
    const uint32_t bits = uint32_t{half_[i]} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  void* data() const { return wide_ ? static_cast<void*>(wide_.get()) : half_.get(); }
  int64_t size() const { return size_; }
  Array array() const { return {data(), size_, dtype_}; }
  float* floats() const { return wide_.get(); }

 private:
  int64_t size_;
  DType dtype_;
  std::unique_ptr<float[]> wide_;
  std::unique_ptr<uint16_t[]> half_;
};

struct Case {
  int64_t batch, prefix, height, width, dim, channels;
  bool gate, filter, full;
  DType dtype;
  float dropout;

  std::string name() const {
    const int64_t sizes[] = {batch, prefix, height, width, dim, channels};
    std::string text;
    for (int64_t size : sizes) text += std::to_string(size) + " ";
    return text + (gate ? "gate " : "") +
           (full     ? "full "
            : filter ? "filter "
                     : "") +
           (dtype == DType::kFloat32 ? "float32" : "bfloat16") + (dropout > 0 ? " dropout" : "");
  }
};

// The parameters of one case, or room for their gradients.
struct Set {
  std::vector<std::unique_ptr<Buffer>> buffers;
  Parameters params;

  explicit Set(const Case& c, std::mt19937* random) {
    const int64_t d = c.dim, n = c.channels, q = n / 4 > 0 ? n / 4 : 1;
    const auto take = [&](Array& to, int64_t size, float mean) {
      buffers.push_back(std::make_unique<Buffer>(size, c.dtype));
      if (random != nullptr) buffers.back()->fill(*random, mean, 0.2f);
      to = buffers.back()->array();
    };
    take(params.norm_weight, d, 1);
    take(params.norm_bias, d, 0);
    take(params.gamma, d, 1);
    take(params.gammax, d, 1);
    take(params.down_weight, n * d, 0);
    take(params.down_bias, n, 0);
    if (c.filter) take(params.spectral_filter, c.full ? n * c.height * (c.width / 2 + 1) : n, 1);
    if (c.gate) {
      take(params.gate_weight0, q * n, 0);
      take(params.gate_bias0, q, 0);
      take(params.gate_weight2, 3 * q, 0);
      take(params.gate_bias2, 3, 0);
    }
    for (int i = 0; i < 3; ++i) {
      take(params.conv_weight[i], n * (3 + 2 * i) * (3 + 2 * i), 0);
      take(params.conv_bias[i], n, 0);
    }
    take(params.pointwise_weight, n * n, 0);
    take(params.pointwise_bias, n, 0);
    take(params.up_weight, d * n, 0);
    take(params.up_bias, d, 0);
  }
};

// Everything that a forward and a backward pass write.
struct Results {
  Buffer out, u, stats, pooled, gate, dx;
  Set grads;

  explicit Results(const Case& c, int64_t tokens)
      : out(c.batch * tokens * c.dim, c.dtype),
        u(c.batch * tokens * c.channels, DType::kFloat32),
        stats(c.batch * tokens * 2, DType::kFloat32),
        pooled(c.batch * c.channels, DType::kFloat32),
        gate(c.batch * 3, DType::kFloat32),
        dx(c.batch * tokens * c.dim, c.dtype),
        grads(c, nullptr) {}

  std::vector<const Buffer*> all() const {
    std::vector<const Buffer*> list = {&out, &u, &stats, &pooled, &gate, &dx};
    for (const auto& buffer : grads.buffers) list.push_back(buffer.get());
    return list;
  }
};

class Adapter {
 public:
  explicit Adapter(const Case& c)
      : case_(c),
        tokens_(c.prefix + c.height * c.width),
        random_(7),
        x_(c.batch * tokens_ * c.dim, c.dtype),
        dout_(c.batch * tokens_ * c.dim, c.dtype),
        params_(c, &random_) {
    x_.fill(random_, 0.5f, 1.0f);
    dout_.fill(random_, 0.0f, 1.0f);
  }

  std::unique_ptr<Results> run(const std::string& path, int threads) {
    auto results = std::make_unique<Results>(case_, tokens_);
    const Saved saved{results->u.floats(), results->stats.floats(), results->pooled.floats(),
                      results->gate.floats()};
    ForwardCall ahead{};
    fill(ahead, threads);
    ahead.out = tokens(results->out);
    ahead.saved = saved;
    forward(ahead, path);

    Buffer unsaved(results->out.size(), case_.dtype);
    ForwardCall alone = ahead;
    alone.out = tokens(unsaved);
    alone.saved = {};
    forward(alone, path);
    bool same = true;
    for (int64_t i = 0; i < unsaved.size(); ++i) same &= unsaved.at(i) == results->out.at(i);
    expect(same, case_.name() + " on " + path + ": saving changes the output");

    BackwardCall back{};
    fill(back, threads);
    back.dout = tokens(dout_);
    back.dx = tokens(results->dx);
    back.saved = saved;
    back.grads = results->grads.params;
    back.need_params = true;
    backward(back, path);
    rebuilds(back, *results, path);
    return results;
  }

  // From the output in the place of x the gradients are the same but for its rounding.
  void rebuilds(BackwardCall back, const Results& given, const std::string& path) const {
    Results again(case_, tokens_);
    back.x = tokens(given.out);
    back.dx = tokens(again.dx);
    back.grads = again.grads.params;
    back.rebuild = true;
    backward(back, path);
    const double bound = case_.dtype == DType::kFloat32 ? 1e-5 : 0.2;
    for (size_t i = 0; i < again.all().size(); ++i) {
      const Buffer &one = *given.all()[i], &other = *again.all()[i];
      if (i < 5) continue;  // what the forward pass writes
      double off = 0, most = 0;
      for (int64_t j = 0; j < one.size(); ++j) {
        off = std::max(off, std::abs(double{one.at(j)} - double{other.at(j)}));
        most = std::max(most, std::abs(double{one.at(j)}));
      }
      expect(off <= bound * (most + 1), case_.name() + " on " + path + ": rebuilt, array " +
                                            std::to_string(i) + " is off by " + std::to_string(off));
    }
  }

  void refuses() {
    Results results(case_, tokens_);
    const auto refused = [&](const char* what, auto&& change) {
      ForwardCall call{};
      fill(call, 1);
      call.out = tokens(results.out);
      change(call);
      try {
        forward(call, "");
        expect(false, std::string("a call is not refused: ") + what);
      } catch (const std::invalid_argument&) {
      }
    };
    refused("no tokens", [](ForwardCall& c) { c.x.data = nullptr; });
    refused("a parameter of another size", [](ForwardCall& c) { ++c.params.up_bias.size; });
    refused("no threads", [](ForwardCall& c) { c.threads = 0; });
    refused("a negative size", [](ForwardCall& c) { c.height = -c.height; });
    refused("a size that overflows", [](ForwardCall& c) { c.width = int64_t{1} << 40; });
    refused("half of what is saved", [&](ForwardCall& c) { c.saved.u = results.u.floats(); });
    if (tokens_ > 1)
      refused("outputs that overlap", [](ForwardCall& c) { c.out.token_stride = c.dim - 1; });
    refused("an output of another dtype", [](ForwardCall& c) {
      c.out.dtype = c.x.dtype == DType::kFloat32 ? DType::kBFloat16 : DType::kFloat32;
    });
    refused("tokens at an odd address",
            [](ForwardCall& c) { c.x.data = static_cast<char*>(c.x.data) + 1; });
  }

 private:
  void fill(Problem& p, int threads) const {
    p.batch = case_.batch;
    p.prefix = case_.prefix;
    p.height = case_.height;
    p.width = case_.width;
    p.dim = case_.dim;
    p.channels = case_.channels;
    p.params = params_.params;
    p.hidden = p.params.gate_bias0.size;
    p.eps = 1e-5f;
    p.bf16_products = case_.dtype == DType::kBFloat16;
    p.dropout = case_.dropout > 0;
    p.dropout_threshold = static_cast<uint32_t>(case_.dropout * (1 << 24));
    p.dropout_scale = 1 / (1 - case_.dropout);
    p.seed = 0x123456789abcdefu;
    p.threads = threads;
    p.x = tokens(x_);
  }

  Tokens tokens(const Buffer& buffer) const {
    return {buffer.data(), case_.dtype, tokens_ * case_.dim, case_.dim};
  }

  Case case_;
  int64_t tokens_;
  std::mt19937 random_;
  Buffer x_, dout_;
  Set params_;
};

void compare(const Results& a, const Results& b, float tolerance, const std::string& what) {
  const auto left = a.all(), right = b.all();
  for (size_t k = 0; k < left.size(); ++k) {
    float largest = 1e-3f, difference = 0;
    for (int64_t i = 0; i < left[k]->size(); ++i) {
      const float x = left[k]->at(i), y = right[k]->at(i);
      largest = std::fmax(largest, std::fabs(x));
      if (!(std::fabs(x - y) <= difference)) difference = std::fabs(x - y);
      if (std::isnan(x) || std::isnan(y)) difference = std::numeric_limits<float>::infinity();
    }
    expect(difference <= tolerance * largest,
           what + ", result " + std::to_string(k) + ": " + std::to_string(difference / largest));
  }
}

}  // namespace

int main() {
  const DType f32 = DType::kFloat32, bf16 = DType::kBFloat16;
  const Case cases[] = {
      {2, 1, 5, 6, 48, 16, true, true, false, f32, 0},
      {5, 0, 4, 9, 100, 20, true, true, true, f32, 0.1f},
      {1, 5, 1, 1, 37, 5, false, false, false, f32, 0},
      {3, 1, 14, 14, 192, 64, true, false, false, f32, 0.5f},
      {1, 0, 1, 19, 80, 72, false, true, false, f32, 0},
      {1, 2, 9, 1, 64, 128, true, true, true, f32, 0},
      {2, 1, 5, 6, 48, 16, true, true, false, bf16, 0.1f},
      {5, 1, 7, 7, 100, 20, true, true, true, bf16, 0},
      {1, 3, 20, 11, 130, 64, true, true, false, bf16, 0},
      {1, 0, 1, 1, 1, 1, true, true, false, bf16, 0},
  };
  const std::vector<std::string> paths = usable_paths();
  for (const Case& c : cases) {
    Adapter adapter(c);
    adapter.refuses();
    const auto expected = adapter.run("portable", 1);
    for (const std::string& path : paths) {
      try {
        choose_path(path, c.dtype == bf16);
      } catch (const std::invalid_argument&) {
        continue;
      }
      const auto alone = adapter.run(path, 1);
      compare(*expected, *alone, c.dtype == bf16 ? 0.05f : 1e-4f, c.name() + " on " + path);
      for (int threads = 2; threads <= 5; ++threads)
        compare(*alone, *adapter.run(path, threads), 0,
                c.name() + " on " + path + " with " + std::to_string(threads) + " threads");
    }
  }
  for (const std::string& path : paths) std::printf("ran on %s\n", path.c_str());
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
