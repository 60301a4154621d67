// What the moments of layers are made of, beside torch's matrix products.
#include "../kernels/cuda/products.h"
#include "cuda_call.h"
#include "cuda_gradients.h"
#include "statistics.h"

namespace fastmtl {
namespace {

// In whose order of memory positions are walked over: that of a dense tensor, or of memory that is there for its order.
Tensor leading_of(const TensorColumn& first, const TensorColumn& second) {
  for (const TensorColumn* column : {&first, &second}) {
    if (is_dense(column->leading())) return column->leading();
  }
  return torch::stable::new_empty(first.like(), first.like().sizes());
}

void add(const TensorColumn& column, int64_t first, int64_t end, std::vector<const Tensor*>& tensors) {
  for (int64_t k = first; k < end; ++k) {
    if (column.at(k) != nullptr) tensors.push_back(column.at(k));
  }
}

cuda::Side side_of(const TensorColumn& column, int64_t first, int64_t end, const Places& places, size_t& next,
                   cuda::Place* to) {
  cuda::Side side{static_cast<int>(end - first), dtype_of_tensor(column.like(), ""), 0};
  for (int64_t k = first; k < end; ++k) {
    if (column.at(k) == nullptr) continue;
    to[k - first] = places.place(next++);
    side.present |= uint64_t{1} << (k - first);
  }
  return side;
}

Tensor cross_gram_op(const OptionalTensors& left, const OptionalTensors& right) {
  const TensorColumn rows = narrow_column_of(left, "left"), columns = narrow_column_of(right, "right");
  STD_TORCH_CHECK(equal(rows.like().sizes(), columns.like().sizes()), "right: expected shape ",
                  text(rows.like().sizes()), ", got ", text(columns.like().sizes()));
  const Call call(rows.like());
  const int64_t height = left.size(), width = right.size();
  const Tensor result = torch::stable::new_empty(rows.like(), {height, width}, ScalarType::Float);
  const Tensor leading = leading_of(columns, rows);
  const Workspace workspace = workspace_for(call, result, cuda::products_numbers(call.device()));
  for (int64_t i = 0; i < height; i += cuda::kMostRows) {
    for (int64_t j = 0; j < width; j += cuda::kMostRows) {
      const int64_t i_end = std::min(height, i + cuda::kMostRows), j_end = std::min(width, j + cuda::kMostRows);
      std::vector<const Tensor*> tensors{&leading};
      add(rows, i, i_end, tensors);
      add(columns, j, j_end, tensors);
      const Places places(tensors, false);
      cuda::CrossGram problem{};
      problem.positions = places.positions();
      problem.vector = places.vector();
      size_t next = 1;
      problem.left = side_of(rows, i, i_end, places, next, problem.rows);
      problem.right = side_of(columns, j, j_end, places, next, problem.columns);
      problem.finish = {workspace.numbers, workspace.tickets, 0, 0};
      problem.result = static_cast<float*>(result.mutable_data_ptr()) + i * width + j;
      problem.stride = width;
      check_launch(cuda::cross_gram(call.device(), problem), "cross_gram");
    }
  }
  return result;
}

Tensor sample_gram_op(const OptionalTensors& grads, const Tensor& weights) {
  const TensorColumn column = narrow_column_of(grads, "grads");
  const int64_t tasks = grads.size();
  STD_TORCH_CHECK(tasks <= cuda::kMaxTasks, "grads: expected at most ", cuda::kMaxTasks, " tensors, got ", tasks);
  STD_TORCH_CHECK(column.like().dim() >= 1, "grads: expected a batch dimension, got shape []");
  check_weights(weights, column.like().size(0));
  const Call call(column.like());
  const Tensor result = torch::stable::new_empty(column.like(), {tasks, tasks}, ScalarType::Float);
  const Tensor leading = leading_of(column, column);
  std::vector<const Tensor*> tensors{&leading};
  add(column, 0, tasks, tensors);
  const Places places(tensors, true);
  cuda::SampleGram problem{};
  problem.positions = places.positions();
  problem.samples = column.like().size(0);
  problem.vector = places.vector();
  size_t next = 1;
  problem.grads = side_of(column, 0, tasks, places, next, problem.places);
  problem.weights = {weights.const_data_ptr(), weights.stride(0), weights.scalar_type() == ScalarType::Double};
  const Workspace workspace = workspace_for(call, result, cuda::products_numbers(call.device()));
  problem.finish = {workspace.numbers, workspace.tickets, 0, 0};
  problem.result = static_cast<float*>(result.mutable_data_ptr());
  check_launch(cuda::sample_gram(call.device(), problem), "sample_gram");
  return result;
}

}  // namespace
}  // namespace fastmtl

// The same schemas as contract.SCHEMAS: a test compares them.
STABLE_TORCH_LIBRARY_FRAGMENT(fastmtl_cuda, library) {
  library.def("cross_gram(Tensor?[] left, Tensor?[] right) -> Tensor");
  library.def("sample_gram(Tensor?[] grads, Tensor weights) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastmtl_cuda, FASTMTL_DISPATCH, library) {
  library.impl("cross_gram", TORCH_BOX(&fastmtl::cross_gram_op));
  library.impl("sample_gram", TORCH_BOX(&fastmtl::sample_gram_op));
}
