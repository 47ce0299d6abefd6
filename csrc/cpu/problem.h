// What one call of the operator consists of: sizes, options and pointers, nothing else.
//
// Shared by the bindings, the native tests and every instruction-set path. Nothing here is checked
// again by the kernels: check.h does that once, before memory is touched.
#pragma once

#include <cstdint>

namespace fastht::cpu {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1 };

// A contiguous parameter or its gradient. `data` is null where the variant has no such parameter.
struct Array {
  void* data = nullptr;
  int64_t size = 0;  // elements
  DType dtype = DType::kFloat32;
};

// [batch, tokens, dim] with unit stride along dim; strides in elements.
struct Tokens {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t batch_stride = 0;
  int64_t token_stride = 0;
};

// The adapter's parameters, in the order of fastht.ops.custom_op.parameter_names.
struct Parameters {
  Array norm_weight, norm_bias, gamma, gammax;  // D
  Array down_weight, down_bias;                 // C x D, C
  Array spectral_filter;                        // C, or C x H x (W / 2 + 1)
  Array gate_weight0, gate_bias0;               // Q x C, Q
  Array gate_weight2, gate_bias2;               // 3 x Q, 3
  Array conv_weight[3], conv_bias[3];           // C x k x k, C for k = 3, 5, 7
  Array pointwise_weight, pointwise_bias;       // C x C, C
  Array up_weight, up_bias;                     // D x C, D
};

struct Problem {
  int64_t batch, prefix, height, width, dim, channels, hidden;
  float eps;
  bool bf16_products;  // whether matrix products may round their factors to bf16
  bool dropout;
  uint32_t dropout_threshold;  // an element is dropped if its 24 random bits are below
  float dropout_scale;         // what kept elements are multiplied by
  uint64_t seed;
  int threads;
  Parameters params;
  Tokens x;

  int64_t tokens() const { return prefix + height * width; }
  bool has_gate() const { return params.gate_weight0.data != nullptr; }
  bool has_filter() const { return params.spectral_filter.data != nullptr; }
  bool full_filter() const { return has_filter() && params.spectral_filter.size != channels; }
  int64_t frequencies() const { return height * (width / 2 + 1); }
};

// What the forward pass leaves for the backward pass; all float32, null if none will follow.
struct Saved {
  float* u = nullptr;       // [batch, tokens, channels]: the bottleneck activations
  float* stats = nullptr;   // [batch, tokens, 2]: mean and reciprocal standard deviation
  float* pooled = nullptr;  // [batch, channels]: mean of u over the patches
  float* gate = nullptr;    // [batch, 3]
};

struct ForwardCall : Problem {
  Tokens out;
  Saved saved;
};

struct BackwardCall : Problem {
  Tokens dout;
  Tokens dx;  // data is null if x needs no gradient
  Saved saved;
  Parameters grads;  // every data is null if the parameters need no gradients
  bool need_params;
  bool rebuild;  // whether x holds the forward pass's output, of which x itself has to be made
};

}  // namespace fastht::cpu
