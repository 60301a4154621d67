#include "lists.h"

#include <numeric>

#include "chunks.h"

namespace fastmtl {
namespace {

std::vector<int64_t> lengths(const std::vector<Column>& columns) {
  std::vector<int64_t> result;
  result.reserve(columns.size());
  for (const Column& column : columns) result.push_back(column.positions);
  return result;
}

}  // namespace

template <class S>
void gram(const Isa& isa, const Executor& parallel, const std::vector<Column>& columns, int64_t tasks, double* result) {
  const Chunks chunks(lengths(columns), tasks, sizeof(S));
  const int64_t size = tasks * tasks;
  std::vector<double> partial(chunks.units() * size, 0.0);
  parallel(chunks.units(), [&](int64_t begin, int64_t end) {
    Rows<S> rows(isa, tasks, chunks.elements());
    Buffer<double> lanes(size * isa.lanes);
    std::vector<int64_t> present;  // the tasks whose products the lanes hold
    const auto flush = [&](double* sums) {
      const int64_t count = present.size();
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t j = i; j < count; ++j)
          sums[present[i] * tasks + present[j]] += folded(lanes + (i * count + j) * isa.lanes, isa.lanes);
      }
    };
    int64_t last_unit = -1, last_column = -1;
    chunks.of_units(begin, end, [&](int64_t unit, int64_t n, const Block& block, int64_t after, const Block& next) {
      if (unit != last_unit || n != last_column) {
        std::vector<int64_t> now = present_tasks(columns[n].tensors);
        if (unit != last_unit || now != present) {
          if (last_unit >= 0) flush(&partial[last_unit * size]);
          present = std::move(now);
          std::fill_n(static_cast<double*>(lanes), present.size() * present.size() * isa.lanes, 0.0);
        }
        last_unit = unit;
        last_column = n;
      }
      if (present.empty()) return;
      const Prefetch ahead = rows.prefetch(kGramAhead, columns[after], present, block, next);
      compute<S>(isa).gram(rows.load(columns[n], present, block), present.size(), block.count(), lanes, ahead);
    });
    if (last_unit >= 0) flush(&partial[last_unit * size]);
  });
  std::vector<int64_t> all(tasks);
  std::iota(all.begin(), all.end(), 0);
  add_up(partial.data(), chunks.units(), all, tasks, 1.0, result);
}

template <class S>
void squared_norms(const Isa& isa, const Executor& parallel, const std::vector<Column>& columns, int64_t tasks,
                   double* result) {
  // Every tensor is a stream of its own: rows need not be read side by side.
  std::vector<const View*> rows;
  std::vector<int64_t> task_of_row, lengths;
  for (auto* list : {&task_of_row, &lengths}) list->reserve(columns.size() * tasks);
  rows.reserve(columns.size() * tasks);
  for (int64_t k = 0; k < tasks; ++k) {
    for (const Column& column : columns) {
      if (column.tensors[k].data == nullptr) continue;
      rows.push_back(&column.tensors[k]);
      lengths.push_back(column.positions);
      task_of_row.push_back(k);
    }
  }
  const Chunks chunks(std::move(lengths), 1, sizeof(S));
  std::vector<double> partial(chunks.units() * tasks, 0.0);
  parallel(chunks.units(), [&](int64_t begin, int64_t end) {
    Buffer<S> scratch(2 * chunks.elements());
    Buffer<double> lanes(isa.lanes);
    chunks.of_units(begin, end, [&](int64_t unit, int64_t n, const Block& block, int64_t, const Block&) {
      std::fill_n(static_cast<double*>(lanes), isa.lanes, 0.0);
      const S* row = load_block<S>(isa, *rows[n], block, scratch);
      compute<S>(isa).square(row, block.count(), lanes);
      partial[unit * tasks + task_of_row[n]] += folded(lanes, isa.lanes);
    });
  });
  for (int64_t k = 0; k < tasks; ++k) {
    result[k] = 0;
    for (int64_t unit = 0; unit < chunks.units(); ++unit) result[k] += partial[unit * tasks + k];
  }
}

template <class S>
void weighted_sum(const Isa& isa, const Executor& parallel, const std::vector<Column>& columns, int64_t tasks,
                  const S* weights, const std::vector<View>& out) {
  const Chunks chunks(lengths(columns), tasks, sizeof(S));
  parallel(chunks.units(), [&](int64_t begin, int64_t end) {
    Rows<S> rows(isa, tasks, chunks.elements());
    Buffer<S> scratch(2 * chunks.elements());
    std::vector<S> used;
    std::vector<int64_t> present;
    int64_t last = -1;
    chunks.of_units(begin, end, [&](int64_t, int64_t n, const Block& block, int64_t, const Block&) {
      if (n != last) {
        present = present_tasks(columns[n].tensors);
        used.clear();
        for (const int64_t k : present) used.push_back(weights[k]);
        last = n;
      }
      const S* const* loaded = rows.load(columns[n], present, block);
      S* place = place_of_block<S>(out[n], block, scratch);
      compute<S>(isa).weighted_sum(loaded, used.data(), present.size(), block.count(), place,
                                   chunks.streams() && place != scratch);
      store_block<S>(isa, out[n], block, place, scratch);
    });
  });
}

template <class S>
void sum_norms(const Isa& isa, const Executor& parallel, const Column& column, const View& out, double* result) {
  const std::vector<int64_t> present = present_tasks(column.tensors);
  const int64_t tasks = column.tensors.size(), count = present.size();
  const Chunks chunks({column.positions}, count, sizeof(S));
  std::vector<double> partial(chunks.units() * count, 0.0);
  parallel(chunks.units(), [&](int64_t begin, int64_t end) {
    Rows<S> rows(isa, count, chunks.elements());
    Buffer<S> scratch(2 * chunks.elements());
    Buffer<double> lanes(count * isa.lanes);
    int64_t last_unit = -1;
    const auto flush = [&] {
      for (int64_t r = 0; r < count && last_unit >= 0; ++r)
        partial[last_unit * count + r] = folded(lanes + r * isa.lanes, isa.lanes);
    };
    chunks.of_units(begin, end, [&](int64_t unit, int64_t, const Block& block, int64_t, const Block& next) {
      if (unit != last_unit) {
        flush();
        std::fill_n(static_cast<double*>(lanes), count * isa.lanes, 0.0);
        last_unit = unit;
      }
      const S* const* loaded = rows.load(column, present, block);
      S* place = place_of_block<S>(out, block, scratch);
      compute<S>(isa).sum_square(loaded, count, block.count(), place, chunks.streams() && place != scratch, lanes,
                                 rows.prefetch(kSumAhead, column, present, block, next));
      store_block<S>(isa, out, block, place, scratch);
    });
    flush();
  });
  std::fill_n(result, tasks, 0.0);
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t unit = 0; unit < chunks.units(); ++unit) result[present[r]] += partial[unit * count + r];
  }
}

#define FASTMTL_INSTANTIATE(S)                                                                               \
  template void gram<S>(const Isa&, const Executor&, const std::vector<Column>&, int64_t, double*);          \
  template void squared_norms<S>(const Isa&, const Executor&, const std::vector<Column>&, int64_t, double*); \
  template void weighted_sum<S>(const Isa&, const Executor&, const std::vector<Column>&, int64_t, const S*,  \
                                const std::vector<View>&);                                                   \
  template void sum_norms<S>(const Isa&, const Executor&, const Column&, const View&, double*);
FASTMTL_INSTANTIATE(float)
FASTMTL_INSTANTIATE(double)

}  // namespace fastmtl
