// What the moments of layers are made of, beside torch's matrix products.
#include <array>
#include <numeric>

#include "../kernels/cpu/chunks.h"
#include "../kernels/cpu/linear.h"
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

// <a_b, a_b> of each row of [B, in].
template <class S>
std::vector<S> squared_rows(const Isa& isa, const Tensor& given) {
  const Tensor rows = torch::stable::contiguous(given);
  const int64_t count = rows.size(0), length = rows.size(1);
  std::vector<S> squares(count);
  Buffer<double> lanes(isa.lanes);
  for (int64_t b = 0; b < count; ++b) {
    std::fill_n(static_cast<double*>(lanes), isa.lanes, 0.0);
    compute<S>(isa).square(static_cast<const S*>(data_of(rows)) + b * length, length, lanes);
    squares[b] = static_cast<S>(folded(lanes, isa.lanes));
  }
  return squares;
}

// Of two matrices. `torch::stable::matmul` asks what its arguments are first.
Tensor product(const Tensor& left, const Tensor& right) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(left), torch::stable::detail::from(right)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

void add(const std::vector<double>& part, std::vector<double>& sum) {
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
}

// Rows [first, first + count) of each gradient along a dimension.
OptionalTensors part_of(const OptionalTensors& grads, int64_t dim, int64_t first, int64_t count) {
  OptionalTensors parts;
  for (const std::optional<Tensor>& grad : grads) {
    if (!grad.has_value() || grad->size(dim) == count) {
      parts.push_back(grad);
      continue;
    }
    Tensor whole = *grad;
    parts.push_back(torch::stable::narrow(whole, dim, first, count));
  }
  return parts;
}

// The sum over samples of [B, outputs], empty where there is none; a few samples in S, then in double.
template <class S>
std::vector<double> sum_of_samples(const Isa& isa, const std::optional<Tensor>& grad) {
  constexpr int64_t kFew = 16;
  if (!grad.has_value()) return {};
  const int64_t batch = grad->size(0), count = grad->size(1), pitch = grad->stride(0), step = grad->stride(1);
  const S* data = static_cast<const S*>(data_of(*grad));
  std::vector<double> sums(count);
  std::vector<S> few(count);
  for (int64_t first = 0; first < batch; first += kFew) {
    const int64_t samples = std::min(kFew, batch - first);
    const S* rows[kFew];
    for (int64_t b = 0; b < samples; ++b) rows[b] = data + (first + b) * pitch;
    if (step == 1) {
      compute<S>(isa).sum(rows, samples, count, few.data(), {});
    } else {
      for (int64_t i = 0; i < count; ++i) {
        few[i] = rows[0][i * step];
        for (int64_t b = 1; b < samples; ++b) few[i] += rows[b][i * step];
      }
    }
    for (int64_t i = 0; i < count; ++i) sums[i] += few[i];
  }
  return sums;
}

// Adds the inner products of the gradients of the bias.
template <class S>
void add_bias(const OptionalTensors& grads, std::vector<double>& M) {
  const Isa& chosen = isa();
  std::vector<std::vector<double>> sums;
  for (const std::optional<Tensor>& grad : grads) sums.push_back(sum_of_samples<S>(chosen, grad));
  for (size_t k = 0; k < sums.size(); ++k) {
    for (size_t j = 0; j < sums.size(); ++j) {
      if (!sums[k].empty() && !sums[j].empty())
        M[k * sums.size() + j] += std::inner_product(sums[k].begin(), sums[k].end(), sums[j].begin(), 0.0);
    }
  }
}

template <class S>
LinearLayer<S> layer_of(const Tensor& input, const OptionalTensors& grads, int64_t outputs, bool bias) {
  const auto samples = [](const Tensor& tensor) {
    return Samples<S>{static_cast<const S*>(data_of(tensor)), tensor.stride(0), tensor.stride(1)};
  };
  LinearLayer<S> layer{input.size(0), input.size(1), outputs, bias, samples(input), {}};
  for (const std::optional<Tensor>& grad : grads)
    layer.grads.push_back(grad.has_value() ? samples(*grad) : Samples<S>{});
  return layer;
}

// <sum_b c_kb, sum_b c_jb> from the weight gradients, `rows` rows of all tasks at a time.
template <class S>
std::vector<double> by_forming(const Tensor& input, const OptionalTensors& grads, int64_t outputs, bool bias,
                               int64_t rows) {
  const int64_t tasks = grads.size();
  std::vector<double> M(tasks * tasks), part(tasks * tasks);
  for (int64_t first = 0; first < outputs; first += rows) {
    OptionalTensors formed;
    for (const std::optional<Tensor>& some : part_of(grads, 1, first, std::min(rows, outputs - first)))
      formed.push_back(some.has_value() ? std::optional<Tensor>(product(torch::stable::transpose(*some, 0, 1), input))
                                        : std::nullopt);
    const TensorColumn column = column_of(formed, "grads");
    gram<S>(isa(), torch_threads(), {views_of(column, order_of(column.leading(), false))}, tasks, part.data());
    add(part, M);
  }
  if (bias) add_bias<S>(grads, M);
  return M;
}

// The same from all pairs of samples: `rows` samples at a time meet themselves, and those after them for both orders.
template <class S>
std::vector<double> by_pairs(const Tensor& given, const OptionalTensors& grads, bool bias, int64_t rows) {
  const int64_t tasks = grads.size(), batch = given.size(0);
  std::vector<double> sums(tasks * tasks), part(tasks * tasks), M(tasks * tasks);
  Tensor input = given;
  for (int64_t first = 0; first < batch; first += rows) {
    const int64_t count = std::min(rows, batch - first), rest = batch - first;
    const Tensor others = torch::stable::narrow(input, 0, first, rest);
    const Tensor inner = product(torch::stable::narrow(input, 0, first, count), torch::stable::transpose(others, 0, 1));
    S* values = static_cast<S*>(inner.mutable_data_ptr());
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < rest; ++j, ++values) *values = (*values + (bias ? 1 : 0)) * (j < count ? 1 : 2);
    }
    OptionalTensors products;
    for (const std::optional<Tensor>& some : part_of(grads, 0, first, rest))
      products.push_back(some.has_value() ? std::optional<Tensor>(product(inner, *some)) : std::nullopt);
    const OptionalTensors own = part_of(grads, 0, first, count);
    const TensorColumn left = column_of(products, "grads"), right = column_of(own, "grads");
    const Order order = order_of(right.leading(), false);
    cross_gram<S>(isa(), torch_threads(), views_of(left, order), views_of(right, order), part.data());
    add(part, sums);
  }
  for (int64_t k = 0; k < tasks; ++k) {
    for (int64_t j = 0; j < tasks; ++j) M[k * tasks + j] = (sums[k * tasks + j] + sums[j * tasks + k]) / 2;
  }
  return M;
}

// M of a linear layer with one position a sample, and Q where asked for: in small layers calls cost more than products.
// Inputs [B, in] and grads [B, out] are float32 or float64, and the same. `rows`: how many rows of the weight gradients
// of all tasks, or samples of all pairs, are worked on at a time where the layer is too large for the kernels.
std::vector<Tensor> rows_linear_moments_op(const Tensor& input, const OptionalTensors& grads, bool bias,
                                           bool per_sample, bool pairs, int64_t rows) {
  const TensorColumn column = column_of(grads, "grads");
  const Tensor& like = column.like();
  const ScalarType type = like.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "grads: expected float32 or float64, got ",
                  text(type));
  STD_TORCH_CHECK(like.dim() == 2, "grads: expected [B, out], got shape ", text(like.sizes()));
  STD_TORCH_CHECK(input.dim() == 2, "input: expected [B, in], got shape ", text(input.sizes()));
  check(input, "input", type, {like.size(0), input.size(1)});
  STD_TORCH_CHECK(rows >= 1, "rows: expected at least 1, got ", rows);
  const int64_t tasks = grads.size();
  std::vector<double> M(tasks * tasks), Q(tasks * tasks);
  with_type(like, [&](auto zero) {
    using S = decltype(zero);
    const LinearLayer<S> layer = layer_of<S>(input, grads, like.size(1), bias);
    if (!(pairs ? linear_by_pairs<S> : linear_by_forming<S>)(isa(), torch_threads(), layer, M.data()))
      M = pairs ? by_pairs<S>(input, grads, bias, rows) : by_forming<S>(input, grads, layer.outputs, bias, rows);
    if (!per_sample) return;
    std::vector<S> weights = squared_rows<S>(isa(), input);
    for (S& weight : weights) weight += bias ? 1 : 0;
    const Order order = order_of(column.leading(), true);
    sample_gram<S>(isa(), torch_threads(), views_of(column, order), order.samples(), weights.data(), Q.data());
    for (double& value : Q) value *= static_cast<double>(order.samples());
  });
  std::vector<Tensor> result = {statistics(like, {tasks, tasks}, M)};
  if (per_sample) result.push_back(statistics(like, {tasks, tasks}, Q));
  return result;
}

}  // namespace
}  // namespace fastmtl

// The same schemas as contract.SCHEMAS: a test compares them.
STABLE_TORCH_LIBRARY_FRAGMENT(fastmtl_cpp, library) {
  library.def("cross_gram(Tensor?[] left, Tensor?[] right) -> Tensor");
  library.def("sample_gram(Tensor?[] grads, Tensor weights) -> Tensor");
  // A part of `linear_moments`.
  library.def(
      "rows_linear_moments(Tensor input, Tensor?[] grads, bool bias, bool per_sample, bool pairs, int rows) -> "
      "Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(fastmtl_cpp, CPU, library) {
  library.impl("cross_gram", TORCH_BOX(&fastmtl::cross_gram_op));
  library.impl("sample_gram", TORCH_BOX(&fastmtl::sample_gram_op));
  library.impl("rows_linear_moments", TORCH_BOX(&fastmtl::rows_linear_moments_op));
}
