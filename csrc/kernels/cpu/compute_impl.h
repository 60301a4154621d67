// The functions of the Isa table, written once on vectors of FASTMTL_VECTOR_BYTES.
//
// Included by one file per instruction set. Everything is in an anonymous namespace and nothing inline comes from the
// standard library: code compiled for AVX-512 must never be merged by the linker into what another CPU runs.
#pragma once

#include <cstdint>
#include <cstring>

#include "convert_impl.h"
#include "isa.h"

#define FASTMTL_UNROLL _Pragma("GCC unroll 8")

namespace fastmtl {
namespace {

constexpr int64_t kVectorBytes = FASTMTL_VECTOR_BYTES;
constexpr int64_t kDoubles = kVectorBytes / 8;
// Tiles of the Gram matrix keep kTile * kTile accumulators and kTile + 1 operands in registers (32 of AVX-512, else
// 16).
constexpr int kTile = kVectorBytes == 64 ? 5 : 3;
constexpr int64_t kChain = 128;  // products added up in one lane of S before they go into double

template <class S>
struct VectorOf {
  typedef S type __attribute__((vector_size(FASTMTL_VECTOR_BYTES)));
  typedef S half __attribute__((vector_size(FASTMTL_VECTOR_BYTES / 2)));
  typedef S unaligned __attribute__((vector_size(FASTMTL_VECTOR_BYTES), aligned(sizeof(S)), may_alias));
};
template <class S>
using Vector = typename VectorOf<S>::type;
template <class S>
constexpr int64_t kWidth = kVectorBytes / static_cast<int64_t>(sizeof(S));

template <class S>
inline Vector<S> load(const S* from) {
  return *reinterpret_cast<const typename VectorOf<S>::unaligned*>(from);
}

template <class S>
inline void store(S* to, Vector<S> value) {
  *reinterpret_cast<typename VectorOf<S>::unaligned*>(to) = value;
}

inline void add_to_lanes(double* lanes, Vector<double> value) { store(lanes, load(lanes) + value); }

inline void add_to_lanes(double* lanes, Vector<float> value) {
#if FASTMTL_VECTOR_BYTES == 64  // GCC 12 makes a detour of the generic form
  __m256 halves[2];
  std::memcpy(halves, &value, sizeof value);
  const __m256 folded = halves[0] + halves[1];
  add_to_lanes(lanes, _mm512_maskz_cvtps_pd(0xff, folded));
#elif FASTMTL_VECTOR_BYTES == 32
  const __m128 folded = _mm256_castps256_ps128(value) + _mm256_extractf128_ps(value, 1);
  add_to_lanes(lanes, _mm256_cvtps_pd(folded));
#else
  VectorOf<float>::half halves[2];
  std::memcpy(halves, &value, sizeof value);
  add_to_lanes(lanes, __builtin_convertvector(halves[0] + halves[1], Vector<double>));
#endif
}

// Rows to prefetch while one tile runs, into the L2 cache: L1 is full of what is being computed.
template <class S, int N>
struct Ahead {
  const char *within[N], *beyond[N];  // where element 0 would lie, so far ahead, before and after the turn
  const char *out_within, *out_beyond;
  int64_t turn, step;  // the first element whose place is beyond the end; bytes per element

  // Rows [first, last). There is always something to prefetch, if only what is in the cache.
  Ahead(const Prefetch& ahead, const S* const* rows, int64_t count, int64_t first, int64_t last, const S* out)
      : turn(count - ahead.distance), step(ahead.next == nullptr ? 0 : ahead.bytes_per_element) {
    for (int i = 0; i < N; ++i) {
      within[i] = beyond[i] = reinterpret_cast<const char*>(rows[0]);
      if (ahead.next == nullptr || first + i >= last) continue;
      within[i] = reinterpret_cast<const char*>(rows[first + i] + ahead.distance);
      beyond[i] = ahead.next[first + i] - turn * step;
    }
    out_within = out_beyond = reinterpret_cast<const char*>(rows[0]);
    if (ahead.out != nullptr) {
      out_within = reinterpret_cast<const char*>(out + ahead.distance);
      out_beyond = ahead.out - turn * step;
    }
  }
  inline void operator()(int64_t element) const {
    const char* const* from = element < turn ? within : beyond;
    FASTMTL_UNROLL for (int i = 0; i < N; ++i) __builtin_prefetch(from[i] + element * step, 0, 2);
  }
  inline void of_out(int64_t element) const {
    __builtin_prefetch((element < turn ? out_within : out_beyond) + element * step, 1, 3);
  }
};

constexpr int kPrefetched = kTile;  // rows a tile, at most

template <class S, int R, int C, bool Diagonal>
void gram_tile(const S* const* a, const S* const* b, int64_t begin, int64_t end, double* lanes, int64_t tasks,
               const Ahead<S, kPrefetched>& ahead) {
  const S *left[R], *right[C];
  FASTMTL_UNROLL for (int r = 0; r < R; ++r) left[r] = a[r];
  FASTMTL_UNROLL for (int c = 0; c < C; ++c) right[c] = b[c];
  Vector<S> products[R][C] = {};
  for (int64_t i = begin; i < end; i += kWidth<S>) {
    Vector<S> x[R];
    FASTMTL_UNROLL for (int r = 0; r < R; ++r) x[r] = load(left[r] + i);
    FASTMTL_UNROLL for (int c = 0; c < C; ++c) {
      const Vector<S> y = Diagonal ? x[c < R ? c : 0] : load(right[c] + i);
      FASTMTL_UNROLL for (int r = 0; r < R; ++r) {
        if (!Diagonal || r <= c) products[r][c] += x[r] * y;
      }
    }
    ahead(i);
  }
  FASTMTL_UNROLL for (int r = 0; r < R; ++r) {
    FASTMTL_UNROLL for (int c = Diagonal ? r : 0; c < C; ++c)
        add_to_lanes(lanes + (r * tasks + c) * kDoubles, products[r][c]);
  }
}

template <class S>
using Tile = void (*)(const S* const*, const S* const*, int64_t, int64_t, double*, int64_t,
                      const Ahead<S, kPrefetched>&);

template <class S>
constexpr Tile<S> kSquareTiles[] = {
    gram_tile<S, 1, 1, true>, gram_tile<S, 2, 2, true>, gram_tile<S, 3, 3, true>,
    gram_tile<S, 4, 4, true>, gram_tile<S, 5, 5, true>,
};

template <class S, int R>
constexpr Tile<S> tile_of_rows(int64_t columns) {
  constexpr Tile<S> tiles[] = {gram_tile<S, R, 1, false>, gram_tile<S, R, 2, false>, gram_tile<S, R, 3, false>,
                               gram_tile<S, R, 4, false>, gram_tile<S, R, 5, false>};
  return tiles[columns - 1];
}

template <class S>
Tile<S> tile_of(int64_t rows, int64_t columns) {
  switch (rows) {
    case 1:
      return tile_of_rows<S, 1>(columns);
    case 2:
      return tile_of_rows<S, 2>(columns);
    case 3:
      return tile_of_rows<S, 3>(columns);
    case 4:
      return tile_of_rows<S, 4>(columns);
    default:
      return tile_of_rows<S, 5>(columns);
  }
}

// The tiles of the upper triangle. Tasks are cut into blocks of nearly equal size.
struct Tiling {
  int64_t tasks, blocks, tiles, tile = 0;

  explicit Tiling(int64_t count)
      : tasks(count), blocks((count + kTile - 1) / kTile), tiles(blocks * (blocks + 1) / 2) {}
  int64_t begin(int64_t block) const { return block * tasks / blocks; }
  int64_t size(int64_t block) const { return begin(block + 1) - begin(block); }

  // Each tile prefetches its share of the rows, so that memory and arithmetic are busy at the same time.
  template <class S>
  Ahead<S, kPrefetched> share(const Prefetch& ahead, const S* const* rows, int64_t count, const S* out) {
    const int64_t first = tile * tasks / tiles;
    ++tile;
    return {ahead, rows, count, first, tile * tasks / tiles, out};
  }
};

// Gram matrix of the elements [begin, end), a multiple of the vector width. The tiles on the diagonal are those of
// `diagonal(block, ahead)`.
template <class S, class Diagonal>
inline void gram_vectors(const S* const* rows, int64_t tasks, int64_t begin, int64_t end, double* lanes,
                         const Prefetch& ahead, int64_t count, const S* out, const Diagonal& diagonal) {
  Tiling tiling(tasks);
  for (int64_t bi = 0; bi < tiling.blocks; ++bi) {
    const int64_t i = tiling.begin(bi);
    diagonal(i, tiling.size(bi), tiling.share(ahead, rows, count, out));
    for (int64_t bj = bi + 1; bj < tiling.blocks; ++bj) {
      const int64_t j = tiling.begin(bj);
      tile_of<S>(tiling.size(bi), tiling.size(bj))(rows + i, rows + j, begin, end, lanes + (i * tasks + j) * kDoubles,
                                                   tasks, tiling.share(ahead, rows, count, out));
    }
  }
}

// Calls run(begin, end) for blocks that are short enough for accumulators in S.
template <class S, class Run>
inline void in_chains(int64_t count, const Run& run) {
  for (int64_t i = 0; i < count; i += kChain * kWidth<S>)
    run(i, i + kChain * kWidth<S> < count ? i + kChain * kWidth<S> : count);
}

// What is left after the last whole vector: copied and padded with zeros, a few rows' pairs at a time.
template <class S>
void gram_rest(const S* const* rows, int64_t tasks, int64_t begin, int64_t rest, double* lanes) {
  alignas(64) S padded[2][kTile][kWidth<S>];
  const S* pointers[2][kTile];
  const Tiling tiling(tasks);
  const auto fill = [&](int side, int64_t first, int64_t size) {
    for (int64_t r = 0; r < size; ++r) {
      std::memset(padded[side][r], 0, sizeof padded[side][r]);
      std::memcpy(padded[side][r], rows[first + r] + begin, rest * sizeof(S));
      pointers[side][r] = padded[side][r];
    }
  };
  for (int64_t bi = 0; bi < tiling.blocks; ++bi) {
    const int64_t i = tiling.begin(bi), height = tiling.size(bi);
    fill(0, i, height);
    const Ahead<S, kPrefetched> ahead(Prefetch{}, pointers[0], 0, 0, 0, pointers[0][0]);
    kSquareTiles<S>[height - 1](pointers[0], pointers[0], 0, 1, lanes + (i* tasks + i)* kDoubles, tasks, ahead);
    for (int64_t bj = bi + 1; bj < tiling.blocks; ++bj) {
      const int64_t j = tiling.begin(bj), width = tiling.size(bj);
      fill(1, j, width);
      tile_of<S>(height, width)(pointers[0], pointers[1], 0, 1, lanes + (i * tasks + j) * kDoubles, tasks, ahead);
    }
  }
}

template <class S>
void gram(const S* const* rows, int64_t tasks, int64_t count, double* lanes, const Prefetch& prefetch) {
  const int64_t whole = count - count % kWidth<S>;
  in_chains<S>(whole, [&](int64_t begin, int64_t end) {
    const auto diagonal = [&](int64_t i, int64_t size, const Ahead<S, kPrefetched>& ahead) {
      kSquareTiles<S>[size - 1](rows + i, rows + i, begin, end, lanes + (i* tasks + i)* kDoubles, tasks, ahead);
    };
    gram_vectors<S>(rows, tasks, begin, end, lanes, prefetch, count, nullptr, diagonal);
  });
  if (whole < count) gram_rest(rows, tasks, whole, count - whole, lanes);
}

// All products of a few rows on the left with a few on the right: what `visit(tile, i, j)` is called for.
template <class S, class Visit>
inline void for_each_cross_tile(int64_t rows, int64_t columns, const Visit& visit) {
  const Tiling left(rows), right(columns);
  for (int64_t bi = 0; bi < left.blocks; ++bi) {
    for (int64_t bj = 0; bj < right.blocks; ++bj)
      visit(tile_of<S>(left.size(bi), right.size(bj)), left.begin(bi), right.begin(bj), left.size(bi), right.size(bj));
  }
}

template <class S>
void cross(const S* const* left, int64_t rows, const S* const* right, int64_t columns, int64_t count, double* lanes) {
  const int64_t whole = count - count % kWidth<S>, rest = count - whole;
  const Ahead<S, kPrefetched> nothing(Prefetch{}, left, 0, 0, 0, nullptr);
  in_chains<S>(whole, [&](int64_t begin, int64_t end) {
    for_each_cross_tile<S>(rows, columns, [&](Tile<S> tile, int64_t i, int64_t j, int64_t, int64_t) {
      tile(left + i, right + j, begin, end, lanes + (i * columns + j) * kDoubles, columns, nothing);
    });
  });
  if (rest == 0) return;
  alignas(64) S padded[2][kTile][kWidth<S>] = {};  // zeros after the rest
  const S* pointers[2][kTile];
  for_each_cross_tile<S>(rows, columns, [&](Tile<S> tile, int64_t i, int64_t j, int64_t height, int64_t width) {
    const auto fill = [&](int side, const S* const* from, int64_t size) {
      for (int64_t r = 0; r < size; ++r) {
        std::memcpy(padded[side][r], from[r] + whole, rest * sizeof(S));
        pointers[side][r] = padded[side][r];
      }
    };
    fill(0, left + i, height);
    fill(1, right + j, width);
    tile(pointers[0], pointers[1], 0, 1, lanes + (i * columns + j) * kDoubles, columns, nothing);
  });
}

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

// The squares of a group of vectors go through one accumulator a row, in a block short enough for S.
template <class S, bool Squares>
inline void sum_block(const S* const* rows, int64_t tasks, int64_t begin, int64_t end, int64_t count, S* out,
                      Vector<S>* squares, double* lanes, const Prefetch& ahead) {
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
    FASTMTL_UNROLL for (int u = 0; u < 4; ++u) store(out + i + u * kWidth<S>, total[u]);
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
  sum_block<S, false>(rows, tasks, 0, count, count, out, nullptr, nullptr, ahead);
}

template <class S>
void sum_square(const S* const* rows, int64_t tasks, int64_t count, S* out, double* lanes, const Prefetch& ahead) {
  constexpr int64_t kRows = 64;
  if (tasks > kRows) {  // more than the accumulators' place
    for (int64_t k = 0; k < tasks; ++k) square(rows[k], count, lanes + k * kDoubles);
    return sum(rows, tasks, count, out, ahead);
  }
  in_chains<S>(count, [&](int64_t begin, int64_t end) {
    Vector<S> squares[kRows];
    for (int64_t k = 0; k < tasks; ++k) squares[k] = Vector<S>{};
    sum_block<S, true>(rows, tasks, begin, end, count, out, squares, lanes, ahead);
    for (int64_t k = 0; k < tasks; ++k) add_to_lanes(lanes + k * kDoubles, squares[k]);
  });
}

// What a tile on the diagonal does beyond its products: R rows are added to `out` and to their accumulators.
template <class S>
struct Additions {
  S* out;
  S* accumulators;
  int64_t pitch;
};

// `First`: these are the first rows of the sum; `Set`: the accumulators hold nothing yet.
template <class S, int R, bool First, bool Set>
void fused_tile(const S* const* rows, int64_t begin, int64_t end, const Additions<S>& to, double* lanes, int64_t tasks,
                const Ahead<S, kPrefetched>& next) {
  const Ahead<S, kPrefetched> ahead = next;  // copies: the stores below might change what is behind a reference
  const S* row[R];
  S *out = to.out, *accumulator[R];
  FASTMTL_UNROLL for (int k = 0; k < R; ++k) {
    row[k] = rows[k];
    accumulator[k] = to.accumulators + k * to.pitch;
  }
  Vector<S> products[R][R] = {};
  for (int64_t i = begin; i < end; i += kWidth<S>) {
    Vector<S> x[R];
    FASTMTL_UNROLL for (int k = 0; k < R; ++k) x[k] = load(row[k] + i);
    Vector<S> total = First ? x[0] : load<S>(out + i) + x[0];
    FASTMTL_UNROLL for (int k = 1; k < R; ++k) total += x[k];
    store(out + i, total);
    FASTMTL_UNROLL for (int k = 0; k < R; ++k)
        store(accumulator[k] + i, Set ? x[k] : load<S>(accumulator[k] + i) + x[k]);
    FASTMTL_UNROLL for (int r = 0; r < R; ++r) {
      FASTMTL_UNROLL for (int c = r; c < R; ++c) products[r][c] += x[r] * x[c];
    }
    ahead(i);
    // Stores leave in order: one that misses the cache would hold up those to the accumulators.
    if (First) ahead.of_out(i);
  }
  FASTMTL_UNROLL for (int r = 0; r < R; ++r) {
    FASTMTL_UNROLL for (int c = r; c < R; ++c) add_to_lanes(lanes + (r * tasks + c) * kDoubles, products[r][c]);
  }
}

template <class S>
using FusedTile = void (*)(const S* const*, int64_t, int64_t, const Additions<S>&, double*, int64_t,
                           const Ahead<S, kPrefetched>&);

template <class S, bool First, bool Set>
constexpr FusedTile<S> kFusedTiles[] = {
    fused_tile<S, 1, First, Set>, fused_tile<S, 2, First, Set>, fused_tile<S, 3, First, Set>,
    fused_tile<S, 4, First, Set>, fused_tile<S, 5, First, Set>,
};

template <class S>
void sum_accumulate_gram(const S* const* rows, int64_t tasks, int64_t count, S* out, S* accumulators, int64_t pitch,
                         bool first, double* lanes, const Prefetch& prefetch) {
  const int64_t whole = count - count % kWidth<S>;
  in_chains<S>(whole, [&](int64_t begin, int64_t end) {
    const auto diagonal = [&](int64_t i, int64_t size, const Ahead<S, kPrefetched>& ahead) {
      const FusedTile<S>* tiles = i == 0 ? (first ? kFusedTiles<S, true, true> : kFusedTiles<S, true, false>)
                                         : (first ? kFusedTiles<S, false, true> : kFusedTiles<S, false, false>);
      tiles[size - 1](rows + i, begin, end, {out, accumulators + i * pitch, pitch}, lanes + (i * tasks + i) * kDoubles,
                      tasks, ahead);
    };
    gram_vectors<S>(rows, tasks, begin, end, lanes, prefetch, count, out, diagonal);
  });
  if (whole == count) return;
  gram_rest(rows, tasks, whole, count - whole, lanes);
  for (int64_t i = whole; i < count; ++i) {
    S total = rows[0][i];
    for (int64_t k = 0; k < tasks; ++k) {
      if (k > 0) total += rows[k][i];
      S* place = accumulators + k * pitch + i;
      *place = first ? rows[k][i] : *place + rows[k][i];
    }
    out[i] = total;
  }
}

template <class S>
void weighted_sum(const S* const* rows, const S* weights, int64_t tasks, int64_t count, S* out) {
  in_groups<S>(
      0, count,
      [&](int64_t i) {
        Vector<S> total[4] = {};
        for (int64_t k = 0; k < tasks; ++k) {
          FASTMTL_UNROLL for (int u = 0; u < 4; ++u) total[u] += weights[k] * load(rows[k] + i + u * kWidth<S>);
        }
        FASTMTL_UNROLL for (int u = 0; u < 4; ++u) store(out + i + u * kWidth<S>, total[u]);
      },
      [&](int64_t i) {
        S total = 0;
        for (int64_t k = 0; k < tasks; ++k) total += weights[k] * rows[k][i];
        out[i] = total;
      });
}

template <class S>
constexpr Compute<S> kCompute = {gram<S>,        cross<S>, square<S>, sum<S>, sum_square<S>, sum_accumulate_gram<S>,
                                 weighted_sum<S>};

constexpr Isa make_isa(const char* name) {
  return {name, kDoubles, kCompute<float>, kCompute<double>, load_bf16, load_f16, store_bf16, store_f16};
}

}  // namespace
}  // namespace fastmtl
