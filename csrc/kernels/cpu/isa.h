// The computations on chunks that live in the L1/L2 cache, in one table per instruction set.
//
// Everything here is torch-free. The tables are filled by compute_{generic,avx2,avx512}.cpp, each compiled with the
// flags of its instruction set; all other files are compiled for the baseline of the architecture.
#pragma once

#include <cstdint>

namespace fastmtl {

// What to bring into the cache while computing: each row `distance` elements ahead, where `next` says how the row goes
// on after the last of its `count` elements. Not a multiple of 4 KiB: rows of tensors often lie at the same offset of
// their pages, and both places of all of them would compete for the same sets of the L1 cache.
struct Prefetch {
  const char* const* next = nullptr;  // one pointer a row, null: nothing to prefetch
  int64_t bytes_per_element = 0;      // that of the memory, not of the arithmetic
  int64_t distance = 0;               // at most `count`, which is the one to take where rows are converted copies
  const char* out = nullptr;          // how the output goes on, null: there is none
};

constexpr int64_t kFloatSamples = 64;  // so many samples are added up in S before they go into double

// What forms products of matrices, a tile of sums at a time.
template <class S>
struct Forming {
  int64_t rows, columns;  // of a tile; a narrow one has half the columns
  // out[r * pitch + c] = sum_b left[b * rows + r] * right[b * columns + c], or that added to it
  void (*wide)(const S* left, const S* right, int64_t count, S* out, int64_t pitch, bool add);
  void (*narrow)(const S* left, const S* right, int64_t count, S* out, int64_t pitch, bool add);
  // out[r] = sum_b left[b * rows + r]
  void (*sum_left)(const S* left, int64_t count, S* out);
  // Such operands of a matrix whose element [b, i] is from[b * pitch + i * step]; zeros from the column `given` on.
  void (*pack_left)(const S* from, int64_t pitch, int64_t step, int64_t given, int64_t count, S* to);
  void (*pack_wide)(const S* from, int64_t pitch, int64_t step, int64_t given, int64_t count, S* to);
  void (*pack_narrow)(const S* from, int64_t pitch, int64_t step, int64_t given, int64_t count, S* to);
};

// All functions take rows of `count` elements. They may be used in place: an output may be one of the rows. One that
// `streams` goes past the caches, where its place is aligned to vectors.
//
// "lanes" are partial sums in double: Isa::lanes of them belong to one result, added up by the caller at the very end.
template <class S>
struct Compute {
  // lanes[(i * tasks + j)] += <row_i, row_j> for i <= j
  void (*gram)(const S* const* rows, int64_t tasks, int64_t count, double* lanes, const Prefetch& ahead);
  // lanes[i * columns + j] += <left_i, right_j>
  void (*cross)(const S* const* left, int64_t rows, const S* const* right, int64_t columns, int64_t count,
                double* lanes);
  // lanes[0] += <row, row>
  void (*square)(const S* row, int64_t count, double* lanes);
  // out = row_0 + row_1 + ..., in this order
  void (*sum)(const S* const* rows, int64_t tasks, int64_t count, S* out, const Prefetch& ahead);
  // `sum`, and lanes[r] += <row_r, row_r>, in one pass
  void (*sum_square)(const S* const* rows, int64_t tasks, int64_t count, S* out, bool streams, double* lanes,
                     const Prefetch& ahead);
  // sums[i] += rows[i] + rows[pitch + i] + ..., for `samples` rows of `count` elements
  void (*add_samples)(const S* rows, int64_t samples, int64_t pitch, int64_t count, double* sums);
  // `gram` and `sum` of each of one or two samples (two: of at most Isa::paired_tasks tasks) in one pass that also adds
  // each row to the accumulator of its task (`first`: sets it); accumulators + i * pitch is that of task i. The rows of
  // the second sample follow those of the first.
  void (*sum_accumulate_gram)(const S* const* rows, int64_t samples, int64_t tasks, int64_t count, S* const* out,
                              bool streams, S* accumulators, int64_t pitch, bool first, double* lanes,
                              const Prefetch& ahead);
  // out = weights_0 * row_0 + ...
  void (*weighted_sum)(const S* const* rows, const S* weights, int64_t tasks, int64_t count, S* out, bool streams);
  Forming<S> forming;
};

struct Isa {
  const char* name;
  int64_t lanes;
  int64_t paired_tasks;
  Compute<float> f32;
  Compute<double> f64;
  void (*load_bf16)(const uint16_t* from, int64_t count, float* to);
  void (*load_f16)(const uint16_t* from, int64_t count, float* to);
  void (*store_bf16)(const float* from, int64_t count, uint16_t* to);  // round to nearest even
  void (*store_f16)(const float* from, int64_t count, uint16_t* to);
};

template <class S>
const Compute<S>& compute(const Isa& isa);
template <>
inline const Compute<float>& compute(const Isa& isa) {
  return isa.f32;
}
template <>
inline const Compute<double>& compute(const Isa& isa) {
  return isa.f64;
}

const Isa& generic_isa();
const Isa& avx2_isa();    // x86-64 only
const Isa& avx512_isa();  // x86-64 only

// The widest instruction set of this machine, or the one that FASTMTL_CPU_ISA names (generic, avx2, avx512).
// Returns null and a message where the named one is unknown or not supported here. Reads the variable at every call.
const Isa* select_isa(const char** error);

}  // namespace fastmtl
