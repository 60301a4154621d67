// The threads of a block as fibers of one thread of the host, which gives the block its shared memory (`thread_local`).
// A thread runs until it meets the others; where some wait for one that never comes, the program ends and says so.
//
// Blocks run one after another, but ThreadSanitizer is told of nothing that orders the threads of a launch except what
// they do themselves, so that it sees races between any two of them, as if they had run at the same time:
// - A barrier of the block or the warp orders what came before it, in all that meet there, and what comes after.
// - A shuffle orders nothing.
// - An atomic orders nothing by itself. A fence right before it, with no barrier in between, makes what its thread saw
//   before visible; the next fence after it, of the same thread, makes what others so made visible seen.
// The last is PTX's causality order for fences, and narrower in one point: there a fence that comes before a barrier
// still orders what its own thread did before, here that counts for nothing.
#include "block_on_host.h"

#include <link.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>

#include "cuda_on_host.h"

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#elif defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

// For what this file does on behalf of a kernel's thread, and no GPU would.
#define UNSEEN __attribute__((no_sanitize("thread"), noinline))

namespace on_host {
namespace {

constexpr size_t kStack = size_t{1} << 16;
constexpr size_t kSpoilt = size_t{1} << 13;  // of a stack: where the kernel itself is, and what it calls first

enum class State { ready, at_block, at_warp, at_shuffle, ended };

struct Lane {
  ucontext_t context;
  State state;
  uint64_t shown;
  int meetings[2];   // of the block and of the warp, so far
  bool fenced;       // no barrier or atomic has come since a fence
  uint32_t* ticket;  // of an atomic that no fence has followed
  void* fiber;
};

struct Block {
  const fastmtl::cuda::Launch* launch;
  Lane* lanes;
  ucontext_t home;
  void* home_fiber;
  // What orders two meetings: a thread may be at the next one before another has left the last.
  uint64_t block_meetings[2], warp_meetings[32][2];
};

thread_local Block* team = nullptr;
uint64_t all_ended;  // orders a launch and what comes after it

#if defined(__SANITIZE_THREAD__)
void* this_fiber() { return __tsan_get_current_fiber(); }
void* new_fiber() { return __tsan_create_fiber(0); }
void end_fiber(void* fiber) { __tsan_destroy_fiber(fiber); }
UNSEEN void run_as(void* fiber) { __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync); }
UNSEEN void release(void* what) { __tsan_release(what); }
UNSEEN void acquire(void* what) { __tsan_acquire(what); }
#else
void* this_fiber() { return nullptr; }
void* new_fiber() { return nullptr; }
void end_fiber(void*) {}
void run_as(void*) {}
void release(void*) {}
void acquire(void*) {}
#endif

UNSEEN void leave(State state) {
  Lane& lane = team->lanes[thread.x];
  lane.state = state;
  run_as(team->home_fiber);
  swapcontext(&lane.context, &team->home);
}

UNSEEN void lane_main() {
  team->launch->call(team->launch->kernel, team->launch->parameters);
  release(&all_ended);
  leave(State::ended);
}

UNSEEN void resume(unsigned t) {
  Lane& lane = team->lanes[t];
  thread = {t, 0, 0};
  run_as(lane.fiber);
  swapcontext(&team->home, &lane.context);
}

[[noreturn]] void fail() {
  static const char* const states[] = {"runs", "waits for the block", "waits for the warp", "shuffles", "has ended"};
  std::fprintf(stderr, "divergence: threads of block %u wait for others that do something else\n", block.x);
  State last = State::ready;
  for (unsigned t = 0; t < threads.x; ++t) {
    const State state = team->lanes[t].state;
    if (state != last) std::fprintf(stderr, "  from thread %u on: %s\n", t, states[static_cast<int>(state)]);
    last = state;
  }
  std::abort();
}

// Whether all of these threads are in one state.
bool all_in(State state, unsigned begin, unsigned end) {
  for (unsigned t = begin; t < end; ++t) {
    if (team->lanes[t].state != state) return false;
  }
  return true;
}

// Whether any thread can go on.
bool let_go() {
  const unsigned count = threads.x;
  bool some = false;
  const auto free = [&](State state, unsigned begin, unsigned end) {
    if (!all_in(state, begin, end)) return;
    for (unsigned t = begin; t < end; ++t) team->lanes[t].state = State::ready;
    some = true;
  };
  for (unsigned begin = 0; begin < count; begin += 32) {
    const unsigned end = begin + 32 < count ? begin + 32 : count;
    free(State::at_warp, begin, end);
    free(State::at_shuffle, begin, end);
  }
  free(State::at_block, 0, count);
  return some;
}

// What a block finds in its shared memory, and a thread in its registers, is of no use to it: NaNs.
UNSEEN void spoil(char* begin, size_t size) {
  for (size_t i = 0; i < size; ++i) begin[i] = static_cast<char>(0xff);
}

// All that is `thread_local` in the module of the kernels.
UNSEEN int spoil_shared(dl_phdr_info* module, size_t, void*) {
  for (int i = 0; i < module->dlpi_phnum; ++i) {
    if (module->dlpi_phdr[i].p_type != PT_TLS) continue;
    char* const begin = static_cast<char*>(module->dlpi_tls_data);
    const size_t size = module->dlpi_phdr[i].p_memsz, at = reinterpret_cast<char*>(&thread) - begin;
    if (at >= size) continue;
    spoil(begin, size);
    return 1;
  }
  return 0;
}

void run_block(Block& mine, const std::vector<unsigned>& order) {
  team = &mine;
  mine.home_fiber = this_fiber();
  const size_t size = kStack * order.size();
  // Memory that is new to the sanitizers.
  char* stacks = static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (stacks == MAP_FAILED) std::abort();
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stacks, size);
#endif
  for (size_t t = 0; t < order.size(); ++t) {
    Lane& lane = mine.lanes[t];
    lane.fiber = new_fiber();
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = stacks + t * kStack;
    lane.context.uc_stack.ss_size = kStack;
    lane.context.uc_link = nullptr;
    spoil(stacks + (t + 1) * kStack - kSpoilt, kSpoilt);
    makecontext(&lane.context, lane_main, 0);
    lane.context.uc_stack.ss_size = 0;  // or AddressSanitizer forgets the stack at each change of fibers
  }
  do {
    for (const unsigned t : order) {
      if (mine.lanes[t].state == State::ready) resume(t);
    }
  } while (let_go());
  if (!all_in(State::ended, 0, threads.x)) fail();
  munmap(stacks, size);
}

}  // namespace

UNSEEN void meet(Meeting at) {
  Lane& lane = team->lanes[thread.x];
  if (at == Meeting::shuffle) return leave(State::at_shuffle);
  const bool all = at == Meeting::block;
  uint64_t* meetings = all ? team->block_meetings : team->warp_meetings[thread.x / 32];
  uint64_t* meeting = &meetings[lane.meetings[all ? 0 : 1]++ % 2];
  release(meeting);
  leave(all ? State::at_block : State::at_warp);
  acquire(meeting);
  lane.fenced = false;
}

UNSEEN void show(uint64_t bits) { team->lanes[thread.x].shown = bits; }
UNSEEN uint64_t shown_by(unsigned lane) { return team->lanes[thread.x / 32 * 32 + lane].shown; }

UNSEEN void fence() {
  Lane& lane = team->lanes[thread.x];
  if (lane.ticket != nullptr) acquire(lane.ticket);
  lane.ticket = nullptr;
  lane.fenced = true;
}

// The atomic orders itself and those before it with what follows it in its thread, so ThreadSanitizer need not see it.
UNSEEN uint32_t add(uint32_t* p, uint32_t x) {
  Lane& lane = team->lanes[thread.x];
  if (lane.fenced) release(p);
  lane.ticket = p;
  lane.fenced = false;
  return __atomic_fetch_add(p, x, __ATOMIC_RELAXED);
}

void run(const fastmtl::cuda::Launch& launch, const std::vector<unsigned>& order_of_blocks,
         const std::vector<unsigned>& order_of_threads) {
  std::vector<void*> fibers;
  for (const unsigned index : order_of_blocks) {
    const std::unique_ptr<Lane[]> lanes(new Lane[launch.threads]());
    const std::unique_ptr<Block> mine(new Block{});  // ThreadSanitizer would know a place on a stack again
    std::thread([&] {
      if (dl_iterate_phdr(spoil_shared, nullptr) != 1) std::abort();
      block = {index, 0, 0};
      threads = {static_cast<unsigned>(launch.threads), 1, 1};
      blocks = {static_cast<unsigned>(launch.blocks), 1, 1};
      mine->launch = &launch;
      mine->lanes = lanes.get();
      run_block(*mine, order_of_threads);
    }).join();
    for (int t = 0; t < launch.threads; ++t) fibers.push_back(lanes[t].fiber);
  }
  acquire(&all_ended);
  for (void* fiber : fibers) end_fiber(fiber);  // not before: ThreadSanitizer takes one that follows for the same
}

}  // namespace on_host
