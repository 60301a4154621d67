// The ops over lists, for the sanitizers; the results against plain loops.
#include "../../csrc/kernels/cuda/lists.h"
#include "sanitizing.h"

using namespace sanitizing;

namespace {

// Columns of these lengths, and memory for a result of each; some gradients are missing.
struct Lists {
  Lists(Dtype dtype, bool vector, int tasks) : tasks(tasks), dtype(dtype), lengths{8, 5000, 0, 72, 1304} {
    if (!vector) lengths[0] = 1, lengths[3] = 129;
    columns.tasks = tasks;
    columns.count = static_cast<int>(lengths.size());
    columns.row = tasks + 1;
    columns.dtype = dtype;
    columns.vector = vector;
    for (int c = 0; c < columns.count; ++c) {
      columns.lengths[c] = lengths[c];
      for (int k = 0; k <= tasks; ++k) {
        memory.emplace_back(lengths[c] * size_of(dtype), vector ? 0 : size_of(dtype));
        char* data = memory.back().as();
        for (int64_t i = 0; i < lengths[c]; ++i) put(dtype, data, i, value(k, i));
        columns.pointers[c * columns.row + k] = missing(c, k) ? nullptr : data;
      }
    }
  }
  bool missing(int c, int k) const { return k < tasks && tasks > 2 && (k + c) % 8 == 1; }
  double product(int i, int j) const {
    double sum = 0;
    for (int c = 0; c < columns.count; ++c) {
      if (missing(c, i) || missing(c, j)) continue;
      for (int64_t n = 0; n < lengths[c]; ++n)
        sum += static_cast<double>(value(i, n)) * static_cast<double>(value(j, n));
    }
    return sum;
  }
  int tasks;
  Dtype dtype;
  std::vector<int64_t> lengths;
  std::vector<Memory> memory;
  cuda::Columns columns{};
};

void statistics(const Device& device, const Lists& lists, bool accumulate) {
  const int tasks = lists.tasks;
  const Memory gram(tasks * tasks * sizeof(float)), norms(tasks * sizeof(float));
  for (int n = 0; accumulate && n < tasks * tasks; ++n) gram.as<float>()[n] = 3;
  for (int k = 0; accumulate && k < tasks; ++k) norms.as<float>()[k] = 3;
  {
    const Finishing finishing(cuda::gram_numbers(device, tasks));
    cuda::ListStatistic problem{lists.columns, finishing.memory(), gram.as<float>(), accumulate};
    check(cuda::gram(device, problem) == nullptr, 1, 0, "launch of gram");
  }
  {
    const Finishing finishing(cuda::squared_norms_numbers(device, tasks));
    cuda::ListStatistic problem{lists.columns, finishing.memory(), norms.as<float>(), accumulate};
    check(cuda::squared_norms(device, problem) == nullptr, 1, 0, "launch of squared_norms");
  }
  const double before = accumulate ? 3 : 0;
  for (int i = 0; i < tasks; ++i) {
    const double square = lists.product(i, i);
    check(norms.as<float>()[i], before + square, square, "squared_norms");
    for (int j = 0; j < tasks; ++j)
      check(gram.as<float>()[i * tasks + j], before + lists.product(i, j), square, "gram");
  }
}

void sum(const Device& device, const Lists& lists, bool wide) {
  constexpr int64_t kApart = 3;
  const Memory weights(((lists.tasks - 1) * kApart + 1) * (wide ? sizeof(double) : sizeof(float)));
  for (int k = 0; k < lists.tasks; ++k) {
    if (wide) {
      weights.as<double>()[k * kApart] = k % 3;
    } else {
      weights.as<float>()[k * kApart] = static_cast<float>(k % 3);
    }
  }
  cuda::WeightedSum problem{lists.columns, {weights.as(), kApart, wide}};
  check(cuda::weighted_sum(device, problem) == nullptr, 1, 0, "launch of weighted_sum");
  for (int c = 0; c < lists.columns.count; ++c) {
    for (int64_t i = 0; i < lists.lengths[c]; ++i) {
      float expected = 0;
      for (int k = 0; k < lists.tasks; ++k) {
        if (!lists.missing(c, k)) expected += static_cast<float>(k % 3) * value(k, i);
      }
      check(holds(lists.dtype, lists.columns.pointer(c, lists.tasks), i, expected), 1, 0, "weighted_sum");
    }
  }
}

}  // namespace

// Any argument: few cases, and float32.
int main(int count, char**) {
  const bool few = count > 1;
  in_all_orders(few, [few](const Device& device, unsigned order) {
    unsigned turn = order;
    for (const int tasks : {1, 4, 7, 10, 16, 20, 40, 64}) {
      for (const bool vector : {false, true}) {
        ++turn;
        if (kInTurns && turn % 4 != 0) continue;
        const Lists lists(few ? Dtype::f32 : kDtypes[(turn / 4 + order) % 3], vector, tasks);
        statistics(device, lists, turn % 8 < 4);
        sum(device, lists, turn % 8 < 4);
      }
    }
  });
  std::puts("ok");
}
