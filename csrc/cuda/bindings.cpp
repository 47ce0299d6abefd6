// fastht._native.cuda: the driver for fastht/ops/cuda. Addresses and numbers in, errors out.
#include "cuda/bindings.h"

#include <cstdint>
#include <string>

#include "cuda/driver.h"

namespace fastht::cuda {

void bind(py::module_& module) {
  module.doc() = "Starts CUDA kernels through the driver; fastht.ops.cuda is its face.";
  bind_plans(module);
  module.def("driver_problem", &driver_problem, "Why no kernel can be started; empty if they can.");
  module.def("driver_version", &driver_version, "1000 * major + 10 * minor of the driver's CUDA.");
  module.def("is_loaded", &kernel_is_loaded, py::arg("device"), py::arg("name"));
  module.def(
      "load",
      [](int device, const std::string& name, const std::string& symbol, const py::bytes& image) {
        const std::string code = image;
        const py::gil_scoped_release release;
        load_kernel(device, name, symbol, code.data());
      },
      py::arg("device"), py::arg("name"), py::arg("symbol"), py::arg("image"));
  module.def(
      "launch",
      [](int device, uintptr_t stream, const std::string& name, unsigned blocks, unsigned threads,
         unsigned shared_bytes, const py::bytes& params) {
        const std::string bytes = params;
        Stream(device, stream)
            .launch(name, blocks, threads, shared_bytes, bytes.data(), bytes.size());
      },
      py::arg("device"), py::arg("stream"), py::arg("name"), py::arg("blocks"), py::arg("threads"),
      py::arg("shared_bytes"), py::arg("params"), "Start one kernel, its parameters as bytes.");
}

}  // namespace fastht::cuda
