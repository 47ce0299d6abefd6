#pragma once

#include <pybind11/pybind11.h>

namespace fastht::cuda {
namespace py = pybind11;

void bind(py::module_& module);
void bind_plans(py::module_& module);

}  // namespace fastht::cuda
