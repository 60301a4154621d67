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
                                 pack<S, kFormRows>,
                                 pack<S, kFormVectors * kWidth<S>>,
                                 pack<S, kFormVectors / 2 * kWidth<S>>};

}  // namespace
}  // namespace fastmtl
