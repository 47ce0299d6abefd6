// The native kernels' Python face, fastht._native: numbers in, errors out; no tensors, no torch.
//
// An array is a tuple (address, elements, is_bf16); tokens are (address, is_bf16, batch stride,
// token stride). fastht/ops/cpu/adapter.py makes them from tensors that it keeps alive.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>

#include "cpu/paths.h"
#ifdef FASTHT_HAS_CUDA
#include "cuda/bindings.h"
#endif

namespace py = pybind11;

namespace {

using namespace fastht::cpu;

DType dtype(bool is_bf16) { return is_bf16 ? DType::kBFloat16 : DType::kFloat32; }

template <class T = void>
T* pointer(const py::handle& address) {
  return reinterpret_cast<T*>(address.cast<uintptr_t>());
}

Array array(const py::handle& from) {
  const auto t = from.cast<py::tuple>();
  return {pointer(t[0]), t[1].cast<int64_t>(), dtype(t[2].cast<bool>())};
}

Tokens tokens(const py::handle& from) {
  if (from.is_none()) return {};
  const auto t = from.cast<py::tuple>();
  return {pointer(t[0]), dtype(t[1].cast<bool>()), t[2].cast<int64_t>(), t[3].cast<int64_t>()};
}

Saved saved(const py::handle& from) {
  if (from.is_none()) return {};
  const auto t = from.cast<py::tuple>();
  return {pointer<float>(t[0]), pointer<float>(t[1]), pointer<float>(t[2]), pointer<float>(t[3])};
}

// The arrays in the order of fastht.ops.custom_op.parameter_names.
Parameters parameters(const py::sequence& arrays, bool has_filter, bool has_gate) {
  const size_t expected = 16 + (has_filter ? 1 : 0) + (has_gate ? 4 : 0);
  if (arrays.size() != expected)
    throw py::value_error(std::to_string(arrays.size()) + " parameters were given; " +
                          std::to_string(expected) + " are needed");
  size_t next = 0;
  const auto take = [&] { return array(arrays[next++]); };
  Parameters p;
  for (Array* to :
       {&p.norm_weight, &p.norm_bias, &p.gamma, &p.gammax, &p.down_weight, &p.down_bias})
    *to = take();
  if (has_filter) p.spectral_filter = take();
  if (has_gate)
    for (Array* to : {&p.gate_weight0, &p.gate_bias0, &p.gate_weight2, &p.gate_bias2}) *to = take();
  for (int i = 0; i < 3; ++i) {
    p.conv_weight[i] = take();
    p.conv_bias[i] = take();
  }
  for (Array* to : {&p.pointwise_weight, &p.pointwise_bias, &p.up_weight, &p.up_bias}) *to = take();
  return p;
}

// What forward and backward have in common.
struct Options {
  int64_t batch, prefix, height, width, dim, channels;
  double eps;
  bool has_filter, has_gate, bf16_products;
  double dropout;
  uint64_t seed;
  int threads;
};

void fill(Problem& call, const Options& o, const py::sequence& params, const py::handle& x) {
  call.batch = o.batch;
  call.prefix = o.prefix;
  call.height = o.height;
  call.width = o.width;
  call.dim = o.dim;
  call.channels = o.channels;
  call.eps = static_cast<float>(o.eps);
  call.bf16_products = o.bf16_products;
  call.dropout = o.dropout > 0.0;
  call.dropout_threshold = static_cast<uint32_t>(std::nearbyint(o.dropout * (1 << 24)));
  call.dropout_scale = static_cast<float>(1.0 / (1.0 - o.dropout));
  call.seed = o.seed;
  call.threads = o.threads;
  call.params = parameters(params, o.has_filter, o.has_gate);
  call.hidden = call.params.gate_bias0.size;
  call.x = tokens(x);
}

}  // namespace

PYBIND11_MODULE(_native, module, py::mod_gil_not_used()) {
  module.doc() = "Native kernels of fastht; fastht.ops.cpu is their face.";
#ifdef FASTHT_HAS_CUDA
  py::module_ cuda = module.def_submodule("cuda");
  fastht::cuda::bind(cuda);
#endif
  py::class_<Options>(module, "Options")
      .def(py::init([](int64_t batch, int64_t prefix, int64_t height, int64_t width, int64_t dim,
                       int64_t channels, double eps, bool has_filter, bool has_gate,
                       bool bf16_products, double dropout, uint64_t seed, int threads) {
        return Options{batch,      prefix,   height,        width,   dim,  channels, eps,
                       has_filter, has_gate, bf16_products, dropout, seed, threads};
      }));
  module.def("paths", &usable_paths, "Instruction-set paths that run here, fastest first.");
  module.def(
      "choose_path",
      [](const std::string& path, bool bf16_products) {
        return std::string(choose_path(path, bf16_products).name);
      },
      py::arg("path"), py::arg("bf16_products"), "The path that such a call takes.");
  module.def("forward",
             [](const Options& options, const py::sequence& params, const py::handle& x,
                const py::handle& out, const py::handle& to_save, const std::string& path) {
               ForwardCall call{};
               fill(call, options, params, x);
               call.out = tokens(out);
               call.saved = saved(to_save);
               const py::gil_scoped_release release;
               forward(call, path);
             });
  module.def(
      "backward", [](const Options& options, const py::sequence& params, const py::handle& x,
                     const py::handle& dout, const py::handle& from_forward, const py::handle& dx,
                     const py::object& grads, bool rebuild, const std::string& path) {
        BackwardCall call{};
        fill(call, options, params, x);
        call.dout = tokens(dout);
        call.saved = saved(from_forward);
        call.dx = tokens(dx);
        call.need_params = !grads.is_none();
        call.rebuild = rebuild;
        if (call.need_params)
          call.grads = parameters(grads.cast<py::sequence>(), options.has_filter, options.has_gate);
        const py::gil_scoped_release release;
        backward(call, path);
      });
}
