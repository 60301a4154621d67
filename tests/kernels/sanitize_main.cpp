// The CPU kernels on std::threads and on memory of exactly the right size: for AddressSanitizer, UBSan and TSan.
// Compares sums with plain loops; the sanitizers look for the rest.
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "../../csrc/kernels/cpu/linear.h"
#include "../../csrc/kernels/cpu/lists.h"
#include "../../csrc/kernels/cpu/moments.h"
#include "../../csrc/kernels/cpu/products.h"
#include "../../csrc/kernels/gnr_update.h"
#include "../../csrc/kernels/gradnorm_update.h"
#include "plain.h"
#include "states.h"

namespace fastmtl {
const Isa& wide_isa();
}
using namespace fastmtl;

namespace {

void on_threads(int64_t units, void (*body)(void*, int64_t, int64_t), void* context) {
  constexpr int64_t kThreads = 3;
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < kThreads; ++t) {
    const int64_t begin = units * t / kThreads, end = units * (t + 1) / kThreads;
    if (begin < end) threads.emplace_back(body, context, begin, end);
  }
  for (std::thread& thread : threads) thread.join();
}

// [samples, rows, columns], the last two dimensions transposed in memory for odd tasks.
template <class S>
void run(const Isa& isa, int64_t tasks, int64_t samples, int64_t rows, int64_t columns, bool halves, bool strided) {
  const Executor parallel{on_threads};
  const int64_t positions = rows * columns, count = samples * positions;
  const int64_t sizes[] = {samples, rows, columns};
  const int64_t plain[] = {positions, columns, 1}, transposed[] = {positions, 1, rows};
  const Dtype dtype = halves ? Dtype::bf16 : dtype_of<S>;
  std::vector<std::unique_ptr<char, decltype(&std::free)>> memory;
  const auto allocate = [&]() {
    void* place = nullptr;
    if (posix_memalign(&place, 64, count * size_of(dtype)) != 0) throw std::bad_alloc();
    memory.emplace_back(static_cast<char*>(place), &std::free);
    return memory.back().get();
  };
  const Order order(sizes, plain, 3, true), flat(sizes, plain, 3, false);
  MomentsProblem problem{{}, {}, samples, positions};
  Column column{{}, count};
  for (int64_t k = 0; k < tasks; ++k) {
    char* data = allocate();
    const bool turned = strided && k % 2 == 1;
    for (int64_t b = 0; b < samples; ++b) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < columns; ++c) {
          const int64_t i = b * positions + r * columns + c;
          const int64_t at = turned ? b * positions + c * rows + r : i;
          if (halves) {
            reinterpret_cast<uint16_t*>(data)[at] = bf16(value(k, i));
          } else {
            reinterpret_cast<S*>(data)[at] = value(k, i);
          }
        }
      }
    }
    const bool missing = tasks > 2 && k == 1;
    const int64_t* strides = turned ? transposed : plain;
    problem.grads.push_back(order.view(missing ? nullptr : data, dtype, strides));
    column.tensors.push_back(flat.view(missing ? nullptr : data, dtype, strides));
  }
  char* total = allocate();
  problem.total = order.view(total, dtype, plain);
  std::vector<double> M(tasks * tasks), Q(tasks * tasks), G(tasks * tasks), norms(tasks), more(tasks);
  std::vector<double> crossed(tasks * tasks), weighted(tasks * tasks);
  sum_moments<S>(isa, parallel, problem, M.data(), Q.data());
  gram<S>(isa, parallel, {column}, tasks, G.data());
  squared_norms<S>(isa, parallel, {column, column}, tasks, norms.data());
  sum_norms<S>(isa, parallel, column, flat.view(total, dtype, plain), more.data());
  cross_gram<S>(isa, parallel, column, column, crossed.data());
  const std::vector<S> halved(samples, S(0.5));
  sample_gram<S>(isa, parallel, {problem.grads, positions}, samples, halved.data(), weighted.data());
  const std::vector<S> weights(tasks, S(2));
  char* weighted_total = allocate();
  weighted_sum<S>(isa, parallel, {column}, tasks, weights.data(), {flat.view(weighted_total, dtype, plain)});
  if (!halves && !strided)  // in place
    weighted_sum<S>(isa, parallel, {column}, tasks, weights.data(), {column.tensors[0]});
  for (int64_t i = 0; i < count && !halves; ++i) {
    double expected = 0, size = 0;
    for (int64_t k = 0; k < tasks; ++k) {
      if (tasks > 2 && k == 1) continue;
      expected += value(k, i);
      size += std::abs(value(k, i));
    }
    check(reinterpret_cast<S*>(total)[i], expected, size, "total");
    check(reinterpret_cast<S*>(weighted_total)[i], 2 * expected, 2 * size, "weighted_sum");
  }
  for (int64_t k = 0; k < tasks; ++k) {
    double expected = 0;
    for (int64_t i = 0; i < count; ++i) expected += value(k, i) * value(k, i);
    if (tasks > 2 && k == 1) expected = 0;
    check(G[k * tasks + k], expected, expected, "gram");
    check(Q[k * tasks + k], samples * expected, samples * expected, "Q");
    check(crossed[k * tasks + k], expected, expected, "cross_gram");
    check(weighted[k * tasks + k], 0.5 * expected, expected, "sample_gram");
    check(norms[k], 2 * expected, expected, "squared_norms");
    check(more[k], expected, expected, "sum_norms");
  }
}

// Values about 1, so that the bias counts. The last row ends where its memory ends; `turned`: samples are innermost.
// One task is missing.
template <class S>
void linear(const Isa& isa, int64_t batch, int64_t width, int64_t outputs, bool bias, bool turned) {
  std::vector<std::unique_ptr<S[]>> memory;
  const auto samples = [&](int64_t task, int64_t length) {
    memory.emplace_back(new S[batch * length]);
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t i = 0; i < length; ++i)
        memory.back()[turned ? i * batch + b : b * length + i] = value(task, b * length + i) + 1;
    }
    return Samples<S>{memory.back().get(), turned ? 1 : length, turned ? batch : 1};
  };
  const LinearLayer<S> layer{
      batch, width, outputs, bias, samples(5, width), {samples(0, outputs), {}, samples(1, outputs)}};
  double expected[4] = {};
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t i = 0; i < width + bias; ++i) {
      double formed[2] = {};
      for (int64_t b = 0; b < batch; ++b) {
        const double input = i == width ? 1 : value(5, b * width + i) + 1;
        for (int task = 0; task < 2; ++task) formed[task] += input * (value(task, b * outputs + o) + 1);
      }
      for (int k = 0; k < 4; ++k) expected[k] += formed[k / 2] * formed[k % 2];
    }
  }
  const Executor parallel{on_threads};
  for (const auto way : {linear_by_forming<S>, linear_by_pairs<S>}) {
    std::vector<double> M(9, NAN);
    check(way(isa, parallel, layer, M.data()), 1, 0, "linear: large enough for the kernels");
    for (int k = 0; k < 9; ++k) {
      const double wanted = k / 3 == 1 || k % 3 == 1 ? 0 : expected[k / 3 / 2 * 2 + k % 3 / 2];
      check(M[k], wanted, std::max(expected[0], expected[3]), "linear");
    }
  }
}

void update() {
  const float message[] = {1, 1, 0.5f, 0.25f, 1, 1, 1, 1};
  const float squared[] = {4, 9};
  float weights[] = {1, 1}, initial[] = {NAN, NAN}, avg[2] = {}, avg_sq[2] = {}, norms[2] = {}, rates[2] = {};
  int64_t steps[2] = {}, counters[2] = {}, task_counters[6] = {};
  double weight_sum[2] = {};
  double memory[GradNormUpdate<float>::workspace(2)];
  GradNormUpdate<float> step(
      {2,     squared, 1,        message,       1,   weights, initial, avg, avg_sq, steps, weight_sum,
       norms, rates,   counters, task_counters, 0.5, 0.025,   true,    0.9, 0.999,  1e-8,  1e-3},
      TeamOfOne(), memory);
  step();
  check(weights[0] + weights[1], 2, 1, "weights");
  check(counters[0], 1, 1, "counters");
}

// A team of threads, as a block of a GPU: the ranks run the same code and meet at sync().
struct Meeting {
  explicit Meeting(int64_t size) : size(size) {}
  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    const int64_t now = round;
    if (++arrived == size) {
      arrived = 0;
      ++round;
      everyone.notify_all();
    } else {
      everyone.wait(lock, [&] { return round != now; });
    }
  }
  const int64_t size;
  int64_t arrived = 0, round = 0;
  std::mutex mutex;
  std::condition_variable everyone;
};

struct TeamOfThreads {
  using Index = int;  // as a GPU's block has it
  int64_t mine;
  Meeting* meeting;
  Index rank() const { return static_cast<Index>(mine); }
  Index size() const { return static_cast<Index>(meeting->size); }
  void sync() const { meeting->wait(); }
  static constexpr Index stride(Index tasks) { return tasks; }
};

template <class Moment>
GnrProblem<Moment> gnr(int64_t tasks, int64_t threads, GnrObjective objective, bool noise, float scale) {
  GnrProblem<Moment> problem(tasks, objective, noise, scale);
  const GnrArguments<Moment> arguments = problem.arguments();
  const std::unique_ptr<double[]> memory(new double[GnrUpdate<Moment>::workspace(tasks)]);
  Meeting meeting(threads);
  std::vector<std::thread> ranks;
  for (int64_t rank = 0; rank < threads; ++rank) {
    ranks.emplace_back([&, rank] {
      if (threads == 1) {
        GnrUpdate<Moment>(arguments, TeamOfOne(), memory.get())();
      } else {
        GnrUpdate<Moment, TeamOfThreads>(arguments, TeamOfThreads{rank, &meeting}, memory.get())();
      }
    });
  }
  for (std::thread& thread : ranks) thread.join();
  return problem;
}

// One rank or several: the same bits, and no races.
template <class Moment>
void gnr_teams(int64_t tasks, GnrObjective objective, bool noise, float scale) {
  const GnrProblem<Moment> alone = gnr<Moment>(tasks, 1, objective, noise, scale);
  const GnrProblem<Moment> together = gnr<Moment>(tasks, 3, objective, noise, scale);
  double sum = 0;
  for (int64_t k = 0; k < tasks; ++k) {
    sum += static_cast<double>(alone.weights[k]);
    check(together.weights[k] == alone.weights[k], 1, 0, "gnr: weights of a team");
  }
  check(sum, static_cast<double>(tasks), static_cast<double>(tasks), "gnr: sum of the weights");
  check(static_cast<double>(alone.counters[0]), std::isfinite(scale) ? 1 : 0, 0, "gnr: accepted");
  check(together.counters == alone.counters && together.task_counters == alone.task_counters, 1, 0, "gnr: counters");
}

}  // namespace

int main() {
  const char* error = nullptr;
  const Isa* best = select_isa(&error);
  for (const Isa* isa : {&generic_isa(), &wide_isa(), best}) {
    for (const int64_t tasks : {1, 3, 7, 12}) {
      for (const bool strided : {false, true}) {
        run<float>(*isa, tasks, 5, 33, 71, false, strided);
        run<float>(*isa, tasks, 5, 33, 71, true, strided);
        run<double>(*isa, tasks, 3, 13, 11, false, strided);
        run<float>(*isa, tasks, 300, 3, 7, false, strided);  // few positions: whole samples at a time
        run<float>(*isa, tasks, 300, 3, 7, true, strided);
        run<float>(*isa, tasks, 1, 1, 1, false, strided);
      }
    }
    run<float>(*isa, 3, 2000, 40, 50, false, false);  // samples split over units
    for (const int64_t tasks : {3, 8}) {              // the sums go past the caches
      run<float>(*isa, tasks, 3, 1536 / tasks, 2100, false, false);
      run<float>(*isa, tasks, 3, 1537 / tasks | 1, 2101, false, false);
    }
    run<double>(*isa, 4, 2, 400, 1311, false, false);
    for (const bool bias : {false, true}) {
      linear<float>(*isa, 73, 65, 66, bias, false);
      linear<float>(*isa, 257, 80, 71, bias, true);
      linear<double>(*isa, 50, 300, 53, bias, false);
    }
  }
  update();
  for (const int64_t tasks : {1, 2, 5, 17}) {
    gnr_teams<float>(tasks, GnrObjective::relative, true, 4);
    gnr_teams<double>(tasks, GnrObjective::maxmin, true, 4);
    gnr_teams<float>(tasks, GnrObjective::intertask, false, 4);
    gnr_teams<float>(tasks, GnrObjective::none, false, 4);
    gnr_teams<float>(tasks, GnrObjective::relative, true, INFINITY);
  }
  std::puts("ok");
}
