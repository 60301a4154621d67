// sum_moments, and GNR's step after it, for the sanitizers; the results against plain loops.
#include "../../csrc/kernels/cuda/sum_moments.h"
#include "../kernels/states.h"
#include "sanitizing.h"

using namespace sanitizing;

namespace {

struct Case {
  Layout layout;
  int tasks;
  int64_t batch;
  int processors, blocks;  // blocks: of the launch
  bool step, inner;        // inner: the samples of a position lie beside each other
  int other_blocks = 0;    // where it is not 0: of 16-bit numbers, of which a thread takes twice as many
};

bool missing(const Case& c, int k) { return c.tasks > 2 && k % 8 == 1; }

float sample(const Case& c, int k, int64_t b, int64_t i) {
  const int64_t* strides = k % 2 == 0 ? c.layout.even : c.layout.odd;
  return value(k, 3 * b + (strides[c.layout.positions.rank - 1] == 0 ? c.layout.positions.count - 1 : i));
}

// A tensor of `samples` like `along`, `gap` groups of 8 numbers between them.
struct Samples {
  Samples(const Case& c, Dtype dtype, const int64_t* along, int64_t gap) {
    const Positions& positions = c.layout.positions;
    const int64_t numbers = numbers_of(positions, along);
    place.sample_stride = c.inner ? 1 : (numbers + 7) / 8 * 8 + 8 * gap;
    for (int dim = 0; dim < positions.rank; ++dim) place.strides[dim] = along[dim] * (c.inner ? c.batch : 1);
    int64_t all = 0;
    if (c.batch * positions.count > 0)
      all = (c.batch - 1) * place.sample_stride + (numbers - 1) * (c.inner ? c.batch : 1) + 1;
    memory = std::make_unique<Memory>(all * size_of(dtype), c.layout.offset * size_of(dtype));
    place.data = memory->as();
  }
  int64_t at(const Case& c, int64_t b, int64_t i) const {
    return b * place.sample_stride + offset_of(c.layout.positions, place.strides, i);
  }
  std::unique_ptr<Memory> memory;
  Place place{};
};

void step(const Case& c, GnrProblem<float>& state, const float* M, const float* Q) {
  GnrProblem<float> expected(c.tasks, state.objective, true, 2);
  GnrArguments<float> arguments = expected.arguments();
  arguments.M = {M, c.tasks, 1};
  arguments.Q = {Q, c.tasks, 1};
  arguments.batch = c.batch;
  std::vector<double> memory(GnrUpdate<float>::workspace(c.tasks));
  GnrUpdate<float>(arguments, TeamOfOne(), memory.data())();
  check(state.counters[0], 1, 0, "steps of GNR");
  check(state.weights == expected.weights && state.moments == expected.moments && state.averages == expected.averages &&
            state.shares == expected.shares && state.samples == expected.samples &&
            state.counters == expected.counters && state.task_counters == expected.task_counters,
        1, 0, "the state of GNR");
  check(state.weights != std::vector<float>(c.tasks, 1), c.layout.positions.count > 0, 0,
        "other weights after GNR's step");
}

void run(const Case& c, Dtype dtype) {
  const Layout& layout = c.layout;
  const int64_t count = layout.positions.count;
  const int tasks = c.tasks;
  const Samples total(c, dtype, layout.result, 0);
  std::vector<Samples> grads;
  const Memory M(tasks * tasks * sizeof(float)), Q(tasks * tasks * sizeof(float));
  GnrProblem<float> state(tasks, GnrObjective::relative, true, 2);
  cuda::SumMoments problem{};
  problem.positions = layout.positions;
  problem.batch = c.batch;
  problem.dtype = dtype;
  problem.vector = layout.vector;
  problem.tasks = tasks;
  problem.step = c.step;
  problem.M = M.as<float>();
  problem.Q = Q.as<float>();
  problem.update = state.arguments();
  problem.update.M = {problem.M, tasks, 1};
  problem.update.Q = {problem.Q, tasks, 1};
  problem.update.batch = c.batch;
  problem.total = total.place;
  for (int k = 0; k < tasks; ++k) {
    grads.emplace_back(c, dtype, k % 2 == 0 ? layout.even : layout.odd, k % 3);
    if (missing(c, k)) {
      problem.grads[k].data = kNowhere;
      continue;
    }
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t i = 0; i < count; ++i) put(dtype, grads[k].place.data, grads[k].at(c, b, i), sample(c, k, b, i));
    }
    problem.present |= uint64_t{1} << k;
    problem.grads[k] = grads[k].place;
  }
  const Device device{c.processors, nullptr};
  const cuda::MomentsKernel kernel = cuda::moments_kernel(problem.vector, problem.dtype, tasks);
  const Finishing finishing(cuda::plan(device, kernel, problem));
  const int blocks = problem.finish.blocks * problem.splits();
  check(blocks, dtype == Dtype::f32 || c.other_blocks == 0 ? c.blocks : c.other_blocks, 0, layout.name);
  const cuda::Finish memory = finishing.memory();
  check(cuda::sum_moments(device, kernel, memory.partials, memory.tickets, problem) == nullptr, 1, 0, "launch");

  std::vector<double> products(tasks * tasks), moments(tasks * tasks), x(tasks), sums(tasks);
  for (int64_t i = 0; i < count; ++i) {
    std::fill(sums.begin(), sums.end(), 0);
    for (int64_t b = 0; b < c.batch; ++b) {
      float sum = 0;
      for (int k = 0; k < tasks; ++k) {
        x[k] = missing(c, k) ? 0 : static_cast<double>(sample(c, k, b, i));
        sum += static_cast<float>(x[k]);
        sums[k] += x[k];
      }
      check(holds(dtype, total.place.data, total.at(c, b, i), sum), 1, 0, layout.name);
      for (int k = 0; k < tasks; ++k) {
        for (int j = 0; j < tasks; ++j) products[k * tasks + j] += x[k] * x[j];
      }
    }
    for (int k = 0; k < tasks; ++k) {
      for (int j = 0; j < tasks; ++j) moments[k * tasks + j] += sums[k] * sums[j];
    }
  }
  for (int k = 0; k < tasks; ++k) {
    for (int j = 0; j < tasks; ++j) {
      const int at = k * tasks + j, own = k * tasks + k;
      const double batch = static_cast<double>(c.batch);
      check(Q.as<float>()[at], batch * products[at], batch * products[own], layout.name);
      check(M.as<float>()[at], moments[at], moments[own], layout.name);
    }
  }
  if (c.step) {
    step(c, state, problem.M, problem.Q);
  } else {
    check(state.counters[0], 0, 0, "no step of GNR");
  }
}

Layout line(const char* name, int64_t count, bool vector) {
  return {name, {count, 1, {count, 1, 1, 1}}, {1}, {1}, {1}, vector ? 0 : 1, vector};
}

std::vector<Case> cases() {
  const Layout rows = {"rows with gaps", {4 * 48, 2, {4, 48, 1, 1}}, {48, 1}, {56, 1}, {64, 1}, 0, true};
  const Layout long_rows = {"long rows", {26 * 48, 2, {26, 48, 1, 1}}, {48, 1}, {56, 1}, {64, 1}, 0, true};
  const Layout transposed = {"transposed", {5 * 7 * 9, 3, {5, 7, 9, 1}}, {63, 9, 1}, {1, 45, 5}, {63, 1, 7}, 0, false};
  const Layout repeated = {"repeated", {40, 1, {40, 1, 1, 1}}, {1}, {0}, {1}, 0, false};
  const Layout four = {
      "four dimensions", {2 * 3 * 7 * 4, 4, {2, 3, 7, 4}}, {84, 28, 4, 1}, {1, 56, 8, 2}, {84, 1, 3, 21}, 0, false};
  return {
      // Few tasks.
      {line("nothing", 0, true), 3, 5, 3, 1, false, false},
      {line("nothing of many samples", 0, true), 3, 600, 2, 1, false, false},
      {line("no samples", 40, false), 5, 0, 3, 1, false, false},
      {line("loops", 600, false), 10, 2, 3, 3, true, false},
      {line("one vector, shared samples", 8, true), 4, 770, 3, 3, false, false},
      {line("one number, shared samples", 1, false), 2, 520, 2, 2, false, false},
      {long_rows, 8, 25, 9, 9, false, false, 6},
      {long_rows, 10, 3, 2, 2, false, false},
      {long_rows, 3, 20, 6, 6, true, false, 4},
      {transposed, 4, 5, 3, 3, false, true},
      {repeated, 9, 24, 5, 3, false, false},
      // Many.
      {line("nothing", 0, true), 11, 5, 3, 1, false, false},
      {line("nothing of many samples", 0, true), 12, 70, 3, 1, true, false},
      {line("no samples", 40, false), 20, 0, 3, 1, false, false},
      {line("loops", 300, false), 12, 3, 2, 2, true, false},
      {line("shared samples", 7, false), 16, 100, 3, 3, false, false},
      {line("shared samples", 30, false), 50, 65, 2, 2, false, false},
      {rows, 12, 65, 4, 4, true, false},
      {rows, 20, 65, 6, 6, false, false},
      {transposed, 33, 3, 3, 3, false, true},
      {four, 48, 4, 1, 1, false, false},
      {line("one vector", 8, true), 64, 3, 3, 1, false, false},
  };
}

}  // namespace

// Any argument: one order, and float32.
int main(int count, char**) {
  const bool few = count > 1;
  fastmtl_resident_blocks(1);
  unsigned turn = 0;
  for (const Case& c : cases()) {
    for (unsigned order = 0; order < (kInTurns || few ? 1 : 3); ++order, ++turn) {
      fastmtl_order_of_blocks(turn % 4);
      run(c, few ? Dtype::f32 : kDtypes[turn % 3]);
    }
  }
  std::puts("ok");
}
