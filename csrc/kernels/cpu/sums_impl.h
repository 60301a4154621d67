// Sums of rows, with weights or with the rows' squares.
#pragma once

#include "vectors_impl.h"

namespace fastmtl {
namespace {

template <class S>
void square(const S* row, int64_t count, double* lanes) {
  Vector<S> sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kWidth<S> <= count; i += 4 * kWidth<S>) {
    FASTMTL_UNROLL for (int u = 0; u < 4; ++u) {
      const Vector<S> x = load(row + i + u * kWidth<S>);
      sums[u] += x * x;
    }
  }
  for (; i + kWidth<S> <= count; i += kWidth<S>) {
    const Vector<S> x = load(row + i);
    sums[0] += x * x;
  }
  double rest = 0;
  for (; i < count; ++i) rest += static_cast<double>(row[i]) * static_cast<double>(row[i]);
  add_to_lanes(lanes, (sums[0] + sums[1]) + (sums[2] + sums[3]));
  lanes[0] += rest;
}

// Calls step(N, i) for groups of N vectors: `step` keeps N results in registers while it runs over the tasks.
template <class S, class Wide, class Narrow>
inline void in_groups(int64_t begin, int64_t end, const Wide& wide, const Narrow& narrow) {
  int64_t i = begin;
  for (; i + 4 * kWidth<S> <= end; i += 4 * kWidth<S>) wide(i);
  for (; i < end; ++i) narrow(i);
}

template <class S>
inline void store_group(S* to, const Vector<S>* values, bool streams) {
  FASTMTL_UNROLL for (int u = 0; u < 4; ++u) streams ? stream(to + u * kWidth<S>, values[u])
                                                     : store(to + u * kWidth<S>, values[u]);
}

// The squares of a group of vectors go through one accumulator a row, in a block short enough for S.
template <class S, bool Squares>
inline void sum_block(const S* const* rows, int64_t tasks, int64_t begin, int64_t end, int64_t count, S* out,
                      bool streams, Vector<S>* squares, double* lanes, const Prefetch& ahead) {
  const int64_t turn = count - ahead.distance, bytes = 4 * kWidth<S> * ahead.bytes_per_element;
  const auto wide = [&](int64_t i) {
    Vector<S> total[4], x[4];
    const auto load_row = [&](int64_t k) {
      FASTMTL_UNROLL for (int u = 0; u < 4; ++u) x[u] = load(rows[k] + i + u * kWidth<S>);
      if (Squares) squares[k] += (x[0] * x[0] + x[1] * x[1]) + (x[2] * x[2] + x[3] * x[3]);
    };
    load_row(0);
    FASTMTL_UNROLL for (int u = 0; u < 4; ++u) total[u] = x[u];
    for (int64_t k = 1; k < tasks; ++k) {
      load_row(k);
      FASTMTL_UNROLL for (int u = 0; u < 4; ++u) total[u] += x[u];
    }
    for (int64_t k = 0; k < tasks && ahead.next != nullptr; ++k) {
      const char* from = i < turn ? reinterpret_cast<const char*>(rows[k] + i + ahead.distance)
                                  : ahead.next[k] + (i - turn) * ahead.bytes_per_element;
      for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(from + line, 0, 3);
    }
    store_group(out + i, total, streams);
  };
  const auto narrow = [&](int64_t i) {
    S total = rows[0][i];
    for (int64_t k = 1; k < tasks; ++k) total += rows[k][i];
    for (int64_t k = 0; Squares && k < tasks; ++k)
      lanes[k * kDoubles] += static_cast<double>(rows[k][i]) * static_cast<double>(rows[k][i]);
    out[i] = total;
  };
  in_groups<S>(begin, end, wide, narrow);
}

template <class S>
void sum(const S* const* rows, int64_t tasks, int64_t count, S* out, const Prefetch& ahead) {
  sum_block<S, false>(rows, tasks, 0, count, count, out, false, nullptr, nullptr, ahead);
}

template <class S>
void sum_square(const S* const* rows, int64_t tasks, int64_t count, S* out, bool streams, double* lanes,
                const Prefetch& ahead) {
  constexpr int64_t kRows = 64;
  streams = streams && is_aligned(out);
  if (tasks > kRows) {  // more than the accumulators' place
    for (int64_t k = 0; k < tasks; ++k) square(rows[k], count, lanes + k * kDoubles);
    return sum(rows, tasks, count, out, ahead);
  }
  in_chains<S>(count, [&](int64_t begin, int64_t end) {
    Vector<S> squares[kRows];
    for (int64_t k = 0; k < tasks; ++k) squares[k] = Vector<S>{};
    sum_block<S, true>(rows, tasks, begin, end, count, out, streams, squares, lanes, ahead);
    for (int64_t k = 0; k < tasks; ++k) add_to_lanes(lanes + k * kDoubles, squares[k]);
  });
  if (streams) sent();
}

inline void add_as_doubles(Vector<double> values, double* sums) { store(sums, load(sums) + values); }

inline void add_as_doubles(Vector<float> values, double* sums) {
  VectorOf<float>::half halves[2];
  std::memcpy(halves, &values, sizeof values);
  FASTMTL_UNROLL for (int h = 0; h < 2; ++h)
      add_as_doubles(__builtin_convertvector(halves[h], Vector<double>), sums + h * kDoubles);
}

template <class S>
void add_samples(const S* rows, int64_t samples, int64_t pitch, int64_t count, double* sums) {
  for (int64_t first = 0; first < samples; first += kFloatSamples) {
    const S* from = rows + first * pitch;
    const int64_t few = samples - first < kFloatSamples ? samples - first : kFloatSamples;
    in_groups<S>(
        0, count,
        [&](int64_t i) {
          Vector<S> total[4] = {};
          for (int64_t s = 0; s < few; ++s) {
            FASTMTL_UNROLL for (int u = 0; u < 4; ++u) total[u] += load(from + s * pitch + i + u * kWidth<S>);
          }
          FASTMTL_UNROLL for (int u = 0; u < 4; ++u) add_as_doubles(total[u], sums + i + u * kWidth<S>);
        },
        [&](int64_t i) {
          double total = 0;
          for (int64_t s = 0; s < few; ++s) total += static_cast<double>(from[s * pitch + i]);
          sums[i] += total;
        });
  }
}

template <class S>
void weighted_sum(const S* const* rows, const S* weights, int64_t tasks, int64_t count, S* out, bool streams) {
  streams = streams && is_aligned(out);
  in_groups<S>(
      0, count,
      [&](int64_t i) {
        Vector<S> total[4] = {};
        for (int64_t k = 0; k < tasks; ++k) {
          FASTMTL_UNROLL for (int u = 0; u < 4; ++u) total[u] += weights[k] * load(rows[k] + i + u * kWidth<S>);
        }
        store_group(out + i, total, streams);
      },
      [&](int64_t i) {
        S total = 0;
        for (int64_t k = 0; k < tasks; ++k) total += weights[k] * rows[k][i];
        out[i] = total;
      });
  if (streams) sent();
}

}  // namespace
}  // namespace fastmtl
