// The functions of the Isa table, written once on vectors of FASTMTL_VECTOR_BYTES; the fused one of the fork is here.
#pragma once

#include "convert_impl.h"
#include "forming_impl.h"
#include "products_impl.h"
#include "sums_impl.h"

namespace fastmtl {
namespace {

// What a tile on the diagonal does beyond its products: its rows are added to the output of their sample and to the
// accumulators, which all samples share.
template <class S>
struct Additions {
  S *const *before, *const *out;  // of a sample: the sum of the rows before these, and where it goes with these
  S* accumulators;
  int64_t pitch;
};

// `First`: these are the first rows of the sum; `Set`: the accumulators hold nothing yet; `Only`: as of gram_tile;
// `Streams`: the output is written past the caches, when all rows are added. Rows of the same task of several samples
// lie `tasks` pointers apart.
template <class S, int R, int Samples, bool First, bool Set, bool Only, bool Streams>
void fused_tile(const S* const* rows, int64_t begin, int64_t end, const Additions<S>& to, double* lanes, int64_t tasks,
                const Ahead<S>& next) {
  const Ahead<S> ahead = next;  // copies: the stores below might change what is behind a reference
  const S* row[Samples][R];
  const S* before[Samples];
  S *out[Samples], *accumulator[R];
  FASTMTL_UNROLL for (int s = 0; s < Samples; ++s) {
    before[s] = to.before[s];
    out[s] = to.out[s];
    FASTMTL_UNROLL for (int k = 0; k < R; ++k) row[s][k] = rows[s * tasks + k];
  }
  FASTMTL_UNROLL for (int k = 0; k < R; ++k) accumulator[k] = to.accumulators + k * to.pitch;
  Products<S, R, R, true, 1> products;
  const auto start = [&](int64_t i) {
    if (Samples > 1) return;  // their rows are streams enough for the memory
    ahead.template of_rows<Only>(i);
    // Stores leave in order: one that misses the cache would hold up those to the accumulators.
    if (First && !Streams) ahead.of_out(i);
  };
  in_vectors<S, kLine, 1>(begin, end, start, [&](int64_t i, int set) __attribute__((always_inline)) {
    Vector<S> sum[R];
    FASTMTL_UNROLL for (int s = 0; s < Samples; ++s) {
      Vector<S> x[R];
      FASTMTL_UNROLL for (int k = 0; k < R; ++k) x[k] = load(row[s][k] + i);
      Vector<S> total = First ? x[0] : load(before[s] + i) + x[0];
      FASTMTL_UNROLL for (int k = 1; k < R; ++k) total += x[k];
      Streams && (Only || !First) ? stream(out[s] + i, total) : store(out[s] + i, total);
      FASTMTL_UNROLL for (int k = 0; k < R; ++k) sum[k] = s == 0 ? x[k] : sum[k] + x[k];
      FASTMTL_UNROLL for (int c = 0; c < R; ++c) products.add_column(set, x, c, x[c]);
    }
    FASTMTL_UNROLL for (int k = 0; k < R; ++k)
        store(accumulator[k] + i, Set ? sum[k] : load<S>(accumulator[k] + i) + sum[k]);
  });
  products.to_lanes(lanes, tasks);
}

template <class S>
using FusedTile = void (*)(const S* const*, int64_t, int64_t, const Additions<S>&, double*, int64_t, const Ahead<S>&);

template <class S, int Samples, bool First, bool Set, bool Only, bool Streams>
constexpr FusedTile<S> kFusedTiles[] = {
    fused_tile<S, 1, Samples, First, Set, Only, Streams>, fused_tile<S, 2, Samples, First, Set, Only, Streams>,
    fused_tile<S, 3, Samples, First, Set, Only, Streams>, fused_tile<S, 4, Samples, First, Set, Only, Streams>,
    fused_tile<S, 5, Samples, First, Set, Only, Streams>,
};

template <class S, int Samples, bool First, bool Only>
const FusedTile<S>* fused_tiles(bool set, bool streams) {
  if (streams)
    return set ? kFusedTiles<S, Samples, First, true, Only, true> : kFusedTiles<S, Samples, First, false, Only, true>;
  return set ? kFusedTiles<S, Samples, First, true, Only, false> : kFusedTiles<S, Samples, First, false, Only, false>;
}

template <class S>
void sum_accumulate_gram(const S* const* rows, int64_t samples, int64_t tasks, int64_t count, S* const* out,
                         bool streams, S* accumulators, int64_t pitch, bool first, double* lanes,
                         const Prefetch& prefetch) {
  const int64_t whole = count - count % kWidth<S>;
  for (int64_t s = 0; s < samples; ++s) streams = streams && is_aligned(out[s]);
  alignas(64) S sums[kChain * kWidth<S>];  // of the rows so far, of what is streamed when all are added
  const auto block = [&](int64_t begin, int64_t end) {
    if (samples == 2) {
      const Ahead<S> nothing(Prefetch{}, rows, 0, 0, 0, nullptr);
      fused_tiles<S, 2, true, true>(first, streams)[tasks - 1](rows, begin, end, {out, out, accumulators, pitch}, lanes,
                                                               tasks, nothing);
      return;
    }
    S* const so_far = streams ? sums - begin : *out;
    const auto diagonal = [&](int64_t i, int64_t size, const Ahead<S>& ahead) {
      const bool last = i + size == tasks;
      const FusedTile<S>* tiles = size == tasks ? fused_tiles<S, 1, true, true>(first, streams)
                                  : i == 0      ? fused_tiles<S, 1, true, false>(first, streams)
                                                : fused_tiles<S, 1, false, false>(first, last && streams);
      tiles[size - 1](rows + i, begin, end, {&so_far, last ? out : &so_far, accumulators + i * pitch, pitch},
                      lanes + (i * tasks + i) * kDoubles, tasks, ahead);
    };
    gram_vectors<S>(rows, tasks, begin, end, lanes, prefetch, count, *out, diagonal);
  };
  in_chains<S>(whole, block, chain_of(tasks));
  if (streams) sent();
  if (whole == count) return;
  for (int64_t s = 0; s < samples; ++s) {
    const S* const* row = rows + s * tasks;
    gram_rest(row, tasks, whole, count - whole, lanes);
    for (int64_t i = whole; i < count; ++i) {
      S total = row[0][i];
      for (int64_t k = 0; k < tasks; ++k) {
        if (k > 0) total += row[k][i];
        S* place = accumulators + k * pitch + i;
        *place = first && s == 0 ? row[k][i] : *place + row[k][i];
      }
      out[s][i] = total;
    }
  }
}

template <class S>
constexpr Compute<S> kCompute = {
    gram<S>,         cross<S>,   square<S>, sum<S>, sum_square<S>, add_samples<S>, sum_accumulate_gram<S>,
    weighted_sum<S>, kForming<S>};

constexpr Isa make_isa(const char* name) {
  return {name, kDoubles, kMostRows, kCompute<float>, kCompute<double>, load_bf16, load_f16, store_bf16, store_f16};
}

}  // namespace
}  // namespace fastmtl
