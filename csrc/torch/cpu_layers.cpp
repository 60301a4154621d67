// What the moments of layers are made of, beside torch's matrix products.
#include "../kernels/cpu/products.h"
#include "cpu_views.h"
#include "statistics.h"

namespace fastmtl {
namespace {

Tensor cross_gram_op(const OptionalTensors& left, const OptionalTensors& right) {
  const TensorColumn rows = column_of(left, "left"), columns = column_of(right, "right");
  STD_TORCH_CHECK(equal(rows.like().sizes(), columns.like().sizes()), "right: expected shape ",
                  text(rows.like().sizes()), ", got ", text(columns.like().sizes()));
  const bool wide = rows.like().scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(wide == (columns.like().scalar_type() == ScalarType::Double),
                  "right: expected float64 where left is, got ", text(rows.like().scalar_type()), " and ",
                  text(columns.like().scalar_type()));
  const Order order = order_of(columns.leading(), false);
  const Isa& chosen = isa();
  std::vector<double> result(left.size() * right.size());
  with_type(rows.like(), [&](auto zero) {
    cross_gram<decltype(zero)>(chosen, torch_threads(), views_of(rows, order), views_of(columns, order), result.data());
  });
  return statistics(rows.like(), {static_cast<int64_t>(left.size()), static_cast<int64_t>(right.size())}, result);
}

Tensor sample_gram_op(const OptionalTensors& grads, const Tensor& weights) {
  const TensorColumn column = column_of(grads, "grads");
  STD_TORCH_CHECK(column.like().dim() >= 1, "grads: expected a batch dimension, got shape []");
  check_weights(weights, column.like().size(0));
  const int64_t tasks = grads.size();
  const Order order = order_of(column.leading(), true);
  const Isa& chosen = isa();
  std::vector<double> result(tasks * tasks);
  with_type(column.like(), [&](auto zero) {
    using S = decltype(zero);
    sample_gram<S>(chosen, torch_threads(), views_of(column, order), order.samples(), weights_as<S>(weights).data(),
                   result.data());
  });
  return statistics(column.like(), {tasks, tasks}, result);
}

}  // namespace
}  // namespace fastmtl

// The same schemas as contract.SCHEMAS: a test compares them.
STABLE_TORCH_LIBRARY_FRAGMENT(fastmtl_cpp, library) {
  library.def("cross_gram(Tensor?[] left, Tensor?[] right) -> Tensor");
  library.def("sample_gram(Tensor?[] grads, Tensor weights) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastmtl_cpp, CPU, library) {
  library.impl("cross_gram", TORCH_BOX(&fastmtl::cross_gram_op));
  library.impl("sample_gram", TORCH_BOX(&fastmtl::sample_gram_op));
}
