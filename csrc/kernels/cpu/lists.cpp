#include "lists.h"

#include <cstring>
#include <functional>

namespace fastmtl {
namespace {

// Chunks of all columns, numbered through and cut into units of nearly equal numbers of chunks.
class Chunks {
 public:
  // Lengths: positions of each column.
  Chunks(std::vector<int64_t> lengths, int64_t rows, int64_t element_size)
      : lengths_(std::move(lengths)), elements_(chunk_elements(rows, element_size)), first_(lengths_.size() + 1) {
    int64_t bytes = 0;
    for (size_t n = 0; n < lengths_.size(); ++n) {
      first_[n + 1] = first_[n] + ceil_div(lengths_[n], elements_);
      bytes += lengths_[n] * rows * element_size;
    }
    units_ = std::min(wanted_units(bytes), total());
  }

  int64_t units() const { return units_; }
  int64_t elements() const { return elements_; }

  // visit(unit, column, block, next column, next block) for units [first, last): the next block is the one that this
  // thread comes to after this one, whatever its column and unit, empty at the end.
  template <class Visit>
  void of_units(int64_t first, int64_t last, const Visit& visit) const {
    const int64_t stop = begin(last);
    int64_t next = column_of(begin(first));
    for (int64_t unit = first; unit < last; ++unit) {
      for (int64_t chunk = begin(unit); chunk < begin(unit + 1); ++chunk) {
        const int64_t n = next;
        if (chunk + 1 < stop) next = column_of(chunk + 1, n);
        visit(unit, n, block(n, chunk), next, chunk + 1 < stop ? block(next, chunk + 1) : Block{0, 1, 0, 0});
      }
    }
  }

 private:
  int64_t total() const { return first_.back(); }
  int64_t begin(int64_t unit) const { return total() * unit / units_; }
  int64_t column_of(int64_t chunk, int64_t n = 0) const {
    while (chunk >= first_[n + 1]) ++n;
    return n;
  }
  Block block(int64_t n, int64_t chunk) const {
    const int64_t position = (chunk - first_[n]) * elements_;
    return {0, 1, position, std::min(elements_, lengths_[n] - position)};
  }

  std::vector<int64_t> lengths_;
  int64_t elements_, units_ = 0;
  std::vector<int64_t> first_;  // chunk of each column
};

std::vector<int64_t> lengths(const std::vector<Column>& columns) {
  std::vector<int64_t> result;
  result.reserve(columns.size());
  for (const Column& column : columns) result.push_back(column.positions);
  return result;
}

std::vector<int64_t> present_tasks(const Column& column) {
  std::vector<int64_t> present;
  for (size_t k = 0; k < column.tensors.size(); ++k) {
    if (column.tensors[k].data != nullptr) present.push_back(k);
  }
  return present;
}

double folded(const double* lanes, int64_t count) {
  double sum = 0;
  for (int64_t l = 0; l < count; ++l) sum += lanes[l];
  return sum;
}

// The rows of one chunk after another, with memory to convert and gather into.
template <class S>
class Rows {
 public:
  Rows(const Isa& isa, int64_t tasks, int64_t elements)
      : isa_(isa), pitch_(padded<S>(2 * elements)), scratch_(tasks * pitch_), rows_(tasks), next_(tasks) {}

  const S* const* load(const Column& column, const std::vector<int64_t>& present, const Block& block) {
    for (size_t r = 0; r < present.size(); ++r)
      rows_[r] = load_block(isa_, column.tensors[present[r]], block, scratch_ + r * pitch_);
    return rows_.data();
  }

  Prefetch prefetch(const Column& column, const std::vector<int64_t>& present, const Block& block, const Block& next) {
    if (next.positions == 0) return {};
    for (size_t r = 0; r < present.size(); ++r) {
      if (column.tensors[present[r]].data == nullptr) return {};  // another column, where another task is missing
      next_[r] = address_of_block(column.tensors[present[r]], next);
      if (next_[r] == nullptr) return {};
    }
    const int64_t size = size_of(column.tensors[present[0]].dtype);
    return {next_.data(), size, prefetch_distance(present.size(), block.count(), sizeof(S), size != sizeof(S))};
  }

 private:
  const Isa& isa_;
  int64_t pitch_;
  Buffer<S> scratch_;
  std::vector<const S*> rows_;
  std::vector<const char*> next_;
};

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
        std::vector<int64_t> now = present_tasks(columns[n]);
        if (unit != last_unit || now != present) {
          if (last_unit >= 0) flush(&partial[last_unit * size]);
          present = std::move(now);
          std::fill_n(static_cast<double*>(lanes), present.size() * present.size() * isa.lanes, 0.0);
        }
        last_unit = unit;
        last_column = n;
      }
      if (present.empty()) return;
      const Prefetch ahead = rows.prefetch(columns[after], present, block, next);
      compute<S>(isa).gram(rows.load(columns[n], present, block), present.size(), block.count(), lanes, ahead);
    });
    if (last_unit >= 0) flush(&partial[last_unit * size]);
  });
  for (int64_t i = 0; i < tasks; ++i) {
    for (int64_t j = i; j < tasks; ++j) {
      double sum = 0;
      for (int64_t unit = 0; unit < chunks.units(); ++unit) sum += partial[unit * size + i * tasks + j];
      result[i * tasks + j] = result[j * tasks + i] = sum;
    }
  }
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
        present = present_tasks(columns[n]);
        used.clear();
        for (const int64_t k : present) used.push_back(weights[k]);
        last = n;
      }
      const S* const* loaded = rows.load(columns[n], present, block);
      S* place = place_of_block<S>(out[n], block, scratch);
      compute<S>(isa).weighted_sum(loaded, used.data(), present.size(), block.count(), place);
      store_block<S>(isa, out[n], block, place, scratch);
    });
  });
}

template <class S>
void sum_norms(const Isa& isa, const Executor& parallel, const Column& column, const View& out, double* result) {
  const std::vector<int64_t> present = present_tasks(column);
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
      compute<S>(isa).sum_square(loaded, count, block.count(), place, lanes,
                                 rows.prefetch(column, present, block, next));
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
