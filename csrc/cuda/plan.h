// One call of the adapter as launches of kernels: sizes, tiles, order. Plain C++, no CUDA.
//
// The same plan runs on a GPU (driver.cpp) and in the simulator: `Launch` is what differs. A plan
// depends on a configuration, not on pointers, and is made once for it; its kernels are compiled
// (or found compiled) before its first run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda/backward_params.h"
#include "cuda/forward_params.h"
#include "cuda/params.h"
#include "cuda/spectral_params.h"
#include "cuda/workspace.h"

namespace fastht::cuda {

// What a plan depends on.
struct Problem {
  int batch;
  Grid grid;
  int dim, channels, hidden;  // hidden: of the gate, 0 without
  float eps;
  bool has_gate;
  Filter filter;
  Format x;         // of the tokens
  Format products;  // of the bottleneck's maps and the products' operands
  bool tf32;        // whether float32 products may be TensorFloat-32 ones
  double dropout;   // 0: none
  bool aligned;     // all tokens: 16-byte addresses and strides, dim a multiple of 8
};

// What it may use.
struct Device {
  int shared_per_block, shared_per_multiprocessor, multiprocessors;
};

// One instantiation of a kernel.
struct Kernel {
  std::string file;      // "mix_up.cuh"
  std::string params;    // "MixUpParams"
  std::string function;  // "mix_up<Bfloat16, Bfloat16Products, 64, 8, 64, 5, 3, true>"
  int threads, blocks_per_multiprocessor;

  // The text of a source file that holds the kernel under the name fastht_mix_up.
  std::string source() const;
};

// Runs `blocks` blocks of kernel number `kernel` of the plan, after all launches before it.
using Launch = std::function<void(int kernel, int blocks, int shared_bytes, const void* params)>;

// The adapter's parameters, or their gradients; shapes as fastht.HTAdapter has them, contiguous.
struct Parameters {
  Array norm_weight, norm_bias, gamma, gammax, down_weight, down_bias;
  Array spectral_filter;  // [C], or [C, H, W / 2 + 1] where it is a full one
  Array gate_weight0, gate_bias0, gate_weight2, gate_bias2;
  Array conv_weight[3], conv_bias[3];
  Array pointwise_weight, pointwise_bias, up_weight, up_bias;
};

// What the forward pass keeps for the backward pass; C is `padded`.
struct Saved {
  void* u;       // [B, N, C] of the products' format
  void* u_norm;  // [B, N, C] the LayerNorm's part of u, divided by the fold's scale
  float* stats;  // [B, N, 2] mean and 1 / standard deviation
  float* pooled; // [B, C] sums of u over the patches
  float* gate;   // [B, 4] the weights of the three convolutions, and nothing
};

struct ForwardCall {
  Tokens x;
  OutTokens out;
  Parameters params;
  const unsigned long long* seed;
  Saved saved;  // all null: no backward pass will follow
  void* workspace;
};

struct BackwardCall {
  Tokens dout, x;
  OutTokens dx;  // null: not needed
  Parameters params, grads;
  bool need_params;
  const unsigned long long* seed;
  Saved saved;
  void* workspace;
  Tokens out{};         // of the forward pass, where the plan rebuilds x from it
  OutTokens rebuilt{};  // where: x itself, which may be dx as well
};

constexpr int kReserved = 1024;  // of shared memory, by the system, for each block

// Blocks of `warps` warps that a multiprocessor holds: by the registers of a thread that they shall
// have, and by their shared memory. What a kernel is compiled for: memory that keeps a third block
// out leaves its registers to the two.
int blocks_at_once(const Device& device, int warps, int registers, int shared);
// Features of a token that a block of `rows` brings to the L2 cache while the memory has nothing to do,
// so many blocks at once on a multiprocessor.
int prefetched_features(const Device& device, int blocks, int rows, int x_bytes);
// Registers of a thread that down and mix_up need.
int forward_registers(const Problem& problem);

// C padded to what kernels are made for. Throws std::invalid_argument above 128.
int padded_channels(int channels);
int bytes_of(Format format);

// "Bfloat16, Float32Products, 64": a problem's first template arguments.
std::string numbers_of(const Problem& problem);
inline const char* text(bool value) { return value ? "true" : "false"; }
Dropout dropout_of(const Problem& problem, const unsigned long long* seed);

// What the fold kernel makes in either pass, and its launch. `fold.matrices` and `matrix_count` are
// the caller's; the rest is filled in here, in `workspace`.
void plan_fold(FoldParams& fold, const Problem& problem, const Parameters& params,
               Workspace& workspace);
int fold_blocks(const FoldParams& fold);
Kernel fold_kernel(const Problem& problem);

// Tiling of a full spectral filter, and its kernels: that of the filter, and row_means, which only
// the backward pass needs.
class SpectralPlan {
 public:
  SpectralPlan() = default;  // of no full filter
  // Throws std::invalid_argument where the device has too little shared memory for the grid.
  SpectralPlan(const Problem& problem, const Device& device);
  std::vector<Kernel> kernels(const Problem& problem) const;
  int blocks(const SpectralParams& params) const;
  int shared() const { return shared_; }
  // Images of a block that adds up the filter's gradient.
  int each() const { return each_; }

 private:
  int padded_ = 0, slice_ = 0, threads_ = 0, shared_ = 0, each_ = 1;
};
// Numbers of a channel's filter.
inline int frequencies_of(const Problem& problem) {
  return problem.filter == Filter::kFull ? problem.grid.height * half_width(problem.grid.width) : 1;
}

// Tiling of mix_up, which is the last launch of a forward pass and rebuilds x in a backward pass.
class MixUpPlan {
 public:
  MixUpPlan() = default;  // of a backward pass that is given x
  // Throws std::invalid_argument where the device has too little shared memory for the grid.
  MixUpPlan(const Problem& problem, const Device& device);
  Kernel kernel(const Problem& problem, bool rebuild) const;
  // The up-projection as the kernel reads it, for the fold.
  static FoldMatrix up_matrix(const Problem& problem, const Parameters& params);
  // All parameters but x, out, u and f. `point`, `up`: the numbers of both weights in the fold.
  MixUpParams params(const Problem& problem, const FoldParams& fold, int point, int up,
                     const unsigned long long* seed) const;
  int shared(const Problem& problem) const;

 private:
  int warps_ = 0, pass_ = 0, ahead_ = 0, early_ = 0, prefetched_ = 0, blocks_ = 1;
};

class ForwardPlan {
 public:
  // Throws std::invalid_argument where the device has too little shared memory for the grid.
  ForwardPlan(const Problem& problem, const Device& device);
  const std::vector<Kernel>& kernels() const { return kernels_; }
  // Of one call, 256-byte aligned; the call needs no part of it afterwards.
  size_t workspace_bytes() const { return workspace_bytes_; }
  void run(const ForwardCall& call, const Launch& launch) const;

 private:
  Problem problem_;
  std::vector<Kernel> kernels_;
  size_t workspace_bytes_ = 0;
  int down_warps_ = 0, down_stages_ = 0;
  MixUpPlan mix_up_;
  SpectralPlan spectral_;

  struct Arrays;
  void arrange(Arrays& arrays, const ForwardCall& call, Workspace& workspace) const;
};

class BackwardPlan {
 public:
  // `need_input`, `need_params`: whether dx and the parameters' gradients are wanted. `rebuild`:
  // whether the calls have the forward pass's output, from which x is made first.
  BackwardPlan(const Problem& problem, const Device& device, bool need_input, bool need_params,
               bool rebuild = false);
  const std::vector<Kernel>& kernels() const { return kernels_; }
  size_t workspace_bytes() const { return workspace_bytes_; }
  void run(const BackwardCall& call, const Launch& launch) const;

 private:
  // Warps of a block, channels convolved at a time, bytes of a token of dout that are on their way
  // (contract), shared memory, blocks that share a multiprocessor.
  struct Tiling {
    int warps = 0, pass = 0, ahead = 0, shared = 0, blocks = 0;
  };
  template <class Shared>
  Tiling tiling(const Device& device, Shared shared) const;

  Problem problem_;
  bool need_input_, need_params_, rebuild_, correlates_;
  std::vector<Kernel> kernels_;
  size_t workspace_bytes_ = 0;
  Tiling contract_, mix_back_;
  MixUpPlan mix_up_;
  SpectralPlan spectral_;
  int each_ = 1, prefetched_ = 0;  // of contract: tiles of a block, features for the L2 cache
  int expand_tokens_ = 0, expand_stages_ = 0, expand_shared_ = 0, expand_each_ = 1;

  struct Arrays;
  void arrange(Arrays& arrays, const BackwardCall& call, Workspace& workspace) const;
};

}  // namespace fastht::cuda
