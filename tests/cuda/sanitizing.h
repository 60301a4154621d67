// What the programs that run CUDA kernels under the sanitizers share: memory of exactly the right size, and gradients
// in it.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "../../csrc/kernels/cuda/finish.h"
#include "../../csrc/kernels/cuda/launch.h"
#include "../../csrc/kernels/cuda/positions.h"
#include "../../csrc/kernels/dtype.h"
#include "../kernels/plain.h"

extern "C" {
void fastmtl_order_of_blocks(unsigned chosen);
void fastmtl_resident_blocks(int chosen);
}

namespace sanitizing {

using namespace fastmtl;
using cuda::Device, cuda::Place, cuda::Positions;

// `size` bytes, `offset` bytes behind an address that 16 divides.
class Memory {
 public:
  explicit Memory(size_t size, size_t offset = 0) : bytes_(new (std::align_val_t{16}) char[offset + size]) {
    data_ = size == 0 ? nullptr : bytes_.get() + offset;
  }
  template <class T = char>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  struct Free {
    void operator()(char* p) const { ::operator delete[](p, std::align_val_t{16}); }
  };
  std::unique_ptr<char[], Free> bytes_;
  char* data_;
};

inline uint16_t raw_of(Dtype dtype, float x) {
  return dtype == Dtype::bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(x)) : __half_as_ushort(__float2half_rn(x));
}

inline void put(Dtype dtype, char* data, int64_t at, float x) {
  if (dtype == Dtype::f32) {
    reinterpret_cast<float*>(data)[at] = x;
  } else {
    reinterpret_cast<uint16_t*>(data)[at] = raw_of(dtype, x);
  }
}

// Of one number as the dtype rounds it.
inline bool holds(Dtype dtype, const char* data, int64_t at, float x) {
  if (dtype == Dtype::f32) return reinterpret_cast<const float*>(data)[at] == x;
  return reinterpret_cast<const uint16_t*>(data)[at] == raw_of(dtype, x);
}

// Where a gradient lies that is missing, as its bit alone shall say.
inline char* const kNowhere = reinterpret_cast<char*>(16);

// How the tensors of a problem lie: the first, a result, and the gradients of even and of odd tasks.
struct Layout {
  const char* name;
  Positions positions;
  int64_t result[cuda::kMaxRank], even[cuda::kMaxRank], odd[cuda::kMaxRank];  // strides
  int64_t offset;                                                             // numbers that data lies behind alignment
  bool vector;
};

// The offset of a position: as `at` has it, by loops of its own.
inline int64_t offset_of(const Positions& positions, const int64_t* strides, int64_t position) {
  int64_t offset = 0;
  for (int dim = positions.rank - 1; dim >= 0; --dim) {
    offset += position % positions.sizes[dim] * strides[dim];
    position /= positions.sizes[dim];
  }
  return offset;
}

inline int64_t numbers_of(const Positions& positions, const int64_t* strides) {
  if (positions.count == 0) return 0;
  int64_t last = 0;
  for (int dim = 0; dim < positions.rank; ++dim) last += (positions.sizes[dim] - 1) * strides[dim];
  return last + 1;
}

inline std::vector<Layout> layouts() {
  return {
      {"empty", {0, 1, {0, 1, 1, 1}}, {1}, {1}, {1}, 0, true},
      {"one number", {1, 1, {1, 1, 1, 1}}, {1}, {1}, {1}, 0, false},
      {"one vector", {8, 1, {8, 1, 1, 1}}, {1}, {1}, {1}, 0, true},
      {"aligned", {9000, 1, {9000, 1, 1, 1}}, {1}, {1}, {1}, 0, true},
      {"misaligned", {2903, 1, {2903, 1, 1, 1}}, {1}, {1}, {1}, 1, false},
      {"repeated", {600, 1, {600, 1, 1, 1}}, {1}, {0}, {1}, 0, false},
      {"rows with gaps", {70 * 48, 2, {70, 48, 1, 1}}, {48, 1}, {56, 1}, {64, 1}, 0, true},
      {"transposed", {13 * 7 * 9, 3, {13, 7, 9, 1}}, {63, 9, 1}, {1, 117, 13}, {63, 1, 7}, 0, false},
      {"four dimensions", {5 * 3 * 7 * 4, 4, {5, 3, 7, 4}}, {84, 28, 4, 1}, {1, 140, 20, 5}, {84, 1, 3, 21}, 0, false},
  };
}

struct Tensor {
  Tensor(Dtype dtype, const Layout& layout, const int64_t* along)
      : memory(numbers_of(layout.positions, along) * size_of(dtype), layout.offset * size_of(dtype)) {
    place.data = memory.as();
    for (int dim = 0; dim < layout.positions.rank; ++dim) place.strides[dim] = along[dim];
  }
  Memory memory;
  Place place{};
};

// A gradient whose position i has value(task, i); at positions that share memory, the last one's.
inline Tensor gradient(Dtype dtype, const Layout& layout, int64_t task) {
  Tensor made(dtype, layout, task % 2 == 0 ? layout.even : layout.odd);
  for (int64_t i = 0; i < layout.positions.count; ++i)
    put(dtype, made.place.data, offset_of(layout.positions, made.place.strides, i), value(task, i));
  return made;
}

// What that gradient has there.
inline float number(const Layout& layout, int64_t task, int64_t i) {
  const int64_t* strides = task % 2 == 0 ? layout.even : layout.odd;
  return value(task, strides[layout.positions.rank - 1] == 0 ? layout.positions.count - 1 : i);
}

// Memory for `finish`; all tickets must be back at zero when it goes.
class Finishing {
 public:
  explicit Finishing(int64_t numbers) : numbers_(numbers * sizeof(float)), tickets_(kTickets * sizeof(uint32_t)) {
    std::memset(numbers_.as(), 0xff, numbers * sizeof(float));  // NaN
    std::memset(tickets_.as(), 0, kTickets * sizeof(uint32_t));
  }
  ~Finishing() {
    for (int i = 0; i < kTickets; ++i) check(tickets_.as<uint32_t>()[i], 0, 0, "tickets");
  }
  cuda::Finish memory() const { return {numbers_.as<float>(), tickets_.as<uint32_t>(), 0, 0}; }

 private:
  static constexpr int kTickets = 64;
  Memory numbers_, tickets_;
};

// ThreadSanitizer needs milliseconds for a thread, and sees the same in one case as in a like one.
#if defined(__SANITIZE_THREAD__)
constexpr bool kInTurns = true;
#else
constexpr bool kInTurns = false;
#endif

constexpr Dtype kDtypes[] = {Dtype::f32, Dtype::bf16, Dtype::f16};

// With several orders of blocks: many, one, and as many as there is work for; `few`: one order.
inline void in_all_orders(bool few, const std::function<void(const Device&, unsigned order)>& run) {
  const struct {
    int processors, resident;
  } sizes[] = {{3, 2}, {3, 2}, {1, 1}, {5, 1}};
  for (unsigned order = 0; order < 4; ++order) {
    fastmtl_resident_blocks(sizes[order].resident);
    fastmtl_order_of_blocks(few ? 1 : order);
    run({sizes[order].processors, nullptr}, order);
    if (few) return;
  }
}

// All layouts and numbers of tasks. Dtypes take turns; `turn` lets more do so. With kInTurns, numbers of tasks do as
// well. `few`: float32, and none of the largest number of tasks.
inline void in_all_cases(
    bool few, std::vector<int> tasks,
    const std::function<void(const Device&, Dtype, const Layout&, int tasks, unsigned turn)>& run) {
  if (few) tasks.pop_back();
  unsigned turn = 0;
  in_all_orders(few, [&](const Device& device, unsigned) {
    for (const Layout& layout : layouts()) {
      for (size_t i = 0; i < (kInTurns ? 1 : tasks.size()); ++i, ++turn)
        run(device, few ? Dtype::f32 : kDtypes[turn % 7 % 3], layout, tasks[(kInTurns ? turn : i) % tasks.size()],
            turn);
    }
  });
}

}  // namespace sanitizing
