// Kernels over T gradients, each a list of N tensors: one column of T tensors for each of the N.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"
#include "layout.h"
#include "work.h"

namespace fastmtl {

struct Column {
  std::vector<View> tensors;  // T of them, missing ones included
  int64_t positions = 0;
};

// result[i * tasks + j] = <gradient_i, gradient_j>
template <class S>
void gram(const Isa& isa, const Executor& parallel, const std::vector<Column>& columns, int64_t tasks, double* result);

// result[i] = <gradient_i, gradient_i>
template <class S>
void squared_norms(const Isa& isa, const Executor& parallel, const std::vector<Column>& columns, int64_t tasks,
                   double* result);

// out[n] = sum_k weights[k] * tensor_kn. out[n] may be one of the tensors of its own column.
template <class S>
void weighted_sum(const Isa& isa, const Executor& parallel, const std::vector<Column>& columns, int64_t tasks,
                  const S* weights, const std::vector<View>& out);

// out = sum_k tensor_k and result[k] = <tensor_k, tensor_k> of one column
template <class S>
void sum_norms(const Isa& isa, const Executor& parallel, const Column& column, const View& out, double* result);

}  // namespace fastmtl
