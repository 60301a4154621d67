// Products of many rows, for the sanitizers; the results against plain loops.
#include "../../csrc/kernels/cuda/products.h"
#include "sanitizing.h"

using namespace sanitizing;

namespace {

bool missing(int k) { return k % 8 == 1; }

double dot(const Layout& layout, int i, int j) {
  double sum = 0;
  for (int64_t n = 0; n < layout.positions.count; ++n)
    sum += static_cast<double>(number(layout, i, n)) * static_cast<double>(number(layout, j, n));
  return sum;
}

void crossed(const Device& device, Dtype dtype, const Layout& layout, int left, int right) {
  const Dtype other = dtype == Dtype::f32 || layout.vector ? dtype : Dtype::f32;  // a dtype for each side
  std::vector<Tensor> tensors;
  cuda::CrossGram problem{};
  problem.positions = layout.positions;
  problem.vector = layout.vector;
  problem.left = {left, dtype, 0};
  problem.right = {right, other, 0};
  for (int k = 0; k < left; ++k) {
    tensors.push_back(gradient(dtype, layout, k));
    problem.rows[k].data = kNowhere;
    if (missing(k)) continue;
    problem.left.present |= uint64_t{1} << k;
    problem.rows[k] = tensors.back().place;
  }
  for (int k = 0; k < right; ++k) {
    tensors.push_back(gradient(other, layout, k + 1));
    problem.right.present |= uint64_t{1} << k;
    problem.columns[k] = tensors.back().place;
  }
  const Finishing finishing(cuda::products_numbers(device));
  const int64_t stride = right + 3;
  const Memory result(((left - 1) * stride + right) * sizeof(float));
  problem.finish = finishing.memory();
  problem.result = result.as<float>();
  problem.stride = stride;
  check(cuda::cross_gram(device, problem) == nullptr, 1, 0, "launch of cross_gram");
  for (int i = 0; i < left; ++i) {
    for (int j = 0; j < right; ++j)
      check(result.as<float>()[i * stride + j], missing(i) ? 0 : dot(layout, i, j + 1), dot(layout, i, i),
            "cross_gram");
  }
}

// Samples one after another, each as the layout has it.
void weighted(const Device& device, Dtype dtype, const Layout& layout, int tasks, int64_t samples, bool wide) {
  std::vector<Memory> memory;
  cuda::SampleGram problem{};
  problem.positions = layout.positions;
  problem.samples = samples;
  problem.vector = layout.vector;
  problem.grads = {tasks, dtype, 0};
  for (int k = 0; k < tasks; ++k) {
    const int64_t* along = k % 2 == 0 ? layout.even : layout.odd;
    const int64_t numbers = numbers_of(layout.positions, along), apart = (numbers + 7) / 8 * 8;
    const int64_t total = samples * layout.positions.count == 0 ? 0 : (samples - 1) * apart + numbers;
    memory.emplace_back(total * size_of(dtype), layout.offset * size_of(dtype));
    problem.places[k].data = kNowhere;
    if (missing(k)) continue;
    problem.grads.present |= uint64_t{1} << k;
    problem.places[k].data = memory.back().as();
    problem.places[k].sample_stride = apart;
    for (int dim = 0; dim < layout.positions.rank; ++dim) problem.places[k].strides[dim] = along[dim];
    for (int64_t b = 0; b < samples; ++b) {
      for (int64_t i = 0; i < layout.positions.count; ++i)
        put(dtype, memory.back().as(), b * apart + offset_of(layout.positions, along, i), value(k, i));
    }
  }
  constexpr int64_t kApart = 2;
  const Memory weights(((samples - 1) * kApart + 1) * (wide ? sizeof(double) : sizeof(float)));
  double sum = 0;
  for (int64_t b = 0; b < samples; ++b) {
    sum += static_cast<double>(b % 3);
    if (wide) {
      weights.as<double>()[b * kApart] = static_cast<double>(b % 3);
    } else {
      weights.as<float>()[b * kApart] = static_cast<float>(b % 3);
    }
  }
  const Finishing finishing(cuda::products_numbers(device));
  const Memory result(tasks * tasks * sizeof(float));
  problem.weights = {weights.as(), kApart, wide};
  problem.finish = finishing.memory();
  problem.result = result.as<float>();
  check(cuda::sample_gram(device, problem) == nullptr, 1, 0, "launch of sample_gram");
  for (int i = 0; i < tasks; ++i) {
    for (int j = 0; j < tasks; ++j) {
      const double expected = missing(i) || missing(j) ? 0 : sum * dot(layout, i, j);
      check(result.as<float>()[i * tasks + j], expected, sum * dot(layout, i, i), "sample_gram");
    }
  }
}

}  // namespace

// Any argument: few cases.
int main(int count, char**) {
  in_all_cases(count > 1, {1, 12, 20, 40},
               [](const Device& device, Dtype dtype, const Layout& layout, int tasks, unsigned turn) {
                 const bool first = turn / 3 % 2 == 0;  // takes all layouts and numbers of tasks, and so does the rest
                 if (first || !kInTurns)
                   crossed(device, dtype, layout, tasks, 1 + (tasks + 7 * static_cast<int>(turn)) % tasks);
                 if (!first || !kInTurns)
                   weighted(device, dtype, layout, tasks, layout.positions.count > 1000 ? 2 : 9, turn % 2 == 0);
               });
  std::puts("ok");
}
