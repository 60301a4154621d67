#include "layout.h"

#include <algorithm>
#include <cstring>

namespace fastmtl {

Order::Order(const int64_t* sizes, const int64_t* leading_strides, int64_t rank, bool samples)
    : sizes_(sizes), rank_(rank), first_(samples ? 1 : 0), samples_(samples ? sizes[0] : 1), positions_(1) {
  for (int64_t d = first_; d < rank; ++d) {
    positions_ *= sizes[d];
    if (sizes[d] != 1) order_.push_back(d);
  }
  std::stable_sort(order_.begin(), order_.end(),
                   [&](int64_t a, int64_t b) { return leading_strides[a] > leading_strides[b]; });
}

View Order::view(const void* data, Dtype dtype, const int64_t* strides) const {
  View view;
  if (data == nullptr) return view;
  view.data = static_cast<char*>(const_cast<void*>(data));
  view.dtype = dtype;
  view.sample_stride = first_ == 1 ? strides[0] : 0;
  int64_t expected = 1;
  for (auto d = order_.rbegin(); d != order_.rend() && view.flat; ++d) {
    view.flat = strides[*d] == expected;
    expected *= sizes_[*d];
  }
  if (view.flat) return view;
  for (const int64_t d : order_) {
    const bool merges = !view.dimensions.empty() && view.dimensions.back().stride == strides[d] * sizes_[d];
    if (merges) {
      view.dimensions.back() = {view.dimensions.back().size * sizes_[d], strides[d]};
    } else {
      view.dimensions.push_back({sizes_[d], strides[d]});
    }
  }
  return view;
}

namespace {

// Calls visit(offset, stride, length, done) for the runs along the innermost dimension that make up the positions.
template <class Visit>
void for_each_run(const View& view, int64_t sample, int64_t position, int64_t count, const Visit& visit) {
  const int64_t rank = static_cast<int64_t>(view.dimensions.size());
  const int64_t inner = view.dimensions[rank - 1].size, stride = view.dimensions[rank - 1].stride;
  for (int64_t done = 0; done < count;) {
    int64_t rest = position + done, offset = sample * view.sample_stride;
    const int64_t along = rest % inner;
    rest /= inner;
    for (int64_t d = rank - 2; d >= 0; --d) {
      offset += rest % view.dimensions[d].size * view.dimensions[d].stride;
      rest /= view.dimensions[d].size;
    }
    const int64_t length = std::min(inner - along, count - done);
    visit(offset + along * stride, stride, length, done);
    done += length;
  }
}

template <class Raw>
void gather(const View& view, int64_t sample, int64_t position, int64_t count, Raw* to) {
  const Raw* data = reinterpret_cast<const Raw*>(view.data);
  for_each_run(view, sample, position, count, [&](int64_t offset, int64_t stride, int64_t length, int64_t done) {
    const Raw* from = data + offset;
    if (stride == 1) {
      std::memcpy(to + done, from, length * sizeof(Raw));
    } else if (stride == 0) {
      std::fill_n(to + done, length, *from);
    } else {
      for (int64_t i = 0; i < length; ++i) to[done + i] = from[i * stride];
    }
  });
}

template <class Raw>
void scatter(const View& view, int64_t sample, int64_t position, int64_t count, const Raw* from) {
  Raw* data = reinterpret_cast<Raw*>(view.data);
  for_each_run(view, sample, position, count, [&](int64_t offset, int64_t stride, int64_t length, int64_t done) {
    for (int64_t i = 0; i < length; ++i) data[offset + i * stride] = from[done + i];
  });
}

// Position of the first element of a block that lies in memory without gaps, -1 for other blocks.
int64_t flat_offset(const View& view, const Block& block) {
  const bool joined = block.samples == 1 || view.sample_stride == block.positions;
  return view.flat && joined ? block.sample * view.sample_stride + block.position : -1;
}

void convert(const Isa& isa, Dtype dtype, const uint16_t* from, int64_t count, float* to) {
  (dtype == Dtype::bf16 ? isa.load_bf16 : isa.load_f16)(from, count, to);
}
void convert(const Isa&, Dtype, const uint16_t*, int64_t, double*) {}  // float64 is never mixed with others
void convert(const Isa& isa, Dtype dtype, const float* from, int64_t count, uint16_t* to) {
  (dtype == Dtype::bf16 ? isa.store_bf16 : isa.store_f16)(from, count, to);
}
void convert(const Isa&, Dtype, const double*, int64_t, uint16_t*) {}

}  // namespace

const char* address_of_block(const View& view, const Block& block) {
  const int64_t offset = flat_offset(view, block);
  return offset < 0 ? nullptr : view.data + offset * size_of(view.dtype);
}

template <class S>
const S* load_block(const Isa& isa, const View& view, const Block& block, S* scratch) {
  const bool same = view.dtype == dtype_of<S>;
  const int64_t offset = flat_offset(view, block);
  if (offset >= 0) {
    if (same) return reinterpret_cast<const S*>(view.data) + offset;
    convert(isa, view.dtype, reinterpret_cast<const uint16_t*>(view.data) + offset, block.count(), scratch);
    return scratch;
  }
  uint16_t* raw = reinterpret_cast<uint16_t*>(scratch + block.count());
  for (int64_t s = 0; s < block.samples; ++s) {
    const int64_t sample = block.sample + s;
    S* to = scratch + s * block.positions;
    if (view.flat) {
      const Block one{sample, 1, block.position, block.positions};
      const S* loaded = load_block(isa, view, one, to);
      if (loaded != to) std::memcpy(to, loaded, block.positions * sizeof(S));
    } else if (same) {
      gather(view, sample, block.position, block.positions, to);
    } else {
      gather(view, sample, block.position, block.positions, raw);
      convert(isa, view.dtype, raw, block.positions, to);
    }
  }
  return scratch;
}

template <class S>
S* place_of_block(const View& view, const Block& block, S* scratch) {
  const int64_t offset = flat_offset(view, block);
  return offset >= 0 && view.dtype == dtype_of<S> ? reinterpret_cast<S*>(view.data) + offset : scratch;
}

template <class S>
void store_block(const Isa& isa, const View& view, const Block& block, const S* values, S* scratch) {
  const bool same = view.dtype == dtype_of<S>;
  const int64_t offset = flat_offset(view, block);
  if (offset >= 0) {
    if (!same) convert(isa, view.dtype, values, block.count(), reinterpret_cast<uint16_t*>(view.data) + offset);
    return;  // else the values were formed in place
  }
  uint16_t* raw = reinterpret_cast<uint16_t*>(scratch + block.count());
  for (int64_t s = 0; s < block.samples; ++s) {
    const int64_t sample = block.sample + s;
    const S* from = values + s * block.positions;
    View one = {};  // a flat tensor is one run
    if (view.flat) {
      one = view;
      one.flat = false;
      one.dimensions = {{block.position + block.positions, 1}};
    }
    const View& target = view.flat ? one : view;
    if (same) {
      scatter(target, sample, block.position, block.positions, from);
    } else {
      convert(isa, view.dtype, from, block.positions, raw);
      scatter(target, sample, block.position, block.positions, raw);
    }
  }
}

template const float* load_block(const Isa&, const View&, const Block&, float*);
template const double* load_block(const Isa&, const View&, const Block&, double*);
template float* place_of_block(const View&, const Block&, float*);
template double* place_of_block(const View&, const Block&, double*);
template void store_block(const Isa&, const View&, const Block&, const float*, float*);
template void store_block(const Isa&, const View&, const Block&, const double*, double*);

}  // namespace fastmtl
