// Compiled once for each instruction set; FASTHT_PATH is its name.

#include "cpu/backward.h"
#include "cpu/forward.h"

namespace fastht::cpu {
namespace {

template <class Pass>
void run(Pass&& pass) {
  Layout measure;
  pass.lay_out(measure);
  const Scratch scratch(measure.size);
  Layout memory{scratch.data()};
  pass.lay_out(memory);
  pass.run();
}

}  // namespace

#define FASTHT_NAME2(path, pass) path##_##pass
#define FASTHT_NAME(path, pass) FASTHT_NAME2(path, pass)

void FASTHT_NAME(FASTHT_PATH, forward)(const ForwardCall& call) {
  if (call.x.dtype == DType::kFloat32)
    run(Forward<float>(call));
  else
    run(Forward<BFloat16>(call));
}

void FASTHT_NAME(FASTHT_PATH, backward)(const BackwardCall& call) {
  if (call.x.dtype == DType::kFloat32)
    run(Backward<float>(call));
  else
    run(Backward<BFloat16>(call));
}

}  // namespace fastht::cpu
