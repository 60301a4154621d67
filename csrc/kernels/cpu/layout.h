// Tensors as the kernels see them: one sequence of positions that all tensors of a call share, whatever their strides.
//
// The order of the positions is that of the memory of one tensor, the "leading" one (the output). Tensors whose strides
// agree with it are "flat": position p is element p of their memory. The others are gathered in chunks.
#pragma once

#include <cstdint>
#include <vector>

#include "../dtype.h"
#include "isa.h"

namespace fastmtl {

template <class S>
constexpr Dtype dtype_of = sizeof(S) == 8 ? Dtype::f64 : Dtype::f32;

struct View {
  struct Dimension {
    int64_t size, stride;
  };

  char* data = nullptr;  // null: the gradient is missing
  Dtype dtype = Dtype::f32;
  bool flat = true;
  int64_t sample_stride = 0;          // of dimension 0 where that one is kept apart, in elements
  std::vector<Dimension> dimensions;  // outermost first; empty where flat
};

// Describes how to walk over tensors of one shape in the order of the leading tensor's memory. With `samples`,
// dimension 0 is kept apart.
class Order {
 public:
  Order(const int64_t* sizes, const int64_t* leading_strides, int64_t rank, bool samples);

  View view(const void* data, Dtype dtype, const int64_t* strides) const;
  int64_t samples() const { return samples_; }      // 1 where dimension 0 is not kept apart
  int64_t positions() const { return positions_; }  // a sample

 private:
  const int64_t* sizes_;
  int64_t rank_, first_, samples_, positions_;
  std::vector<int64_t> order_;  // dimensions, outermost first, without those of size 1
};

// A range of positions of consecutive samples. Where there are several samples it covers all of their positions.
struct Block {
  int64_t sample, samples, position, positions;
  int64_t count() const { return samples * positions; }
};

// The values of a block as S: a pointer into the tensor where that is possible, else `scratch` filled.
// `scratch` holds block.count() values, and 2 bytes more for each where the tensor is bfloat16 or float16 and not flat.
template <class S>
const S* load_block(const Isa& isa, const View& view, const Block& block, S* scratch);

// Where to put the values of a block: into the tensor itself, else into `scratch`, from where `store_block` takes them.
template <class S>
S* place_of_block(const View& view, const Block& block, S* scratch);
template <class S>
void store_block(const Isa& isa, const View& view, const Block& block, const S* values, S* scratch);

// Address of the block in a flat tensor, for prefetching; null where there is no such thing.
const char* address_of_block(const View& view, const Block& block);

}  // namespace fastmtl
