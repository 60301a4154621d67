// What the drivers share: the parallel loop that the caller brings, chunk sizes, memory of a thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace fastmtl {

// Runs body(context, begin, end) over ranges that partition [0, units), on any number of threads. Units depend on the
// problem alone and leave their results in places of their own, so results do not depend on the threads.
struct Executor {
  void (*run)(int64_t units, void (*body)(void* context, int64_t begin, int64_t end), void* context);

  template <class Body>
  void operator()(int64_t units, const Body& body) const {
    if (units <= 0) return;
    run(
        units, [](void* context, int64_t begin, int64_t end) { (*static_cast<const Body*>(context))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kMaxUnits = 256;
constexpr int64_t kUnitBytes = 128 << 10;  // of reads: some 10 microseconds

inline int64_t wanted_units(int64_t bytes) { return std::clamp<int64_t>(bytes / kUnitBytes, 1, kMaxUnits); }

// Elements of a chunk of `rows` rows: 4 to 8 KiB a row keep the memory streaming; all rows together fit the L2 cache.
inline int64_t chunk_elements(int64_t rows, int64_t element_size) {
  const int64_t bytes = rows <= 16 ? 8192 : 4096;
  return bytes / element_size;
}

// How far ahead to prefetch a few rows, in bytes, as measured: sums, which wait for memory only, and Gram matrices,
// which have arithmetic to do and ask once more (see Ahead).
constexpr int64_t kSumAhead = 2048, kGramAhead = 7168;

// How far ahead to prefetch, in elements (see Prefetch): with many rows, whose arithmetic takes longer, the next chunk.
// A row that is converted was read as a whole before: the next one, too.
inline int64_t prefetch_distance(int64_t bytes, int64_t rows, int64_t count, int64_t element_size, bool converted) {
  return converted || rows > 16 ? count : std::min(count, bytes / element_size);
}

// Where more is read than the caches hold, the output would not be found there, either: it goes past them, which saves
// reading its lines before.
inline bool exceeds_caches(int64_t bytes) { return bytes > (32 << 20); }

// Distance of rows that are read and written together: not a multiple of 4 KiB, or the CPU takes a load of one row for
// one of what was just stored in another.
template <class S>
int64_t padded(int64_t elements) {
  constexpr int64_t kLine = 64 / sizeof(S);
  return (ceil_div(elements, kLine) + 9) * kLine;
}

// Aligned memory without values.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(std::aligned_alloc(64, ceil_div(std::max<int64_t>(size, 1) * sizeof(T), 64) * 64))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator T*() const { return data_; }

 private:
  T* data_;
};

}  // namespace fastmtl
