// From tensors to the views of the CPU kernels.
#pragma once

#include "../kernels/cpu/isa.h"
#include "../kernels/cpu/layout.h"
#include "../kernels/cpu/lists.h"
#include "../kernels/cpu/work.h"
#include "tensors.h"

namespace fastmtl {

// Never null: tensors without elements have no memory, but they are there.
inline const void* data_of(const Tensor& tensor) {
  static const double nothing = 0;
  const void* data = tensor.const_data_ptr();
  return data == nullptr ? &nothing : data;
}

inline Order order_of(const Tensor& leading, bool samples) {
  return Order(leading.sizes().data(), leading.strides().data(), leading.dim(), samples);
}

inline View view_of(const Tensor& tensor, const Order& order) {
  return order.view(data_of(tensor), dtype_of_tensor(tensor, ""), tensor.strides().data());
}

inline Column views_of(const TensorColumn& tensors, const Order& order) {
  Column column;
  column.positions = order.positions();
  column.tensors.reserve(tensors.tasks());
  const Dtype dtype = dtype_of_tensor(tensors.like(), "");
  for (int64_t k = 0; k < tensors.tasks(); ++k) {
    const Tensor* tensor = tensors.at(k);
    column.tensors.push_back(tensor == nullptr ? View{}
                                               : order.view(data_of(*tensor), dtype, tensor->strides().data()));
  }
  return column;
}

inline const Isa& isa() {
  const char* error = nullptr;
  const Isa* selected = select_isa(&error);
  STD_TORCH_CHECK(selected != nullptr, error);
  return *selected;
}

inline Executor torch_threads() {
  return {[](int64_t units, void (*body)(void*, int64_t, int64_t), void* context) {
    torch::stable::parallel_for(0, units, 1, [=](int64_t begin, int64_t end) { body(context, begin, end); });
  }};
}

}  // namespace fastmtl
