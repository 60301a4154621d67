#include "moments.h"

#include <cstring>

#include "chunks.h"

namespace fastmtl {
namespace {

// How the work is cut: units are ranges of positions, and of samples where there are few positions. Chunks of positions
// are outermost, so that the sums over the samples of a chunk stay in the cache and no T x P array is needed.
struct Plan {
  int64_t elements;  // positions of a chunk, or of a group of whole samples
  bool grouped;      // samples are shorter than a chunk: several are one sequence of values
  int64_t together;  // samples: those of a group, else one or two side by side
  int64_t position_units, sample_units;
  bool streams;  // the total goes past the caches

  // `converted`: rows of bfloat16 or float16 go through a scratch memory, which short chunks keep in the L1 cache.
  Plan(const Isa& isa, int64_t tasks, int64_t samples, int64_t positions, int64_t element_size, bool converted)
      : elements(chunk_elements(tasks, element_size)) {
    const bool paired = tasks <= isa.paired_tasks && !converted;
    if (converted) elements /= 4;
    // Memory is waited for where a row begins: long ones, as long as there are chunks for many threads.
    const int64_t longest = converted || tasks > 16 ? 1 : paired ? 4 : 2;
    elements *= std::clamp<int64_t>(positions / elements / 64, 1, longest);
    const int64_t group =
        std::clamp<int64_t>(elements / std::max<int64_t>(positions, 1), 1, std::max<int64_t>(samples, 1));
    grouped = group > 1;
    together = grouped ? group : paired ? 2 : 1;
    if (grouped) elements = positions;
    const int64_t chunks = ceil_div(positions, elements);
    const int64_t bytes = tasks * samples * positions * element_size, wanted = wanted_units(bytes);
    streams = exceeds_caches(bytes);
    position_units = std::min(wanted, chunks);
    // Split samples leave T x P sums each: only where that is little against the T x B x P reads.
    sample_units = chunks >= 32 ? 1 : std::clamp<int64_t>(std::min(wanted / chunks, samples / 16), 1, 64);
  }
};

// The state of one thread.
template <class S>
class Worker {
 public:
  Worker(const Isa& isa, const MomentsProblem& problem, const std::vector<int64_t>& present, const Plan& plan)
      : isa_(isa),
        problem_(problem),
        present_(present),
        plan_(plan),
        tasks_(present.size()),
        pitch_(padded<S>(plan.elements)),
        block_(padded<S>(2 * plan.elements * (plan.grouped ? plan.together : 1))),
        side_by_side_(plan.grouped ? 1 : plan.together),
        scratch_(side_by_side_ * (tasks_ + 1) * block_),
        sums_(tasks_ * pitch_),
        wide_(tasks_ * pitch_),
        q_lanes_(tasks_ * tasks_ * isa.lanes),
        m_lanes_(tasks_ * tasks_ * isa.lanes),
        rows_(side_by_side_ * tasks_),
        next_(tasks_) {}

  void clear() {
    std::fill_n(static_cast<double*>(q_lanes_), tasks_ * tasks_ * isa_.lanes, 0.0);
    std::fill_n(static_cast<double*>(m_lanes_), tasks_ * tasks_ * isa_.lanes, 0.0);
  }

  // One chunk of positions of samples [begin, end): writes the total, adds to Q and leaves the sums over the samples.
  void chunk(int64_t position, int64_t count, int64_t begin, int64_t end, const Block& after) {
    const int64_t values = tasks_ * pitch_;
    const bool needs_wide = plan_.grouped || end - begin > kFloatSamples;
    if (needs_wide) std::fill_n(static_cast<double*>(wide_), values, 0.0);
    for (int64_t sample = begin; sample < end; sample += plan_.together) {
      const int64_t following = sample + plan_.together;
      const Block block{sample, std::min(plan_.together, end - sample), position, count};
      const Block next =
          following < end ? Block{following, std::min(plan_.together, end - following), position, count} : after;
      if (plan_.grouped) {
        whole_samples(block, next);
        continue;
      }
      const int64_t taken = (sample - begin) % kFloatSamples;
      side_by_side(block, next, taken == 0);
      if (needs_wide && (taken + plan_.together == kFloatSamples || following >= end)) {
        for (int64_t i = 0; i < values; ++i) wide_[i] += static_cast<double>(sums_[i]);
      }
    }
    if (needs_wide) {
      for (int64_t i = 0; i < values; ++i) sums_[i] = static_cast<S>(wide_[i]);
    }
  }

  // Adds the Gram matrix of the sums over samples to M.
  void add_sums_to_M(int64_t count) {
    for (int64_t r = 0; r < tasks_; ++r) rows_[r] = sums_ + r * pitch_;
    compute<S>(isa_).gram(rows_.data(), tasks_, count, m_lanes_, {});
  }

  // The sums over samples as those of rows `pitch` apart.
  void set_sums(int64_t r, int64_t count, const S* rows, int64_t samples, int64_t pitch) {
    std::fill_n(static_cast<double*>(wide_), count, 0.0);
    compute<S>(isa_).add_samples(rows, samples, pitch, count, wide_);
    for (int64_t i = 0; i < count; ++i) sums(r)[i] = static_cast<S>(wide_[i]);
  }

  S* sums(int64_t r) { return sums_ + r * pitch_; }
  const double* q_lanes() const { return q_lanes_; }
  const double* m_lanes() const { return m_lanes_; }

 private:
  static Block one_of(const Block& block, int64_t s) { return {block.sample + s, 1, block.position, block.positions}; }

  // Rows of the block, as the s-th of those side by side, and the place of its total.
  S* load(const Block& block, int64_t s = 0) {
    for (int64_t r = 0; r < tasks_; ++r) {
      const int64_t row = s * tasks_ + r;
      rows_[row] = load_block(isa_, problem_.grads[present_[r]], block, scratch_ + row * block_);
    }
    return place_of_block<S>(problem_.total, block, total_scratch(s));
  }

  Prefetch prefetch(const Block& block, const Block& next) {
    if (next.count() == 0) return {};
    for (int64_t r = 0; r < tasks_; ++r) {
      next_[r] = address_of_block(problem_.grads[present_[r]], next);
      if (next_[r] == nullptr) return {};
    }
    const int64_t size = size_of(problem_.total.dtype);
    return {next_.data(), size, prefetch_distance(kGramAhead, tasks_, block.count(), sizeof(S), size != sizeof(S)),
            address_of_block(problem_.total, next)};
  }

  // One or two samples, each a sequence of its own. Two are not prefetched (see fused_tile).
  void side_by_side(const Block& block, const Block& next, bool first) {
    S* place[2];
    for (int64_t s = 0; s < block.samples; ++s) place[s] = load(one_of(block, s), s);
    const bool streams = plan_.streams && place[0] != total_scratch(0);
    compute<S>(isa_).sum_accumulate_gram(rows_.data(), block.samples, tasks_, block.positions, place, streams, sums_,
                                         pitch_, first, q_lanes_,
                                         block.samples == 1 ? prefetch(block, one_of(next, 0)) : Prefetch{});
    for (int64_t s = 0; s < block.samples; ++s)
      store_block<S>(isa_, problem_.total, one_of(block, s), place[s], total_scratch(s));
  }

  // Q needs no boundaries between samples: it is the Gram matrix of everything. Only the sums do.
  void whole_samples(const Block& block, const Block& next) {
    S* place = load(block);
    const Compute<S>& f = compute<S>(isa_);
    f.gram(rows_.data(), tasks_, block.count(), q_lanes_, prefetch(block, next));
    for (int64_t r = 0; r < tasks_; ++r)
      f.add_samples(rows_[r], block.samples, block.positions, block.positions, wide_ + r * pitch_);
    f.sum(rows_.data(), tasks_, block.count(), place, {});
    store_block<S>(isa_, problem_.total, block, place, total_scratch());
  }

  S* total_scratch(int64_t s = 0) { return scratch_ + (side_by_side_ * tasks_ + s) * block_; }

  const Isa& isa_;
  const MomentsProblem& problem_;
  const std::vector<int64_t>& present_;
  const Plan& plan_;
  int64_t tasks_, pitch_, block_, side_by_side_;
  Buffer<S> scratch_, sums_;
  Buffer<double> wide_, q_lanes_, m_lanes_;
  std::vector<const S*> rows_;
  std::vector<const char*> next_;
};

}  // namespace

template <class S>
void sum_moments(const Isa& isa, const Executor& parallel, const MomentsProblem& problem, double* M, double* Q) {
  const int64_t tasks = problem.grads.size(), samples = problem.samples, positions = problem.positions;
  std::fill_n(M, tasks * tasks, 0.0);
  std::fill_n(Q, tasks * tasks, 0.0);
  if (samples == 0 || positions == 0) return;
  const std::vector<int64_t> present = present_tasks(problem.grads);
  const int64_t count = present.size(), square = count * count;
  const Plan plan(isa, count, samples, positions, sizeof(S), size_of(problem.total.dtype) == 2);
  const int64_t chunks = ceil_div(positions, plan.elements), units = plan.position_units * plan.sample_units;
  const bool split = plan.sample_units > 1;
  std::vector<double> q_partial(units * square), m_partial(plan.position_units * square);
  Buffer<S> split_sums(split ? plan.sample_units * count * positions : 0);
  const auto first_chunk = [&](int64_t unit) { return chunks * unit / plan.position_units; };

  parallel(units, [&](int64_t first, int64_t last) {
    Worker<S> worker(isa, problem, present, plan);
    for (int64_t unit = first; unit < last; ++unit) {
      const int64_t pu = unit % plan.position_units, su = unit / plan.position_units;
      const int64_t begin = samples * su / plan.sample_units, end = samples * (su + 1) / plan.sample_units;
      worker.clear();
      for (int64_t c = first_chunk(pu); c < first_chunk(pu + 1); ++c) {
        const int64_t position = c * plan.elements, length = std::min(plan.elements, positions - position);
        const int64_t following = position + length;
        // The chunk that this thread comes to next, in this unit or in the one after it.
        const bool more = c + 1 < first_chunk(pu + 1) || (unit + 1 < last && pu + 1 < plan.position_units);
        const Block after =
            more ? Block{begin, 1, following, std::min(plan.elements, positions - following)} : Block{0, 1, 0, 0};
        worker.chunk(position, length, begin, end, after);
        if (!split) {
          if (samples > 1) worker.add_sums_to_M(length);
          continue;
        }
        for (int64_t r = 0; r < count; ++r)
          std::memcpy(split_sums + (su * count + r) * positions + position, worker.sums(r), length * sizeof(S));
      }
      fold(worker.q_lanes(), count, isa.lanes, &q_partial[unit * square]);
      if (!split) fold(worker.m_lanes(), count, isa.lanes, &m_partial[unit * square]);
    }
  });
  if (split) {
    parallel(plan.position_units, [&](int64_t first, int64_t last) {
      Worker<S> worker(isa, problem, present, plan);
      for (int64_t unit = first; unit < last; ++unit) {
        worker.clear();
        for (int64_t c = first_chunk(unit); c < first_chunk(unit + 1); ++c) {
          const int64_t position = c * plan.elements, length = std::min(plan.elements, positions - position);
          for (int64_t r = 0; r < count; ++r) {
            worker.set_sums(r, length, split_sums + r * positions + position, plan.sample_units, count * positions);
          }
          worker.add_sums_to_M(length);
        }
        fold(worker.m_lanes(), count, isa.lanes, &m_partial[unit * square]);
      }
    });
  }
  add_up(q_partial.data(), units, present, tasks, static_cast<double>(samples), Q);
  if (samples == 1) {
    std::copy_n(Q, tasks * tasks, M);
  } else {
    add_up(m_partial.data(), plan.position_units, present, tasks, 1.0, M);
  }
}

template void sum_moments<float>(const Isa&, const Executor&, const MomentsProblem&, double*, double*);
template void sum_moments<double>(const Isa&, const Executor&, const MomentsProblem&, double*, double*);

}  // namespace fastmtl
