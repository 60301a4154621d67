// Statistics and sums of lists: T gradients of N tensors each.
#include <deque>

#include "../kernels/cuda/lists.h"
#include "cuda_call.h"
#include "statistics.h"

namespace fastmtl {
namespace {

void check_dtype(const Tensor& tensor, const Label& label) {
  STD_TORCH_CHECK(dtype_of_tensor(tensor, label) != Dtype::f64, label.text(),
                  ": expected float32, bfloat16 or float16, got float64");
}

void check_tasks(int64_t tasks) {
  STD_TORCH_CHECK(tasks <= cuda::kMaxTasks, "tasks: expected at most ", cuda::kMaxTasks, ", got ", tasks);
}

// Whether a tensor of the shape of a dense one fills memory in the same order.
bool lies_as(const Tensor& tensor, const Tensor& dense) {
  if (tensor.is_contiguous() && dense.is_contiguous()) return true;
  for (int64_t d = 0; d < dense.dim(); ++d) {
    if (dense.size(d) != 1 && tensor.stride(d) != dense.stride(d)) return false;
  }
  return true;
}

char* data_of(const Tensor& tensor) { return static_cast<char*>(const_cast<void*>(tensor.const_data_ptr())); }

// Columns on their way into as few launches as can be.
class Lists {
 public:
  explicit Lists(int64_t tasks) : tasks_(static_cast<int>(tasks)) {}

  // A column, and where its sum goes; copies of what does not lie as the leading tensor, which is the sum where there
  // is one.
  void add(const TensorColumn& column, const Tensor* out = nullptr) {
    const Tensor& given = out == nullptr ? column.leading() : *out;
    if (given.numel() == 0) return;
    const bool dense = is_dense(given);
    const Tensor& leading = dense ? given : hold(torch::stable::new_empty(given, given.sizes()));
    std::vector<char*> pointers;
    pointers.reserve(tasks_ + 1);
    for (int k = 0; k < tasks_; ++k) {
      const Tensor* tensor = column.at(k);
      pointers.push_back(tensor == nullptr           ? nullptr
                         : lies_as(*tensor, leading) ? data_of(*tensor)
                                                     : data_of(copy_of(*tensor, leading)));
    }
    if (out != nullptr) {
      pointers.push_back(data_of(leading));
      if (!dense) later_.emplace_back(*out, leading);
    }
    add(dtype_of_tensor(leading, ""), leading.numel(), pointers);
  }

  const std::vector<cuda::Columns>& launches() const { return launches_; }

  // Sums that could not be written where they belong are copied there.
  void finish() const {
    for (const auto& [out, sum] : later_) {
      Tensor target = out;
      torch::stable::copy_(target, sum);
    }
  }

 private:
  const Tensor& hold(Tensor tensor) { return held_.emplace_back(std::move(tensor)); }

  const Tensor& copy_of(const Tensor& tensor, const Tensor& leading) {
    Tensor copy = torch::stable::empty_like(leading);
    torch::stable::copy_(copy, tensor);
    return hold(std::move(copy));
  }

  void add(Dtype dtype, int64_t length, std::vector<char*>& pointers) {
    const int64_t size = size_of(dtype), width = 16 / size;
    const bool aligned = std::all_of(pointers.begin(), pointers.end(), [](const char* pointer) {
      return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
    });
    // What is left of a long run after its last group of 16 bytes goes with the single numbers.
    const int64_t grouped = !aligned || (length % width != 0 && length < kLong) ? 0 : length - length % width;
    if (grouped > 0) insert(dtype, true, grouped, pointers);
    if (grouped == length) return;
    for (char*& pointer : pointers) {
      if (pointer != nullptr) pointer += grouped * size;
    }
    insert(dtype, false, length - grouped, pointers);
  }

  void insert(Dtype dtype, bool vector, int64_t length, const std::vector<char*>& pointers) {
    const int row = static_cast<int>(pointers.size());
    size_t& open = open_[static_cast<size_t>(dtype)][vector];
    if (open == 0 || launches_[open - 1].count == std::min(cuda::kMostColumns, cuda::kMostPointers / row)) {
      launches_.push_back({tasks_, 0, row, dtype, vector, {}, {}, {}});
      open = launches_.size();
    }
    cuda::Columns& columns = launches_[open - 1];
    columns.lengths[columns.count] = length;
    std::copy(pointers.begin(), pointers.end(), columns.pointers + columns.count * row);
    ++columns.count;
  }

  static constexpr int64_t kLong = 4096;

  int tasks_;
  std::vector<cuda::Columns> launches_;
  size_t open_[4][2] = {};  // by dtype, and whether in groups: the launch that takes more columns, and 1; 0: none
  std::deque<Tensor> held_;
  std::vector<std::pair<Tensor, Tensor>> later_;
};

using Statistic = const char*(const cuda::Device&, cuda::ListStatistic&);

// `numbers`: of the workspace, at most.
Tensor run_statistic(const OptionalTensors& tensors, int64_t tasks, std::vector<int64_t> shape, Statistic* measure,
                     int64_t (*numbers)(const cuda::Device&, int), const char* op) {
  const std::vector<TensorColumn> columns = columns_of(tensors, tasks, "tensors");
  Lists lists(tasks);
  const Tensor* like = nullptr;
  for (const TensorColumn& column : columns) {
    if (column.empty()) continue;
    check_dtype(column.like(), "tensors");
    if (like == nullptr) like = &column.like();
  }
  STD_TORCH_CHECK(like != nullptr, "tensors: expected at least one tensor, got none");
  const Call call(*like);
  for (const TensorColumn& column : columns) {
    if (!column.empty()) lists.add(column);
  }
  if (lists.launches().empty()) return torch::stable::new_zeros(*like, shape, ScalarType::Float);
  const Tensor result = torch::stable::new_empty(*like, shape, ScalarType::Float);
  const Workspace workspace = workspace_for(call, result, numbers(call.device(), static_cast<int>(tasks)));
  cuda::ListStatistic problem{
      {}, {workspace.numbers, workspace.tickets, 0, 0}, static_cast<float*>(result.mutable_data_ptr()), false};
  for (const cuda::Columns& launch : lists.launches()) {
    problem.columns = launch;
    check_launch(measure(call.device(), problem), op);
    problem.accumulate = true;
  }
  return result;
}

Tensor gram_op(const OptionalTensors& tensors, int64_t tasks) {
  check_tasks(tasks);
  return run_statistic(tensors, tasks, {tasks, tasks}, cuda::gram, cuda::gram_numbers, "gram");
}

Tensor squared_norms_op(const OptionalTensors& tensors, int64_t tasks) {
  check_tasks(tasks);
  return run_statistic(tensors, tasks, {tasks}, cuda::squared_norms, cuda::squared_norms_numbers, "squared_norms");
}

void run_weighted_sum(const std::vector<TensorColumn>& columns, int64_t tasks, const Tensor& weights,
                      const std::vector<Tensor>& out) {
  const Call call(columns[0].like());
  Lists lists(tasks);
  for (size_t n = 0; n < columns.size(); ++n) lists.add(columns[n], &out[n]);
  for (const cuda::Columns& launch : lists.launches()) {
    cuda::WeightedSum problem{
        launch, {weights.const_data_ptr(), weights.stride(0), weights.scalar_type() == ScalarType::Double}};
    check_launch(cuda::weighted_sum(call.device(), problem), "weighted_sum");
  }
  lists.finish();
}

std::vector<Tensor> weighted_sum_op(const OptionalTensors& tensors, int64_t tasks, const Tensor& weights) {
  check_tasks(tasks);
  const std::vector<TensorColumn> columns = columns_of(tensors, tasks, "tensors");
  check_weights(weights, tasks);
  std::vector<Tensor> out;
  out.reserve(columns.size());
  for (size_t n = 0; n < columns.size(); ++n) {
    STD_TORCH_CHECK(!columns[n].empty(), "tensors: expected at least one task's tensor ", n, ", got none");
    check_dtype(columns[n].like(), "tensors");
    out.push_back(columns[n].empty_total());
  }
  run_weighted_sum(columns, tasks, weights, out);
  return out;
}

void weighted_sum_out_op(const OptionalTensors& tensors, int64_t tasks, const Tensor& weights,
                         const std::vector<Tensor>& out) {
  check_out(tensors, tasks, out);
  check_tasks(tasks);
  for (size_t n = 0; n < out.size(); ++n) check_dtype(out[n], Label("out", n));
  if (out.empty()) return;
  const std::vector<TensorColumn> columns = columns_of(tensors, tasks, "tensors", &out);
  check_weights(weights, tasks);
  run_weighted_sum(columns, tasks, weights, out);
}

}  // namespace
}  // namespace fastmtl

// The same schemas as contract.SCHEMAS: a test compares them.
STABLE_TORCH_LIBRARY_FRAGMENT(fastmtl_cuda, library) {
  library.def("gram(Tensor?[] tensors, int tasks) -> Tensor");
  library.def("squared_norms(Tensor?[] tensors, int tasks) -> Tensor");
  library.def("weighted_sum(Tensor?[] tensors, int tasks, Tensor weights) -> Tensor[]");
  library.def("weighted_sum_out(Tensor?[] tensors, int tasks, Tensor weights, Tensor(a!)[] out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastmtl_cuda, FASTMTL_DISPATCH, library) {
  library.impl("gram", TORCH_BOX(&fastmtl::gram_op));
  library.impl("squared_norms", TORCH_BOX(&fastmtl::squared_norms_op));
  library.impl("weighted_sum", TORCH_BOX(&fastmtl::weighted_sum_op));
  library.impl("weighted_sum_out", TORCH_BOX(&fastmtl::weighted_sum_out_op));
}
