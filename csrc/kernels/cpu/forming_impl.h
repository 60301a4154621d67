// Tiles of left^T right, whose sums stay in registers.
#pragma once

#include "vectors_impl.h"

namespace fastmtl {
namespace {

// Sums fill three quarters of the registers, of which AVX-512 has 32 and the others 16: enough that no addition waits
// for the one before it, and that loads are no more than the multiply-adds.
constexpr int kFormRows = kVectorBytes == 64 ? 12 : 6;
constexpr int kFormVectors = 2;

template <class S, int Vectors>
void form(const S* left, const S* right, int64_t count, S* out, int64_t pitch, bool add) {
  Vector<S> sums[kFormRows][Vectors] = {};
  for (int64_t b = 0; b < count; ++b, left += kFormRows, right += Vectors * kWidth<S>) {
    Vector<S> row[Vectors];
    FASTMTL_UNROLL for (int v = 0; v < Vectors; ++v) row[v] = load(right + v * kWidth<S>);
    FASTMTL_UNROLL for (int r = 0; r < kFormRows; ++r) {
      FASTMTL_UNROLL for (int v = 0; v < Vectors; ++v) sums[r][v] += row[v] * left[r];
    }
  }
  FASTMTL_UNROLL for (int r = 0; r < kFormRows; ++r) {
    FASTMTL_UNROLL for (int v = 0; v < Vectors; ++v) {
      S* to = out + r * pitch + v * kWidth<S>;
      store(to, add ? load<S>(to) + sums[r][v] : sums[r][v]);
    }
  }
}

// As many samples at a time as a vector has places: their rows fill vectors whose places repeat with that.
template <class S>
void sum_left(const S* left, int64_t count, S* out) {
  Vector<S> sums[kFormRows] = {};
  int64_t b = 0;
  for (; b + kWidth<S> <= count; b += kWidth<S>) {
    FASTMTL_UNROLL for (int r = 0; r < kFormRows; ++r) sums[r] += load(left + b * kFormRows + r * kWidth<S>);
  }
  S places[kFormRows * kWidth<S>];
  FASTMTL_UNROLL for (int r = 0; r < kFormRows; ++r) store(places + r * kWidth<S>, sums[r]);
  for (int r = 0; r < kFormRows; ++r) {
    S sum = 0;
    for (int64_t i = 0; i < kWidth<S>; ++i) sum += places[i * kFormRows + r];
    for (int64_t i = b; i < count; ++i) sum += left[i * kFormRows + r];
    out[r] = sum;
  }
}

template <class S, int64_t Columns>
void pack(const S* from, int64_t pitch, int64_t step, int64_t given, int64_t count, S* to) {
  for (int64_t b = 0; b < count; ++b, from += pitch, to += Columns) {
    if (step == 1 && given >= Columns) {
      std::memcpy(to, from, Columns * sizeof(S));
      continue;
    }
    for (int64_t i = 0; i < Columns; ++i) to[i] = i < given ? from[i * step] : 0;
  }
}

template <class S>
constexpr Forming<S> kForming = {kFormRows,
                                 kFormVectors * kWidth<S>,
                                 form<S, kFormVectors>,
                                 form<S, kFormVectors / 2>,
                                 sum_left<S>,
                                 pack<S, kFormRows>,
                                 pack<S, kFormVectors * kWidth<S>>,
                                 pack<S, kFormVectors / 2 * kWidth<S>>};

}  // namespace
}  // namespace fastmtl
