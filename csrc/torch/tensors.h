// Tensors of torch's stable ABI, with checks that name the argument; the same for all devices.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../kernels/dtype.h"

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

// Whether a tensor is where this library's kernels run; each library has its own.
void check_device(const Tensor& tensor, const Label& label);

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
      check_device(*tensor, label);
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

  // The first dense tensor, any where none is dense: the order of its memory is that in which all are walked over.
  const Tensor& leading() const { return dense_ != nullptr ? *dense_ : *like_; }
  int64_t tasks() const { return tasks_; }

  // Null: the gradient is missing.
  const Tensor* at(int64_t k) const {
    const std::optional<Tensor>& tensor = tensors_[first_ + k * step_];
    return tensor.has_value() ? &*tensor : nullptr;
  }

 private:
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

// The tensors as one column; at least one is there.
inline TensorColumn column_of(const OptionalTensors& tensors, const char* name) {
  const int64_t count = tensors.size();
  TensorColumn column = columns_of(tensors, std::max<int64_t>(count, 1), name)[0];
  STD_TORCH_CHECK(!column.empty(), name, ": expected at least one tensor, got none");
  return column;
}

// Calls with a value of the type that arithmetic with `tensor` uses.
template <class Call>
auto with_type(const Tensor& tensor, const Call& call) {
  return tensor.scalar_type() == ScalarType::Double ? call(double{}) : call(float{});
}

inline void check(const Tensor& tensor, const char* name, ScalarType type, std::vector<int64_t> shape) {
  check_device(tensor, name);
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
