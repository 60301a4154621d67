// One buffer a stream, from torch's allocator, cached: calls allocate nothing but their outputs.
#include <map>
#include <mutex>

#include "cuda_call.h"

namespace fastmtl {
namespace {

Workspace made(const Tensor& like, int64_t numbers) {
  const Tensor memory = torch::stable::new_empty(like, {numbers}, ScalarType::Float);
  const Tensor tickets = torch::stable::new_zeros(like, {kTickets}, ScalarType::Int);
  return {static_cast<float*>(memory.mutable_data_ptr()),
          static_cast<uint32_t*>(tickets.mutable_data_ptr()),
          {memory, tickets}};
}

}  // namespace

Workspace workspace_for(const Call& call, const Tensor& like, int64_t numbers) {
  // A graph gets memory of its own, from its own pool: it may be replayed on any stream.
  if (call.capturing()) return made(like, numbers);
  using Key = std::pair<int32_t, void*>;
  // Never freed: at exit the allocator may be gone before.
  static auto& known = *new std::map<Key, Workspace>;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  const Key key{like.get_device_index(), call.device().stream};
  auto found = known.find(key);
  if (found == known.end() || found->second.held[0].numel() < numbers) {
    int64_t size = 1 << 16;
    while (size < numbers) size *= 2;
    // A buffer that is replaced is freed in stream order: launches that still use it are safe.
    found = known.insert_or_assign(key, made(like, size)).first;
  }
  return found->second;
}

}  // namespace fastmtl
