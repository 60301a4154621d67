// Sums and statistics of gradients, and weighted sums.
#include "../kernels/cpu/moments.h"
#include "cpu_views.h"
#include "statistics.h"

namespace fastmtl {
namespace {

std::tuple<Tensor, Tensor, Tensor> sum_moments_op(const OptionalTensors& grads) {
  const int64_t tasks = grads.size();
  const TensorColumn column = column_of(grads, "grads");
  STD_TORCH_CHECK(column.like().dim() >= 1, "grads: expected a batch dimension, got shape []");
  const Isa& chosen = isa();
  const Tensor total = column.empty_total();
  const Order order = order_of(total, true);
  const MomentsProblem problem{views_of(column, order).tensors, view_of(total, order), order.samples(),
                               order.positions()};
  std::vector<double> M(tasks * tasks), Q(tasks * tasks);
  with_type(total,
            [&](auto zero) { sum_moments<decltype(zero)>(chosen, torch_threads(), problem, M.data(), Q.data()); });
  return {total, statistics(total, {tasks, tasks}, M), statistics(total, {tasks, tasks}, Q)};
}

std::tuple<Tensor, Tensor> sum_norms_op(const OptionalTensors& grads) {
  const int64_t tasks = grads.size();
  const TensorColumn column = column_of(grads, "grads");
  const Isa& chosen = isa();
  const Tensor total = column.empty_total();
  const Order order = order_of(total, false);
  std::vector<double> norms(tasks);
  with_type(total, [&](auto zero) {
    sum_norms<decltype(zero)>(chosen, torch_threads(), views_of(column, order), view_of(total, order), norms.data());
  });
  return {total, statistics(total, {tasks}, norms)};
}

// Columns for the statistics of lists. Those of dtypes other than float64 can be mixed.
std::pair<std::vector<Column>, const Tensor*> statistics_columns(const OptionalTensors& tensors, int64_t tasks) {
  const std::vector<TensorColumn> given = columns_of(tensors, tasks, "tensors");
  std::vector<Column> columns;
  columns.reserve(given.size());
  const Tensor* like = nullptr;
  for (const TensorColumn& column : given) {
    if (column.empty()) continue;
    if (like == nullptr) like = &column.like();
    const bool wide = column.like().scalar_type() == ScalarType::Double;
    STD_TORCH_CHECK(wide == (like->scalar_type() == ScalarType::Double),
                    "tensors: expected float64 for all or for none, got ", text(like->scalar_type()), " and ",
                    text(column.like().scalar_type()));
    columns.push_back(views_of(column, order_of(column.leading(), false)));
  }
  STD_TORCH_CHECK(like != nullptr, "tensors: expected at least one tensor, got none");
  return {std::move(columns), like};
}

Tensor gram_op(const OptionalTensors& tensors, int64_t tasks) {
  const auto [columns, like] = statistics_columns(tensors, tasks);
  const Isa& chosen = isa();
  std::vector<double> result(tasks * tasks);
  with_type(*like, [&, &columns = columns](auto zero) {
    gram<decltype(zero)>(chosen, torch_threads(), columns, tasks, result.data());
  });
  return statistics(*like, {tasks, tasks}, result);
}

Tensor squared_norms_op(const OptionalTensors& tensors, int64_t tasks) {
  const auto [columns, like] = statistics_columns(tensors, tasks);
  const Isa& chosen = isa();
  std::vector<double> result(tasks);
  with_type(*like, [&, &columns = columns](auto zero) {
    squared_norms<decltype(zero)>(chosen, torch_threads(), columns, tasks, result.data());
  });
  return statistics(*like, {tasks}, result);
}

void run_weighted_sum(const std::vector<TensorColumn>& columns, int64_t tasks, const Tensor& weights,
                      const std::vector<Tensor>& out) {
  const Isa& chosen = isa();
  std::vector<Column> views[2];  // float, double
  std::vector<View> targets[2];
  for (size_t n = 0; n < columns.size(); ++n) {
    const bool wide = out[n].scalar_type() == ScalarType::Double;
    const Order order = order_of(out[n], false);
    views[wide].push_back(views_of(columns[n], order));
    targets[wide].push_back(view_of(out[n], order));
  }
  weighted_sum<float>(chosen, torch_threads(), views[0], tasks, weights_as<float>(weights).data(), targets[0]);
  weighted_sum<double>(chosen, torch_threads(), views[1], tasks, weights_as<double>(weights).data(), targets[1]);
}

std::vector<Tensor> weighted_sum_op(const OptionalTensors& tensors, int64_t tasks, const Tensor& weights) {
  const std::vector<TensorColumn> columns = columns_of(tensors, tasks, "tensors");
  check_weights(weights, tasks);
  std::vector<Tensor> out;
  out.reserve(columns.size());
  for (size_t n = 0; n < columns.size(); ++n) {
    STD_TORCH_CHECK(!columns[n].empty(), "tensors: expected at least one task's tensor ", n, ", got none");
    out.push_back(columns[n].empty_total());
  }
  run_weighted_sum(columns, tasks, weights, out);
  return out;
}

void weighted_sum_out_op(const OptionalTensors& tensors, int64_t tasks, const Tensor& weights,
                         const std::vector<Tensor>& out) {
  check_out(tensors, tasks, out);
  if (out.empty()) return;
  const std::vector<TensorColumn> columns = columns_of(tensors, tasks, "tensors", &out);
  check_weights(weights, tasks);
  run_weighted_sum(columns, tasks, weights, out);
}

std::string selected_isa_op() { return isa().name; }

}  // namespace
}  // namespace fastmtl

// The same schemas as contract.SCHEMAS: a test compares them.
STABLE_TORCH_LIBRARY_FRAGMENT(fastmtl_cpp, library) {
  library.def("sum_moments(Tensor?[] grads) -> (Tensor total, Tensor M, Tensor Q)");
  library.def("sum_norms(Tensor?[] grads) -> (Tensor total, Tensor squared_norms)");
  library.def("gram(Tensor?[] tensors, int tasks) -> Tensor");
  library.def("squared_norms(Tensor?[] tensors, int tasks) -> Tensor");
  library.def("weighted_sum(Tensor?[] tensors, int tasks, Tensor weights) -> Tensor[]");
  library.def("weighted_sum_out(Tensor?[] tensors, int tasks, Tensor weights, Tensor(a!)[] out) -> ()");
  library.def("selected_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fastmtl_cpp, CPU, library) {
  library.impl("sum_moments", TORCH_BOX(&fastmtl::sum_moments_op));
  library.impl("sum_norms", TORCH_BOX(&fastmtl::sum_norms_op));
  library.impl("gram", TORCH_BOX(&fastmtl::gram_op));
  library.impl("squared_norms", TORCH_BOX(&fastmtl::squared_norms_op));
  library.impl("weighted_sum", TORCH_BOX(&fastmtl::weighted_sum_op));
  library.impl("weighted_sum_out", TORCH_BOX(&fastmtl::weighted_sum_out_op));
}

STABLE_TORCH_LIBRARY_IMPL(fastmtl_cpp, CompositeExplicitAutograd, library) {
  library.impl("selected_isa", TORCH_BOX(&fastmtl::selected_isa_op));
}
