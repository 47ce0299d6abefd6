// Refuses calls whose sizes or pointers do not fit, before any memory is touched.
#pragma once

#include "cpu/problem.h"

namespace fastht::cpu {

// Throw std::invalid_argument with the name of what is wrong.
void check(const ForwardCall& call);
void check(const BackwardCall& call);

}  // namespace fastht::cpu
