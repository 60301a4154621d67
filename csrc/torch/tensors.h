// From the tensors of torch's stable ABI to the views of the kernels, with checks that name the argument.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../kernels/cpu/isa.h"
#include "../kernels/cpu/layout.h"
#include "../kernels/cpu/lists.h"
#include "../kernels/cpu/work.h"

namespace fastmtl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensors = std::vector<std::optional<Tensor>>;
using Shape = torch::headeronly::IntHeaderOnlyArrayRef;

inline std::string text(Shape shape) {
  std::string result = "[";
  for (size_t i = 0; i < shape.size(); ++i) result += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return result + "]";
}

inline const char* text(ScalarType type) { return torch::headeronly::toString(type); }

inline bool equal(Shape a, Shape b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

// Names an argument, or one tensor of a list, in messages. Its text is built for these alone: lists are long.
struct Label {
  const char* name;
  int64_t index = -1;

  Label(const char* argument, int64_t place = -1) : name(argument), index(place) {}
  std::string text() const { return index < 0 ? name : std::string(name) + "[" + std::to_string(index) + "]"; }
};

inline Dtype dtype_of_tensor(const Tensor& tensor, const Label& label) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::Double:
      return Dtype::f64;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Half:
      return Dtype::f16;
    default:
      STD_TORCH_CHECK(false, label.text(), ": expected float32, bfloat16, float16 or float64, got ",
                      text(tensor.scalar_type()));
  }
  return Dtype::f32;
}

inline void check_cpu(const Tensor& tensor, const Label& label) {
  STD_TORCH_CHECK(tensor.is_cpu(), label.text(), ": expected a tensor on the cpu, got one on another device");
}

// As contract.is_dense: the elements fill one block of memory, in any order of dimensions.
inline bool is_dense(const Tensor& tensor) {
  if (tensor.numel() > 0 && tensor.is_contiguous()) return true;  // the common case, without the sorting
  std::vector<std::pair<int64_t, int64_t>> dimensions;
  for (int64_t d = 0; d < tensor.dim(); ++d) dimensions.emplace_back(tensor.stride(d), tensor.size(d));
  std::sort(dimensions.begin(), dimensions.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dimensions) {
    if (size == 1) continue;
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// The same tensor of every task. At least one is there, unless `out` gives shape and dtype.
class TensorColumn {
 public:
  TensorColumn(const OptionalTensors& tensors, int64_t first, int64_t step, int64_t tasks, const char* name,
               const Tensor* out = nullptr)
      : tensors_(tensors), first_(first), step_(step), tasks_(tasks), like_(out) {
    // Asked for once: every question to a tensor is a call into torch, and lists are long.
    ScalarType type{};
    Shape sizes;
    const auto take = [&](const Tensor& like) {
      type = like.scalar_type();
      sizes = like.sizes();
    };
    if (like_ != nullptr) take(*like_);
    for (int64_t k = 0; k < tasks; ++k) {
      const Tensor* tensor = at(k);
      if (tensor == nullptr) continue;
      const Label label(name, first + k * step);
      check_cpu(*tensor, label);
      if (like_ == nullptr) {
        dtype_of_tensor(*tensor, label);
        like_ = tensor;
        take(*tensor);
      } else if (tensor->scalar_type() != type) {
        dtype_of_tensor(*tensor, label);
        STD_TORCH_CHECK(false, label.text(), ": expected dtype ", text(type), ", got ", text(tensor->scalar_type()));
      }
      STD_TORCH_CHECK(equal(tensor->sizes(), sizes), label.text(), ": expected shape ", text(sizes), ", got ",
                      text(tensor->sizes()));
      if (dense_ == nullptr && is_dense(*tensor)) dense_ = tensor;
    }
  }

  bool empty() const { return like_ == nullptr; }
  const Tensor& like() const { return *like_; }

  // As contract.empty_total.
  Tensor empty_total() const {
    if (dense_ != nullptr) return torch::stable::empty_like(*dense_);
    return torch::stable::new_empty(*like_, like_->sizes());
  }

  // Views in the order of the memory of `leading` (default: the first dense tensor).
  Column views(const Order& order) const {
    Column column;
    column.positions = order.positions();
    column.tensors.reserve(tasks_);
    const Dtype dtype = dtype_of_tensor(*like_, "");
    for (int64_t k = 0; k < tasks_; ++k) {
      const Tensor* tensor = at(k);
      column.tensors.push_back(tensor == nullptr ? View{}
                                                 : order.view(data_of(*tensor), dtype, tensor->strides().data()));
    }
    return column;
  }

  Order order(bool samples = false) const { return order_of(dense_ != nullptr ? *dense_ : *like_, samples); }

  static Order order_of(const Tensor& leading, bool samples) {
    return Order(leading.sizes().data(), leading.strides().data(), leading.dim(), samples);
  }

  static View view_of(const Tensor& tensor, const Order& order) {
    return order.view(data_of(tensor), dtype_of_tensor(tensor, ""), tensor.strides().data());
  }

 private:
  // Never null: tensors without elements have no memory, but they are there.
  static const void* data_of(const Tensor& tensor) {
    static const double nothing = 0;
    const void* data = tensor.const_data_ptr();
    return data == nullptr ? &nothing : data;
  }
  const Tensor* at(int64_t k) const {
    const std::optional<Tensor>& tensor = tensors_[first_ + k * step_];
    return tensor.has_value() ? &*tensor : nullptr;
  }

  const OptionalTensors& tensors_;
  int64_t first_, step_, tasks_;
  const Tensor* like_;
  const Tensor* dense_ = nullptr;
};

// Task-major list to columns, see contract.columns.
inline std::vector<TensorColumn> columns_of(const OptionalTensors& tensors, int64_t tasks, const char* name,
                                            const std::vector<Tensor>* out = nullptr) {
  const int64_t count = tensors.size();
  STD_TORCH_CHECK(tasks >= 1, "tasks: expected at least 1, got ", tasks);
  STD_TORCH_CHECK(count > 0 && count % tasks == 0, name, ": expected a multiple of tasks = ", tasks, " tensors, got ",
                  count);
  const int64_t per_task = count / tasks;
  std::vector<TensorColumn> columns;
  columns.reserve(per_task);
  for (int64_t n = 0; n < per_task; ++n)
    columns.emplace_back(tensors, n, per_task, tasks, name, out == nullptr ? nullptr : &(*out)[n]);
  return columns;
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

// Calls with a value of the type that arithmetic with `tensor` uses.
template <class Call>
auto with_type(const Tensor& tensor, const Call& call) {
  return tensor.scalar_type() == ScalarType::Double ? call(double{}) : call(float{});
}

inline void check(const Tensor& tensor, const char* name, ScalarType type, std::vector<int64_t> shape) {
  check_cpu(tensor, name);
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, ": expected ", text(type), ", got ", text(tensor.scalar_type()));
  STD_TORCH_CHECK(equal(tensor.sizes(), shape), name, ": expected shape ", text(Shape(shape)), ", got ",
                  text(tensor.sizes()));
}

// A state tensor: changed in place, so it must be plain memory.
template <class T>
T* state(const Tensor& tensor, const char* name, ScalarType type, std::vector<int64_t> shape) {
  check(tensor, name, type, std::move(shape));
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace fastmtl
