// The kernel of the fork: sum over tasks and the moments M and Q, with one read of each gradient.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"
#include "layout.h"
#include "work.h"

namespace fastmtl {

struct MomentsProblem {
  std::vector<View> grads;  // T of them, missing ones included; at least one is there
  View total;
  int64_t samples = 0, positions = 0;
};

// total = sum_k grad_k;  M[i * T + j] = <sum_b grad_i, sum_b grad_j>;  Q[i * T + j] = B * sum_b <grad_ib, grad_jb>
template <class S>
void sum_moments(const Isa& isa, const Executor& parallel, const MomentsProblem& problem, double* M, double* Q);

}  // namespace fastmtl
