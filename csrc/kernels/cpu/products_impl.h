// Gram matrices and inner products of rows, in tiles whose products stay in registers.
#pragma once

#include "vectors_impl.h"

namespace fastmtl {
namespace {

// Rows to prefetch while one tile runs, into the L2 cache: L1 is full of what is being computed. The CPU drops
// prefetches while too many lines are under way, so rows are asked for twice: far ahead, and once more nearby.
template <class S>
struct Ahead {
  static constexpr int64_t kNearby = 1536 / sizeof(S);
  static constexpr int kPlaces = 2 * kMostRows;
  // Where element 0 would lie, so far ahead, before and after the turn.
  const char *within[kPlaces], *beyond[kPlaces];
  const char *out_within, *out_beyond;
  int64_t turn, step;  // the first element whose place is beyond the end; bytes per element

  // Rows [first, last), at most kMostRows. There is always something to prefetch, if only what is in the cache: a loop
  // over as many rows as there are takes more time, and GCC 12 may drop it as one without effect.
  Ahead(const Prefetch& ahead, const S* const* rows, int64_t count, int64_t first, int64_t last, const S* out)
      : turn(count - ahead.distance), step(ahead.next == nullptr ? 0 : ahead.bytes_per_element) {
    for (int i = 0; i < kPlaces; ++i) within[i] = beyond[i] = reinterpret_cast<const char*>(rows[0]);
    const bool again = ahead.distance > kNearby && ahead.distance < count;
    for (int64_t i = 0; i < last - first && ahead.next != nullptr; ++i) {
      within[i] = reinterpret_cast<const char*>(rows[first + i] + ahead.distance);
      beyond[i] = ahead.next[first + i] - turn * step;
      const int64_t near = last - first + i;
      if (again) within[near] = beyond[near] = reinterpret_cast<const char*>(rows[first + i] + kNearby);
    }
    out_within = out_beyond = reinterpret_cast<const char*>(rows[0]);
    if (ahead.out != nullptr) {
      out_within = reinterpret_cast<const char*>(out + ahead.distance);
      out_beyond = ahead.out - turn * step;
    }
  }
  // A tile that is the only one takes all rows, one of many its share and as much of that again as there is place.
  template <bool Only>
  inline void of_rows(int64_t element) const {
    const char* const* from = element < turn ? within : beyond;
    FASTMTL_UNROLL for (int i = 0; i < (Only ? kPlaces : kMostRows); ++i)
        __builtin_prefetch(from[i] + element * step, 0, 2);
  }
  inline void of_out(int64_t element) const {
    __builtin_prefetch((element < turn ? out_within : out_beyond) + element * step, 1, 3);
  }
};

// Calls start(i) before each whole group of vectors of [begin, end), and step(i, set) for every vector, of sets that
// take turns.
template <class S, int Group, int Sets, class Start, class Step>
inline __attribute__((always_inline)) void in_vectors(int64_t begin, int64_t end, const Start& start,
                                                      const Step& step) {
  int64_t i = begin;
  for (; i + Group * kWidth<S> <= end; i += Group * kWidth<S>) {
    start(i);
    FASTMTL_UNROLL for (int u = 0; u < Group; ++u) step(i + u * kWidth<S>, u % Sets);
  }
  for (; i < end; i += kWidth<S>) step(i, 0);
}

// A tile's sums of products, R x C or the upper triangle of R x R.
template <class S, int R, int C, bool Diagonal, int kSets>
struct Products {
  Vector<S> sums[kSets][R][C] = {};

  inline __attribute__((always_inline)) void add_column(int set, const Vector<S>* x, int c, Vector<S> y) {
    FASTMTL_UNROLL for (int r = 0; r < R; ++r) {
      if (!Diagonal || r <= c) sums[set][r][c] += x[r] * y;
    }
  }
  inline __attribute__((always_inline)) void to_lanes(double* lanes, int64_t tasks) {
    FASTMTL_UNROLL for (int r = 0; r < R; ++r) {
      FASTMTL_UNROLL for (int c = Diagonal ? r : 0; c < C; ++c) {
        Vector<S> sum = sums[0][r][c];
        FASTMTL_UNROLL for (int set = 1; set < kSets; ++set) sum += sums[set][r][c];
        add_to_lanes(lanes + (r * tasks + c) * kDoubles, sum);
      }
    }
  }
};

// `Only`: no other tile reads these rows.
template <class S, int R, int C, bool Diagonal, bool Only>
void gram_tile(const S* const* a, const S* const* b, int64_t begin, int64_t end, double* lanes, int64_t tasks,
               const Ahead<S>& ahead) {
  const S *left[R], *right[C];
  FASTMTL_UNROLL for (int r = 0; r < R; ++r) left[r] = a[r];
  FASTMTL_UNROLL for (int c = 0; c < C; ++c) right[c] = b[c];
  // With few sums one would wait for the addition before it: two sets take turns.
  constexpr int kSets = kLine > 1 && 2 * (Diagonal ? R * (R + 1) / 2 : R * C) <= kTile * kMostRows ? 2 : 1;
  Products<S, R, C, Diagonal, kSets> products;
  const auto start = [&](int64_t i) { ahead.template of_rows<Only>(i); };
  in_vectors<S, kLine, kSets>(begin, end, start, [&](int64_t i, int set) __attribute__((always_inline)) {
    Vector<S> x[R];
    FASTMTL_UNROLL for (int r = 0; r < R; ++r) x[r] = load(left[r] + i);
    FASTMTL_UNROLL for (int c = 0; c < C; ++c)
        products.add_column(set, x, c, Diagonal ? x[c < R ? c : 0] : load(right[c] + i));
  });
  products.to_lanes(lanes, tasks);
}

template <class S>
using Tile = void (*)(const S* const*, const S* const*, int64_t, int64_t, double*, int64_t, const Ahead<S>&);

template <class S, bool Only>
constexpr Tile<S> kSquareTiles[] = {
    gram_tile<S, 1, 1, true, Only>, gram_tile<S, 2, 2, true, Only>, gram_tile<S, 3, 3, true, Only>,
    gram_tile<S, 4, 4, true, Only>, gram_tile<S, 5, 5, true, Only>,
};

template <class S, int R>
constexpr Tile<S> tile_of_rows(int64_t columns) {
  constexpr Tile<S> tiles[] = {gram_tile<S, R, 1, false, false>, gram_tile<S, R, 2, false, false>,
                               gram_tile<S, R, 3, false, false>, gram_tile<S, R, 4, false, false>,
                               gram_tile<S, R, 5, false, false>};
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

// The tiles of the upper triangle. Tasks are cut into blocks of nearly equal size, at most kTile; where there are
// `spare` rows, the last one is larger by as many rather than that there is one block more.
struct Tiling {
  int64_t tasks, blocks, tiles, tile = 0;

  explicit Tiling(int64_t count, int spare = kSpare)
      : tasks(count),
        blocks(count < kTile ? count > 0 : (count + kTile - 1 - spare) / kTile),
        tiles(blocks * (blocks + 1) / 2) {}
  int64_t begin(int64_t block) const { return block * tasks / blocks; }
  int64_t size(int64_t block) const { return begin(block + 1) - begin(block); }

  // Each tile prefetches its share of the rows, at most kTile of them where there are several, so that memory and
  // arithmetic are busy at the same time.
  template <class S>
  Ahead<S> share(const Prefetch& ahead, const S* const* rows, int64_t count, const S* out) {
    const int64_t first = tile * tasks / tiles;
    ++tile;
    return {ahead, rows, count, first, tile * tasks / tiles, out};
  }
};

// Vectors that all tiles go over before the next ones. Where several tiles read the same rows, these are to stay in the
// L1 cache from one tile to the next; those of many tasks would not, and starting a tile takes time.
inline int64_t chain_of(int64_t tasks) { return tasks > kMostRows && tasks <= 16 ? 48 : kChain; }

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

// What is left after the last whole vector: copied and padded with zeros, a few rows' pairs at a time.
template <class S>
void gram_rest(const S* const* rows, int64_t tasks, int64_t begin, int64_t rest, double* lanes) {
  alignas(64) S padded[2][kMostRows][kWidth<S>];
  const S* pointers[2][kMostRows];
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
    const Ahead<S> ahead(Prefetch{}, pointers[0], 0, 0, 0, pointers[0][0]);
    kSquareTiles<S, true>[height - 1](pointers[0], pointers[0], 0, 1, lanes + (i* tasks + i)* kDoubles, tasks, ahead);
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
  const auto block = [&](int64_t begin, int64_t end) {
    const auto diagonal = [&](int64_t i, int64_t size, const Ahead<S>& ahead) {
      const Tile<S>* tiles = size == tasks ? kSquareTiles<S, true> : kSquareTiles<S, false>;
      tiles[size - 1](rows + i, rows + i, begin, end, lanes + (i * tasks + i) * kDoubles, tasks, ahead);
    };
    gram_vectors<S>(rows, tasks, begin, end, lanes, prefetch, count, nullptr, diagonal);
  };
  in_chains<S>(whole, block, chain_of(tasks));
  if (whole < count) gram_rest(rows, tasks, whole, count - whole, lanes);
}

// All products of a few rows on the left with a few on the right: what `visit(tile, i, j)` is called for.
template <class S, class Visit>
inline void for_each_cross_tile(int64_t rows, int64_t columns, const Visit& visit) {
  const Tiling left(rows, 0), right(columns, 0);
  for (int64_t bi = 0; bi < left.blocks; ++bi) {
    for (int64_t bj = 0; bj < right.blocks; ++bj)
      visit(tile_of<S>(left.size(bi), right.size(bj)), left.begin(bi), right.begin(bj), left.size(bi), right.size(bj));
  }
}

template <class S>
void cross(const S* const* left, int64_t rows, const S* const* right, int64_t columns, int64_t count, double* lanes) {
  const int64_t whole = count - count % kWidth<S>, rest = count - whole;
  const Ahead<S> nothing(Prefetch{}, left, 0, 0, 0, nullptr);
  in_chains<S>(whole, [&](int64_t begin, int64_t end) {
    for_each_cross_tile<S>(rows, columns, [&](Tile<S> tile, int64_t i, int64_t j, int64_t, int64_t) {
      tile(left + i, right + j, begin, end, lanes + (i * columns + j) * kDoubles, columns, nothing);
    });
  });
  if (rest == 0) return;
  alignas(64) S padded[2][kMostRows][kWidth<S>] = {};  // zeros after the rest
  const S* pointers[2][kMostRows];
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

}  // namespace
}  // namespace fastmtl
