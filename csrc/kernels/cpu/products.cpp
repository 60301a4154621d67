#include "products.h"

#include "chunks.h"

namespace fastmtl {

template <class S>
void cross_gram(const Isa& isa, const Executor& parallel, const Column& left, const Column& right, double* result) {
  const std::vector<int64_t> rows = present_tasks(left), columns = present_tasks(right);
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
  const std::vector<int64_t> present = present_tasks(column);
  const int64_t tasks = column.tensors.size(), count = present.size(), size = count * count;
  std::fill_n(result, tasks * tasks, 0.0);
  if (samples == 0 || column.positions == 0) return;
  // Samples are cut into pieces of a chunk each; a unit is a range of pieces.
  const int64_t elements = std::min(column.positions, chunk_elements(count, sizeof(S)));
  const int64_t per_sample = ceil_div(column.positions, elements), pieces = samples * per_sample;
  const int64_t units = std::min(pieces, wanted_units(count * samples * column.positions * sizeof(S)));
  std::vector<double> partial(units * size, 0.0);
  parallel(units, [&](int64_t begin, int64_t end) {
    Rows<S> rows(isa, count, elements);
    const int64_t places = size * isa.lanes;
    Buffer<double> lanes(places), sums(places);
    for (int64_t unit = begin; unit < end; ++unit) {
      std::fill_n(static_cast<double*>(sums), places, 0.0);
      for (int64_t piece = pieces * unit / units; piece < pieces * (unit + 1) / units; ++piece) {
        const int64_t sample = piece / per_sample, position = piece % per_sample * elements;
        const Block block{sample, 1, position, std::min(elements, column.positions - position)};
        std::fill_n(static_cast<double*>(lanes), places, 0.0);
        compute<S>(isa).gram(rows.load(column, present, block), count, block.count(), lanes, {});
        const double weight = weights[sample];
        for (int64_t l = 0; l < places; ++l) sums[l] += weight * lanes[l];
      }
      for (int64_t at = 0; at < size; ++at) partial[unit * size + at] = folded(sums + at * isa.lanes, isa.lanes);
    }
  });
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = i; j < count; ++j) {
      double sum = 0;
      for (int64_t unit = 0; unit < units; ++unit) sum += partial[unit * size + i * count + j];
      result[present[i] * tasks + present[j]] = result[present[j] * tasks + present[i]] = sum;
    }
  }
}

#define FASTMTL_INSTANTIATE(S)                                                                     \
  template void cross_gram<S>(const Isa&, const Executor&, const Column&, const Column&, double*); \
  template void sample_gram<S>(const Isa&, const Executor&, const Column&, int64_t, const S*, double*);
FASTMTL_INSTANTIATE(float)
FASTMTL_INSTANTIATE(double)

}  // namespace fastmtl
