// Products of many rows with many: tiles [rows, positions] in shared memory, in float32.
//
// A block is 16 x 16 threads. Thread (y, x) forms the products of rows y + 16 a with rows x + 16 b.
#pragma once

#include "numbers.h"

namespace fastmtl::cuda {

constexpr int kTileThreads = 256;

// `A` times 16 rows of `K` positions.
template <int A, int K>
struct RowTile {
  static constexpr int kRows = 16 * A;
  // Of a row, in groups of four numbers: the first groups of rows that are neighbours lie in other banks.
  static constexpr int kPitch = K / 4 + 1;
  float4 groups[kRows * kPitch];

  // `rows(position, number)` gives a function of the row: where it has that position of the tile, by which type of
  // numbers; null: zeros.
  template <class Rows>
  __device__ void load(Dtype dtype, bool vector, const Rows& rows) {
    switch (dtype) {
      case Dtype::f32:
        return vector ? load<Dtype::f32, 4>(rows) : load<Dtype::f32, 1>(rows);
      case Dtype::bf16:
        return vector ? load<Dtype::bf16, 8>(rows) : load<Dtype::bf16, 1>(rows);
      default:
        return vector ? load<Dtype::f16, 8>(rows) : load<Dtype::f16, 1>(rows);
    }
  }

 private:
  template <Dtype D, int V, class Rows>
  __device__ void load(const Rows& rows) {
    constexpr int kAcross = K / V, kDown = kTileThreads / kAcross, kSteps = (kRows + kDown - 1) / kDown;
    const int position = threadIdx.x % kAcross * V, first = threadIdx.x / kAcross;
    const auto pointer_of = rows(position, typename Raw<D>::Type{});
    Packet<D, V> read[kSteps];
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
      const int row = first + n * kDown;
      const char* data = row < kRows ? pointer_of(row) : nullptr;
      if (data != nullptr) read[n] = Packet<D, V>::load(data);
    }
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
      const int row = first + n * kDown;
      if (row >= kRows) break;
      if constexpr (V == 1) {
        reinterpret_cast<float*>(groups + row * kPitch)[position] = read[n].get(0);
      } else {
#pragma unroll
        for (int v = 0; v < V; v += 4)
          groups[row * kPitch + (position + v) / 4] = {read[n].get(v), read[n].get(v + 1), read[n].get(v + 2),
                                                       read[n].get(v + 3)};
      }
    }
  }
};

// Which products a thread forms: of `left` rows with `right` ones, all or, of rows with themselves, those with b <= a.
template <int A, int B, bool Lower>
struct Products {
  static constexpr int kCount = Lower ? A * (A + 1) / 2 : A * B;
  static constexpr int kWidth = kCount * kTileThreads;

  FASTMTL_HD static constexpr int index(int a, int b) { return Lower ? a * (a + 1) / 2 + b : a * B + b; }
  FASTMTL_HD static constexpr int end(int a) { return Lower ? a + 1 : B; }

  float sums[kCount] = {};

  // Adds a tile's, with a weight for each position where `weights` is not null. Sums of few positions are added up, and
  // then those of tiles: long sums would round more.
  template <int K, bool Weighted>
  __device__ void add(const RowTile<A, K>& left, const RowTile<B, K>& right, const float4* weights) {
    constexpr int kTogether = 4;
    float parts[kCount] = {};
#pragma unroll 1
    for (int first = 0; first < K / 4; first += kTogether) {
      float few[kCount] = {};
#pragma unroll(A* B > 4 ? 2 : kTogether)
      for (int n = 0; n < kTogether; ++n) add<K, Weighted>(left, right, weights, first + n, few);
#pragma unroll
      for (int i = 0; i < kCount; ++i) parts[i] += few[i];
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] += parts[i];
  }

  // values [kWidth] in shared memory.
  __device__ void store(float* values) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i * kTileThreads + threadIdx.x] = sums[i];
  }

  // Calls with the rows of each product of this thread, and with its value.
  template <class Call>
  __device__ static void each(const float* values, const Call& call) {
#pragma unroll
    for (int a = 0; a < A; ++a) {
#pragma unroll
      for (int b = 0; b < end(a); ++b)
        call(static_cast<int>(threadIdx.x / 16) + 16 * a, static_cast<int>(threadIdx.x % 16) + 16 * b,
             values[index(a, b) * kTileThreads + threadIdx.x]);
    }
  }

 private:
  // Of group `n` of four positions.
  template <int K, bool Weighted>
  __device__ static void add(const RowTile<A, K>& left, const RowTile<B, K>& right, const float4* weights, int n,
                             float (&sums)[kCount]) {
    constexpr int kPitch = RowTile<A, K>::kPitch;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    float4 columns[B];
#pragma unroll
    for (int b = 0; b < B; ++b) columns[b] = right.groups[(x + 16 * b) * kPitch + n];
#pragma unroll
    for (int a = 0; a < A; ++a) {
      float4 row = left.groups[(y + 16 * a) * kPitch + n];
      if constexpr (Weighted) {
        const float4 weight = weights[n];
        row = {row.x * weight.x, row.y * weight.y, row.z * weight.z, row.w * weight.w};
      }
#pragma unroll
      for (int b = 0; b < end(a); ++b) {
        float& sum = sums[index(a, b)];
        sum += row.x * columns[b].x;
        sum += row.y * columns[b].y;
        sum += row.z * columns[b].z;
        sum += row.w * columns[b].w;
      }
    }
  }
};

}  // namespace fastmtl::cuda
