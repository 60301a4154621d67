// How tensors of one shape lie in memory: samples, and positions as few dimensions as possible.
#pragma once

#include "device.h"

namespace fastmtl::cuda {

constexpr int kMaxRank = 4;  // of what is left after merging

// Positions are counted through the sizes, the last dimension fastest.
struct Positions {
  int64_t count;
  int rank;
  int64_t sizes[kMaxRank];
};

// One tensor of these; strides in elements.
struct Place {
  char* data;
  int64_t sample_stride;
  int64_t strides[kMaxRank];
};

// A position, along each dimension.
struct Coordinates {
  int64_t at[kMaxRank];
};

__device__ inline Coordinates coordinates_of(const Positions& positions, int64_t position) {
  Coordinates coordinates{};
  if (positions.rank > 1) {
#pragma unroll
    for (int dim = kMaxRank - 1; dim > 0; --dim) {
      if (dim < positions.rank) {
        const int64_t outer = position / positions.sizes[dim];
        coordinates.at[dim] = position - outer * positions.sizes[dim];
        position = outer;
      }
    }
  }
  coordinates.at[0] = position;
  return coordinates;
}

// Where a tensor has that position, in numbers from its data. Strides of dimensions that are not there are 0.
__device__ inline int64_t offset_of(const Place& place, const Positions& positions, const Coordinates& coordinates) {
  int64_t offset = coordinates.at[0] * place.strides[0];
  if (positions.rank > 1) {
#pragma unroll
    for (int dim = 1; dim < kMaxRank; ++dim) offset += coordinates.at[dim] * place.strides[dim];
  }
  return offset;
}

template <class Number>
__device__ inline char* at(const Place& place, const Positions& positions, const Coordinates& coordinates) {
  return place.data + offset_of(place, positions, coordinates) * static_cast<int64_t>(sizeof(Number));
}

}  // namespace fastmtl::cuda
