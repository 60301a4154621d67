#include "products.h"

#include <cmath>

#include "chunks.h"

namespace fastmtl {
namespace {

// Values of a block times the square roots of their samples' weights.
template <class S>
void scale(const S* values, const S* weights, const Block& block, S* to) {
  for (int64_t b = 0; b < block.samples; ++b, values += block.positions, to += block.positions) {
    const S factor = std::sqrt(weights[b]);
    for (int64_t i = 0; i < block.positions; ++i) to[i] = factor * values[i];
  }
}

}  // namespace

template <class S>
void cross_gram(const Isa& isa, const Executor& parallel, const Column& left, const Column& right, double* result) {
  const std::vector<int64_t> rows = present_tasks(left.tensors), columns = present_tasks(right.tensors);
  const int64_t height = rows.size(), width = columns.size(), total = right.tensors.size();
  const Chunks chunks({right.positions}, height + width, sizeof(S));
  const int64_t size = height * width;
  std::vector<double> partial(chunks.units() * size, 0.0);
  parallel(chunks.units(), [&](int64_t begin, int64_t end) {
    Rows<S> left_rows(isa, height, chunks.elements()), right_rows(isa, width, chunks.elements());
    Buffer<double> lanes(size * isa.lanes);
    int64_t last = -1;
    const auto flush = [&] {
      for (int64_t i = 0; i < size && last >= 0; ++i)
        partial[last * size + i] = folded(lanes + i * isa.lanes, isa.lanes);
    };
    chunks.of_units(begin, end, [&](int64_t unit, int64_t, const Block& block, int64_t, const Block&) {
      if (unit != last) {
        flush();
        std::fill_n(static_cast<double*>(lanes), size * isa.lanes, 0.0);
        last = unit;
      }
      const S* const* a = left_rows.load(left, rows, block);
      compute<S>(isa).cross(a, height, right_rows.load(right, columns, block), width, block.count(), lanes);
    });
    flush();
  });
  std::fill_n(result, left.tensors.size() * total, 0.0);
  for (int64_t i = 0; i < height; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      for (int64_t unit = 0; unit < chunks.units(); ++unit)
        result[rows[i] * total + columns[j]] += partial[unit * size + i * width + j];
    }
  }
}

template <class S>
void sample_gram(const Isa& isa, const Executor& parallel, const Column& column, int64_t samples, const S* weights,
                 double* result) {
  const std::vector<int64_t> present = present_tasks(column.tensors);
  const int64_t tasks = column.tensors.size(), count = present.size(), size = count * count;
  std::fill_n(result, tasks * tasks, 0.0);
  if (samples == 0 || column.positions == 0) return;
  // Pieces are chunks of a sample each, or several samples where these are short; a unit is a range of pieces.
  const int64_t chunk = chunk_elements(count, sizeof(S));
  const bool short_samples =
      column.positions <= chunk / 2 && std::all_of(weights, weights + samples, [](S weight) { return weight >= 0; });
  const int64_t together = short_samples ? chunk / column.positions : 1;
  const int64_t elements = short_samples ? together * column.positions : std::min(column.positions, chunk);
  const int64_t per_sample = ceil_div(column.positions, elements), pieces = ceil_div(samples, together) * per_sample;
  const int64_t units = std::min(pieces, wanted_units(count * samples * column.positions * sizeof(S)));
  std::vector<double> partial(units * size);
  parallel(units, [&](int64_t begin, int64_t end) {
    Rows<S> rows(isa, count, elements);
    const int64_t places = size * isa.lanes, pitch = padded<S>(elements);
    Buffer<double> lanes(places), sums(places);
    Buffer<S> scaled(short_samples ? count * pitch : 0);
    std::vector<const S*> scaled_rows(count);
    for (int64_t r = 0; r < count; ++r) scaled_rows[r] = scaled + r * pitch;
    for (int64_t unit = begin; unit < end; ++unit) {
      std::fill_n(static_cast<double*>(sums), places, 0.0);
      for (int64_t piece = pieces * unit / units; piece < pieces * (unit + 1) / units; ++piece) {
        if (short_samples) {
          const int64_t first = piece * together;
          const Block block{first, std::min(together, samples - first), 0, column.positions};
          const S* const* values = rows.load(column, present, block);
          for (int64_t r = 0; r < count; ++r) scale(values[r], weights + first, block, scaled + r * pitch);
          compute<S>(isa).gram(scaled_rows.data(), count, block.count(), sums, {});
          continue;
        }
        const int64_t sample = piece / per_sample, position = piece % per_sample * elements;
        const Block block{sample, 1, position, std::min(elements, column.positions - position)};
        std::fill_n(static_cast<double*>(lanes), places, 0.0);
        compute<S>(isa).gram(rows.load(column, present, block), count, block.count(), lanes, {});
        const double weight = weights[sample];
        for (int64_t l = 0; l < places; ++l) sums[l] += weight * lanes[l];
      }
      fold(sums, count, isa.lanes, &partial[unit * size]);
    }
  });
  add_up(partial.data(), units, present, tasks, 1.0, result);
}

#define FASTMTL_INSTANTIATE(S)                                                                     \
  template void cross_gram<S>(const Isa&, const Executor&, const Column&, const Column&, double*); \
  template void sample_gram<S>(const Isa&, const Executor&, const Column&, int64_t, const S*, double*);
FASTMTL_INSTANTIATE(float)
FASTMTL_INSTANTIATE(double)

}  // namespace fastmtl
