#include "cuda_places.h"

#include <algorithm>
#include <numeric>

namespace fastmtl {

Places::Places(const std::vector<const Tensor*>& tensors, bool by_sample) {
  for (const Tensor* tensor : tensors) held_.push_back(*tensor);
  if (merge(by_sample)) return;
  for (size_t i = 1; i < held_.size(); ++i) {
    if (equal(held_[i].strides(), held_[0].strides())) continue;
    // In a dtype of its own.
    Tensor copy = torch::stable::empty_like(held_[0]);
    if (held_[i].scalar_type() != copy.scalar_type()) copy = torch::stable::to(copy, held_[i].scalar_type());
    torch::stable::copy_(copy, held_[i]);
    held_[i] = copy;
  }
  STD_TORCH_CHECK(merge(by_sample), "tensors that lie alike have one dimension");
}

bool Places::merge(bool by_sample) {
  const Tensor& leading = held_[0];
  std::vector<int64_t> order;
  positions_ = {1, 0, {}};
  for (int64_t d = by_sample ? 1 : 0; d < leading.dim(); ++d) {
    positions_.count *= leading.size(d);
    if (leading.size(d) != 1) order.push_back(d);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return leading.stride(a) > leading.stride(b); });
  // Neighbours are joined where they are one run in every tensor.
  std::vector<std::pair<int64_t, int64_t>> merged;  // size, and the innermost dimension
  for (const int64_t d : order) {
    const bool joins = !merged.empty() && std::all_of(held_.begin(), held_.end(), [&](const Tensor& tensor) {
      return tensor.stride(merged.back().second) == tensor.stride(d) * tensor.size(d);
    });
    if (joins) {
      merged.back() = {merged.back().first * leading.size(d), d};
    } else {
      merged.emplace_back(leading.size(d), d);
    }
  }
  if (merged.size() > cuda::kMaxRank) return false;
  positions_.rank = std::max<int>(1, static_cast<int>(merged.size()));
  for (int r = 0; r < cuda::kMaxRank; ++r)
    positions_.sizes[r] = r < static_cast<int>(merged.size()) ? merged[r].first : 1;

  vector_ = true;
  places_.clear();
  for (const Tensor& tensor : held_) {
    cuda::Place place{
        static_cast<char*>(const_cast<void*>(tensor.const_data_ptr())), by_sample ? tensor.stride(0) : 0, {}};
    const int64_t width = 16 / size_of(dtype_of_tensor(tensor, ""));
    bool aligned = reinterpret_cast<uintptr_t>(place.data) % 16 == 0 && place.sample_stride % width == 0;
    for (size_t r = 0; r < merged.size(); ++r) {
      place.strides[r] = tensor.stride(merged[r].second);
      const bool innermost = r + 1 == merged.size();
      aligned = aligned && (innermost ? place.strides[r] == 1 : place.strides[r] % width == 0);
    }
    const int64_t run = merged.empty() ? 1 : merged.back().first;
    vector_ = vector_ && aligned && run % width == 0;
    places_.push_back(place);
  }
  return true;
}

uint64_t fill_places(const TensorColumn& column, const Places& places, size_t first, cuda::Place* to) {
  uint64_t present = 0;
  for (int64_t k = 0; k < column.tasks(); ++k) {
    if (column.at(k) == nullptr) continue;
    to[k] = places.place(first++);
    present |= uint64_t{1} << k;
  }
  return present;
}

}  // namespace fastmtl
