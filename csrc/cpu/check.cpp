#include "cpu/check.h"

#include <stdexcept>
#include <string>
#include <utility>

namespace fastht::cpu {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

int64_t width_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

void check_pointer(const char* name, const void* data, int64_t bytes) {
  if (data == nullptr) refuse(std::string(name) + " is missing");
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) != 0)
    refuse(std::string(name) + " is not aligned to its elements of " + std::to_string(bytes) +
           " bytes");
}

void check_array(const char* name, const Array& array, int64_t size) {
  if (array.size != size)
    refuse(std::string(name) + " has " + std::to_string(array.size) + " elements; " +
           std::to_string(size) + " are needed");
  check_pointer(name, array.data, width_of(array.dtype));
}

void check_tokens(const Problem& p, const char* name, const Tokens& tokens, bool written) {
  check_pointer(name, tokens.data, width_of(tokens.dtype));
  if (tokens.dtype != p.x.dtype) refuse(std::string(name) + " has another dtype than x");
  if (tokens.token_stride < 0 || tokens.batch_stride < 0)
    refuse(std::string(name) + " has a negative stride");
  if (!written) return;
  // Nothing that is written may overlap: of batch and tokens, the one that lies closer together has
  // to leave room for a row of features, the other one for all of those.
  struct Axis {
    int64_t count, stride;
  };
  Axis inner{p.tokens(), tokens.token_stride}, outer{p.batch, tokens.batch_stride};
  if (inner.count == 1 || (outer.count > 1 && outer.stride < inner.stride)) std::swap(inner, outer);
  const int64_t span = inner.stride * (inner.count - 1) + p.dim;
  if ((inner.count > 1 && inner.stride < p.dim) || (outer.count > 1 && outer.stride < span))
    refuse(std::string(name) + " has strides by which its tokens overlap");
}

void check_parameters(const Problem& p, const Parameters& all) {
  const int64_t d = p.dim, c = p.channels, q = p.hidden;
  check_array("norm.weight", all.norm_weight, d);
  check_array("norm.bias", all.norm_bias, d);
  check_array("gamma", all.gamma, d);
  check_array("gammax", all.gammax, d);
  check_array("down.weight", all.down_weight, c * d);
  check_array("down.bias", all.down_bias, c);
  if (p.has_filter())
    check_array("spectral_filter", all.spectral_filter, p.full_filter() ? c * p.frequencies() : c);
  if (p.has_gate()) {
    check_array("noise_gate.0.weight", all.gate_weight0, q * c);
    check_array("noise_gate.0.bias", all.gate_bias0, q);
    check_array("noise_gate.2.weight", all.gate_weight2, 3 * q);
    check_array("noise_gate.2.bias", all.gate_bias2, 3);
  }
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t k = 3 + 2 * i;
    const std::string name = "conv" + std::to_string(k);
    check_array((name + ".weight").c_str(), all.conv_weight[i], c * k * k);
    check_array((name + ".bias").c_str(), all.conv_bias[i], c);
  }
  check_array("pointwise.weight", all.pointwise_weight, c * c);
  check_array("pointwise.bias", all.pointwise_bias, c);
  check_array("up.weight", all.up_weight, d * c);
  check_array("up.bias", all.up_bias, d);
}

void check_problem(const Problem& p) {
  constexpr int64_t limit = int64_t{1} << 40;  // of any array's elements: far from overflow
  const struct {
    const char* name;
    int64_t value, least;
  } sizes[] = {{"batch", p.batch, 1},   {"prefix", p.prefix, 0},  {"height", p.height, 1},
               {"width", p.width, 1},   {"dim", p.dim, 1},        {"channels", p.channels, 1},
               {"hidden", p.hidden, 0}, {"threads", p.threads, 1}};
  for (const auto& size : sizes)
    if (size.value < size.least || size.value > (int64_t{1} << 31))
      refuse(std::string(size.name) + " is " + std::to_string(size.value));
  const double elements = static_cast<double>(p.batch) *
                          (static_cast<double>(p.prefix) +
                           static_cast<double>(p.height) * static_cast<double>(p.width)) *
                          static_cast<double>(p.dim > p.channels ? p.dim : p.channels);
  if (elements > static_cast<double>(limit)) refuse("the tokens have too many elements");
  if (!(p.eps >= 0.0f)) refuse("eps is negative or not a number");
  if (p.has_gate() && p.hidden < 1) refuse("a gate needs a hidden layer");
  check_tokens(p, "x", p.x, false);
  check_parameters(p, p.params);
}

}  // namespace

void check(const ForwardCall& call) {
  check_problem(call);
  check_tokens(call, "out", call.out, true);
  const Saved& s = call.saved;
  const bool any = s.u != nullptr || s.stats != nullptr || s.pooled != nullptr || s.gate != nullptr;
  const bool all = s.u != nullptr && s.stats != nullptr && s.pooled != nullptr && s.gate != nullptr;
  if (any && !all) refuse("what the backward pass needs is kept whole or not at all");
}

void check(const BackwardCall& call) {
  check_problem(call);
  check_tokens(call, "dout", call.dout, false);
  if (call.dx.data != nullptr) check_tokens(call, "dx", call.dx, true);
  check_pointer("u", call.saved.u, 4);
  check_pointer("stats", call.saved.stats, 4);
  check_pointer("pooled", call.saved.pooled, 4);
  check_pointer("gate", call.saved.gate, 4);
  if (call.need_params) check_parameters(call, call.grads);
}

}  // namespace fastht::cpu
