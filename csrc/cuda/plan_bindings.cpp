// fastht._native.cuda: plans. A call is addresses, strides and formats; fastht/ops/cuda/adapter.py
// makes them from tensors that it keeps alive.
//
// An array is a tuple (address, format); tokens are (address, batch stride, token stride).

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <memory>

#include "cuda/bindings.h"
#include "cuda/driver.h"
#include "cuda/plan.h"
#include "cuda/shipped.h"

namespace fastht::cuda {
namespace {

template <class T = void>
T* pointer(const py::handle& address) {
  return reinterpret_cast<T*>(address.cast<uintptr_t>());
}

Array array(const py::handle& from) {
  const auto t = from.cast<py::tuple>();
  return {pointer(t[0]), static_cast<Format>(t[1].cast<int>())};
}

template <class T>
T tokens(const py::handle& from) {
  if (from.is_none()) return {};
  const auto t = from.cast<py::tuple>();
  return {pointer(t[0]), t[1].cast<long long>(), t[2].cast<long long>()};
}

Saved saved(const py::sequence& a) {
  return {pointer(a[0]), pointer(a[1]), pointer<float>(a[2]), pointer<float>(a[3]),
          pointer<float>(a[4])};
}

// The arrays in the order of fastht.ops.custom_op.parameter_names.
Parameters parameters(const py::sequence& arrays, const Problem& problem) {
  const bool has_filter = problem.filter != Filter::kNone;
  const size_t expected = 16 + (has_filter ? 1 : 0) + (problem.has_gate ? 4 : 0);
  if (arrays.size() != expected)
    throw py::value_error(std::to_string(arrays.size()) + " parameters were given; " +
                          std::to_string(expected) + " are needed");
  size_t next = 0;
  const auto take = [&] { return array(arrays[next++]); };
  Parameters p{};
  for (Array* to :
       {&p.norm_weight, &p.norm_bias, &p.gamma, &p.gammax, &p.down_weight, &p.down_bias})
    *to = take();
  if (has_filter) p.spectral_filter = take();
  if (problem.has_gate)
    for (Array* to : {&p.gate_weight0, &p.gate_bias0, &p.gate_weight2, &p.gate_bias2}) *to = take();
  for (int i = 0; i < 3; ++i) {
    p.conv_weight[i] = take();
    p.conv_bias[i] = take();
  }
  for (Array* to : {&p.pointwise_weight, &p.pointwise_bias, &p.up_weight, &p.up_bias}) *to = take();
  return p;
}

// Where a plan's kernels run: as kernels of a GPU that are loaded under `names`, or as calls of
// `run` (number of the kernel, blocks, bytes of shared memory, address of the parameters), in tests.
struct Target {
  int device = 0;
  std::vector<std::string> names;
  std::function<void(int, int, int, uintptr_t)> run;
};

template <class Plan, class Call>
void run(const Plan& plan, const Call& call, const Target& target, uintptr_t stream) {
  if (target.run) {
    plan.run(call, [&](int kernel, int blocks, int shared_bytes, const void* params) {
      target.run(kernel, blocks, shared_bytes, reinterpret_cast<uintptr_t>(params));
    });
    return;
  }
  if (target.names.size() != plan.kernels().size())
    throw py::value_error("the kernels are not this plan's");
  const py::gil_scoped_release release;
  const Stream queue(target.device, stream);
  plan.run(call, [&](int kernel, int blocks, int shared_bytes, const void* params) {
    queue.launch(target.names[kernel], static_cast<unsigned>(blocks),
                 static_cast<unsigned>(plan.kernels()[kernel].threads),
                 static_cast<unsigned>(shared_bytes), params);
  });
}

std::vector<py::tuple> listed(const std::vector<Kernel>& kernels) {
  std::vector<py::tuple> list;
  for (const Kernel& k : kernels) list.push_back(py::make_tuple(k.function, k.source(), k.threads));
  return list;
}
template <class Plan>
std::vector<py::tuple> kernels(const Plan& plan) {
  return listed(plan.kernels());
}

}  // namespace

void bind_plans(py::module_& module) {
  py::class_<Problem>(module, "Problem")
      .def(py::init([](int batch, int prefix, int height, int width, int dim, int channels,
                       int hidden, float eps, bool has_gate, int filter, int x, int products,
                       bool tf32, double dropout, bool aligned) {
        const Grid grid{prefix + height * width, prefix, height, width};
        return Problem{batch, grid, dim, channels, hidden, eps, has_gate,
                       static_cast<Filter>(filter), static_cast<Format>(x),
                       static_cast<Format>(products), tf32, dropout, aligned};
      }));
  py::class_<Device>(module, "Device").def(py::init([](int per_block, int per_sm, int count) {
    return Device{per_block, per_sm, count};
  }));
  py::class_<Target>(module, "Target")
      .def(py::init([](int device, std::vector<std::string> names) {
        return Target{device, std::move(names), nullptr};
      }))
      .def(py::init([](std::function<void(int, int, int, uintptr_t)> run) {
        return Target{0, {}, std::move(run)};
      }));
  module.def("padded_channels", &padded_channels, "C as the kernels have it: 32, 64 or 128.");
  module.def("shipped_kernels", [](bool common) { return listed(shipped_kernels(common)); });
  py::class_<ForwardPlan>(module, "ForwardPlan")
      .def(py::init<const Problem&, const Device&>())
      .def_property_readonly("kernels", &kernels<ForwardPlan>)
      .def_property_readonly("workspace_bytes", &ForwardPlan::workspace_bytes)
      .def("run", [](const ForwardPlan& plan, const Problem& problem, const Target& target,
                     uintptr_t stream, const py::handle& x, const py::handle& out,
                     const py::sequence& params, uintptr_t seed, const py::sequence& to_save,
                     uintptr_t workspace) {
        run(plan,
            ForwardCall{tokens<Tokens>(x), tokens<OutTokens>(out), parameters(params, problem),
                        reinterpret_cast<const unsigned long long*>(seed), saved(to_save),
                        reinterpret_cast<void*>(workspace)},
            target, stream);
      });
  py::class_<BackwardPlan>(module, "BackwardPlan")
      .def(py::init<const Problem&, const Device&, bool, bool, bool>(), py::arg("problem"),
           py::arg("device"), py::arg("need_input"), py::arg("need_params"),
           py::arg("rebuild") = false)
      .def_property_readonly("kernels", &kernels<BackwardPlan>)
      .def_property_readonly("workspace_bytes", &BackwardPlan::workspace_bytes)
      .def("run", [](const BackwardPlan& plan, const Problem& problem, const Target& target,
                     uintptr_t stream, const py::handle& dout, const py::handle& x,
                     const py::handle& dx, const py::sequence& params, const py::object& grads,
                     uintptr_t seed, const py::sequence& from_forward, uintptr_t workspace,
                     const py::handle& out) {
        const bool need = !grads.is_none();
        run(plan,
            BackwardCall{tokens<Tokens>(dout), tokens<Tokens>(x), tokens<OutTokens>(dx),
                         parameters(params, problem),
                         need ? parameters(grads.cast<py::sequence>(), problem) : Parameters{},
                         need, reinterpret_cast<const unsigned long long*>(seed),
                         saved(from_forward), reinterpret_cast<void*>(workspace),
                         tokens<Tokens>(out), tokens<OutTokens>(x)},
            target, stream);
      }, py::arg("problem"), py::arg("target"), py::arg("stream"), py::arg("dout"), py::arg("x"),
           py::arg("dx").none(true), py::arg("params"), py::arg("grads"), py::arg("seed"),
           py::arg("saved"), py::arg("workspace"), py::arg("out") = py::none());
}

}  // namespace fastht::cuda
