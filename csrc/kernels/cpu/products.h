// Products that the moments of layers are made of: between two lists of tensors, and weighted by sample.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"
#include "lists.h"
#include "work.h"

namespace fastmtl {

// result[i * right.tensors.size() + j] = <left_i, right_j>; both have the same positions, each a dtype of its own.
template <class S>
void cross_gram(const Isa& isa, const Executor& parallel, const Column& left, const Column& right, double* result);

// Views of [samples, positions]; result[i * T + j] = sum_b weights[b] * <gradient_ib, gradient_jb>
template <class S>
void sample_gram(const Isa& isa, const Executor& parallel, const Column& column, int64_t samples, const S* weights,
                 double* result);

}  // namespace fastmtl
