// Statistics as tensors, and small vectors of weights as arrays.
#pragma once

#include "tensors.h"

namespace fastmtl {

// Statistics leave the kernels in double.
inline Tensor statistics(const Tensor& like, std::vector<int64_t> shape, const std::vector<double>& values) {
  const bool wide = like.scalar_type() == ScalarType::Double;
  Tensor result = torch::stable::new_empty(like, shape, wide ? ScalarType::Double : ScalarType::Float);
  if (wide) {
    std::copy(values.begin(), values.end(), static_cast<double*>(result.mutable_data_ptr()));
  } else {
    std::transform(values.begin(), values.end(), static_cast<float*>(result.mutable_data_ptr()),
                   [](double value) { return static_cast<float>(value); });
  }
  return result;
}

template <class S>
std::vector<S> weights_as(const Tensor& weights) {
  std::vector<S> values(weights.numel());
  const void* data = weights.const_data_ptr();
  for (size_t k = 0; k < values.size(); ++k) {
    const int64_t at = static_cast<int64_t>(k) * weights.stride(0);
    values[k] = static_cast<S>(weights.scalar_type() == ScalarType::Double ? static_cast<const double*>(data)[at]
                                                                           : static_cast<const float*>(data)[at]);
  }
  return values;
}

inline void check_weights(const Tensor& weights, int64_t count) {
  check_device(weights, "weights");
  STD_TORCH_CHECK(weights.dim() == 1 && weights.numel() == count, "weights: expected shape [", count, "], got ",
                  text(weights.sizes()));
  STD_TORCH_CHECK(weights.scalar_type() == ScalarType::Float || weights.scalar_type() == ScalarType::Double,
                  "weights: expected float32 or float64, got ", text(weights.scalar_type()));
}

// Where weighted sums go.
inline void check_out(const OptionalTensors& tensors, int64_t tasks, const std::vector<Tensor>& out) {
  STD_TORCH_CHECK(tasks >= 1 && tensors.size() == out.size() * tasks, "out: expected ",
                  tensors.size() / std::max<int64_t>(tasks, 1), " tensors, got ", out.size());
  for (size_t n = 0; n < out.size(); ++n) {
    const Label label("out", n);
    check_device(out[n], label);
    dtype_of_tensor(out[n], label);
    for (int64_t d = 0; d < out[n].dim(); ++d)
      STD_TORCH_CHECK(out[n].stride(d) != 0 || out[n].size(d) <= 1, label.text(),
                      ": expected memory of its own for every element, got an expanded tensor");
  }
}

}  // namespace fastmtl
