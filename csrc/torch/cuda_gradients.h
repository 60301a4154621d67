// The gradients of the fork's ops, and how they lie.
#pragma once

#include "../kernels/cuda/positions.h"
#include "cuda_places.h"
#include "tensors.h"

namespace fastmtl {

// As `column_of`, of a dtype that has kernels.
inline TensorColumn narrow_column_of(const OptionalTensors& tensors, const char* name) {
  TensorColumn column = column_of(tensors, name);
  STD_TORCH_CHECK(column.like().scalar_type() != ScalarType::Double, name,
                  ": expected float32, bfloat16 or float16, got float64");
  return column;
}

inline TensorColumn gradients_of(const OptionalTensors& grads) {
  STD_TORCH_CHECK(grads.size() <= cuda::kMaxTasks, "grads: expected at most ", cuda::kMaxTasks, " tensors, got ",
                  grads.size());
  return narrow_column_of(grads, "grads");
}

inline Places places_of(const Tensor& total, const TensorColumn& column, bool by_sample) {
  std::vector<const Tensor*> tensors{&total};
  for (int64_t k = 0; k < column.tasks(); ++k) {
    if (column.at(k) != nullptr) tensors.push_back(column.at(k));
  }
  return Places(tensors, by_sample);
}

}  // namespace fastmtl
