// How the work of `sum_moments` is shared out, the same for few tasks and many.
#include "sum_moments.h"

#include <algorithm>

#include "blocks.h"

namespace fastmtl::cuda {

namespace {

// Each tile has a ticket, and each group of the blocks that share its samples.
constexpr int64_t kMostShares = 1900;

int64_t solver_numbers(const SumMoments& p) { return p.step ? 2 * GnrUpdate<float, BlockTeam>::workspace(p.tasks) : 0; }

int64_t rows_of(const Finish& f) { return f.blocks + f.groups(); }

int64_t launched(const SumMoments& p) {
  return p.splits() > 1 ? int64_t{p.finish.blocks} * p.splits() : p.finish.blocks;
}

}  // namespace

int64_t plan(const Device& device, const MomentsKernel& kernel, SumMoments& p) {
  const int64_t tiles = std::max<int64_t>(1, (p.positions.count + kernel.positions - 1) / kernel.positions);
  const int64_t most = blocks_for(device, reinterpret_cast<const void*>(kernel.kernel), kernel.threads, INT64_MAX);
  // Few positions: threads that a sample leaves idle take other samples.
  p.lanes = kernel.threads;
  while (kernel.lanes && p.lanes > 1 && p.lanes / 2 * kernel.group >= p.positions.count) p.lanes /= 2;
  const int64_t least = std::max<int64_t>(kernel.samples, 2 * (kernel.threads / p.lanes));
  // Without positions there are no samples to share: a block that has no tile would take itself for the last.
  const int64_t samples = p.positions.count == 0 ? 0 : p.batch;
  const int64_t splits = std::max<int64_t>(1, std::min(std::min(most, kMostShares) / tiles, samples / least));
  if (splits == 1) p.lanes = kernel.threads;
  p.samples.blocks = static_cast<int>(splits);
  p.samples.group = group_of(p.samples.blocks);
  p.finish.blocks = static_cast<int>(splits > 1 ? tiles : std::min(tiles, most));
  p.finish.group = group_of(p.finish.blocks);
  const int64_t shares = splits > 1 ? tiles * rows_of(p.samples) * kernel.share : 0;
  return solver_numbers(p) + rows_of(p.finish) * kernel.row + shares;
}

const char* sum_moments(const Device& device, const MomentsKernel& kernel, float* numbers, uint32_t* tickets,
                        SumMoments& p) {
  p.memory = reinterpret_cast<double*>(numbers);
  p.finish.partials = numbers + solver_numbers(p);
  p.finish.tickets = tickets;
  p.samples.partials = p.finish.partials + rows_of(p.finish) * kernel.row;
  p.samples.tickets = tickets + 1 + p.finish.groups();
  return launch(device, kernel.kernel, launched(p), kernel.threads, p);
}

}  // namespace fastmtl::cuda
