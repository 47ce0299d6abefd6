// The instruction-set paths in this binary, and the entry points that pick among them.
#pragma once

#include <string>
#include <vector>

#include "cpu/problem.h"

namespace fastht::cpu {

struct Path {
  const char* name;
  bool bf16_products;  // rounds the factors of matrix products to bf16; otherwise float32
  bool (*supported)();
  void (*forward)(const ForwardCall&);
  void (*backward)(const BackwardCall&);
};

// Names of the paths that this machine can run, fastest first.
std::vector<std::string> usable_paths();

// The path that a call takes: `name`, or the fastest if that is empty. A call whose products may
// not be rounded never takes a path that does.
//
// Throws std::invalid_argument if there is no such path, or it cannot run here or take the call.
const Path& choose_path(const std::string& name, bool bf16_products);

// Both throw std::invalid_argument before touching memory if sizes or pointers do not fit.
void forward(const ForwardCall& call, const std::string& path);
void backward(const BackwardCall& call, const std::string& path);

}  // namespace fastht::cpu
