// The gradients of the fork's ops, and how they lie.
#pragma once

#include "../kernels/cuda/positions.h"
#include "cuda_places.h"
#include "tensors.h"

namespace fastmtl {

inline TensorColumn gradients_of(const OptionalTensors& grads) {
  const int64_t tasks = grads.size();
  STD_TORCH_CHECK(tasks <= cuda::kMaxTasks, "grads: expected at most ", cuda::kMaxTasks, " tensors, got ", tasks);
  TensorColumn column = columns_of(grads, std::max<int64_t>(tasks, 1), "grads")[0];
  STD_TORCH_CHECK(!column.empty(), "grads: expected at least one tensor, got none");
  STD_TORCH_CHECK(column.like().scalar_type() != ScalarType::Double,
                  "grads: expected float32, bfloat16 or float16, got float64");
  return column;
}

inline Places places_of(const Tensor& total, const TensorColumn& column, bool by_sample) {
  std::vector<const Tensor*> tensors{&total};
  for (int64_t k = 0; k < column.tasks(); ++k) {
    if (column.at(k) != nullptr) tensors.push_back(column.at(k));
  }
  return Places(tensors, by_sample);
}

}  // namespace fastmtl
