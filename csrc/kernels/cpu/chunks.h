// How the kernels over columns walk through them: in chunks that fit the cache, cut into units.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "isa.h"
#include "layout.h"
#include "lists.h"
#include "work.h"

namespace fastmtl {

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
    streams_ = exceeds_caches(bytes);
  }

  int64_t units() const { return units_; }
  int64_t elements() const { return elements_; }
  bool streams() const { return streams_; }  // an output like a row goes past the caches

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
  bool streams_ = false;
  std::vector<int64_t> first_;  // chunk of each column
};

// Of one tensor a task, those that are there.
template <class Tensor>
std::vector<int64_t> present_tasks(const std::vector<Tensor>& tensors) {
  std::vector<int64_t> present;
  for (size_t k = 0; k < tensors.size(); ++k) {
    if (tensors[k].data != nullptr) present.push_back(k);
  }
  return present;
}

inline double folded(const double* lanes, int64_t count) {
  double sum = 0;
  for (int64_t l = 0; l < count; ++l) sum += lanes[l];
  return sum;
}

// The lanes of the upper triangle of a [tasks, tasks] matrix as numbers.
inline void fold(const double* lanes, int64_t tasks, int64_t width, double* to) {
  for (int64_t i = 0; i < tasks; ++i) {
    for (int64_t j = i; j < tasks; ++j) to[i * tasks + j] = folded(lanes + (i * tasks + j) * width, width);
  }
}

// The sum of the units' matrices, in their order, spread to the places of the tasks that are present.
inline void add_up(const double* partial, int64_t units, const std::vector<int64_t>& present, int64_t tasks,
                   double factor, double* matrix) {
  const int64_t count = present.size();
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = i; j < count; ++j) {
      double sum = 0;
      for (int64_t unit = 0; unit < units; ++unit) sum += partial[(unit * count + i) * count + j];
      matrix[present[i] * tasks + present[j]] = matrix[present[j] * tasks + present[i]] = factor * sum;
    }
  }
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

  Prefetch prefetch(int64_t bytes_ahead, const Column& column, const std::vector<int64_t>& present, const Block& block,
                    const Block& next) {
    if (next.positions == 0) return {};
    for (size_t r = 0; r < present.size(); ++r) {
      if (column.tensors[present[r]].data == nullptr) return {};  // another column, where another task is missing
      next_[r] = address_of_block(column.tensors[present[r]], next);
      if (next_[r] == nullptr) return {};
    }
    const int64_t size = size_of(column.tensors[present[0]].dtype);
    return {next_.data(), size,
            prefetch_distance(bytes_ahead, present.size(), block.count(), sizeof(S), size != sizeof(S))};
  }

 private:
  const Isa& isa_;
  int64_t pitch_;
  Buffer<S> scratch_;
  std::vector<const S*> rows_;
  std::vector<const char*> next_;
};

}  // namespace fastmtl
