// The least that the memory allows: one pass that reads T arrays (squares of their elements added up, so that nothing
// can be left out) or, with an output, writes their sum. And the least that the arithmetic takes: multiply-adds in
// registers. Plain code on vectors over flat memory, for benchmarks only.
#include <cstdint>
#include <vector>

namespace {

typedef float Vector __attribute__((vector_size(FASTMTL_VECTOR_BYTES)));
typedef float Unaligned __attribute__((vector_size(FASTMTL_VECTOR_BYTES), aligned(4), may_alias));
constexpr int64_t kWidth = FASTMTL_VECTOR_BYTES / 4;

Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }

void read(const float* row, int64_t begin, int64_t end, float* sink) {
  Vector sums[4] = {};
  for (int64_t i = begin; i + 4 * kWidth <= end; i += 4 * kWidth) {
    for (int u = 0; u < 4; ++u) {
      const Vector x = load(row + i + u * kWidth);
      sums[u] += x * x;
    }
  }
  const Vector sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (int l = 0; l < kWidth; ++l) *sink += sum[l];
}

template <int T>
void add(const float* const* rows, int64_t begin, int64_t end, float* out) {
  const float* row[T];
  for (int k = 0; k < T; ++k) row[k] = rows[k];
  int64_t i = begin;
  for (; i + kWidth <= end; i += kWidth) {
    Vector sum = load(row[0] + i);
    for (int k = 1; k < T; ++k) sum += load(row[k] + i);
    *reinterpret_cast<Unaligned*>(out + i) = sum;
  }
  for (; i < end; ++i) {
    out[i] = row[0][i];
    for (int k = 1; k < T; ++k) out[i] += row[k][i];
  }
}

// So many multiply-adds of vectors, in as many independent sums as hide their latency.
float multiply_add(int64_t count, float factor) {
  constexpr int kSums = 12;
  Vector sums[kSums], x = Vector{} + factor, y = x;
  for (int s = 0; s < kSums; ++s) sums[s] = y + static_cast<float>(s);  // not the same, or the compiler keeps one
  for (int64_t i = 0; i < count; i += kSums) {
#pragma GCC unroll 12
    for (int s = 0; s < kSums; ++s) sums[s] = sums[s] * x + y;
  }
  for (int s = 1; s < kSums; ++s) sums[0] += sums[s];
  return sums[0][0];
}

struct Work {
  int64_t count, units;
  float factor;
  float* sinks;
};

void run_arithmetic(int64_t begin, int64_t end, void* context) {
  const Work& work = *static_cast<const Work*>(context);
  work.sinks[begin * 16] =
      multiply_add((work.count * end / work.units - work.count * begin / work.units) / kWidth, work.factor);
}

struct Pass {
  const float* const* rows;
  int64_t tasks, count, units;
  float* out;
  float* sinks;
};

void run(int64_t begin, int64_t end, void* context) {
  const Pass& pass = *static_cast<const Pass*>(context);
  const int64_t first = pass.count * begin / pass.units, last = pass.count * end / pass.units;
  if (pass.out == nullptr) {
    for (int64_t k = 0; k < pass.tasks; ++k) read(pass.rows[k], first, last, pass.sinks + begin * 16);
  } else if (pass.tasks == 3) {
    add<3>(pass.rows, first, last, pass.out);
  } else if (pass.tasks == 10) {
    add<10>(pass.rows, first, last, pass.out);
  } else {
    add<40>(pass.rows, first, last, pass.out);
  }
}

using ParallelFor = int32_t (*)(int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void*), void*);

}  // namespace

// `parallel_for` is torch's: the same threads as the ops. tasks: any to read only, else 3, 10 or 40.
extern "C" float fastmtl_floor(const float* const* rows, int64_t tasks, int64_t count, float* out, int64_t units,
                               ParallelFor parallel_for) {
  std::vector<float> sinks(units * 16);
  Pass pass{rows, tasks, count, units, out, sinks.data()};
  parallel_for(0, units, 1, run, &pass);
  return sinks[0];
}

// `count` multiply-adds of float32.
extern "C" float fastmtl_arithmetic(int64_t count, int64_t units, float factor, ParallelFor parallel_for) {
  std::vector<float> sinks(units * 16);
  Work work{count, units, factor, sinks.data()};
  parallel_for(0, units, 1, run_arithmetic, &work);
  return sinks[0];
}
