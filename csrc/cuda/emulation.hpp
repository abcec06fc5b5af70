// The functions of hardware.hpp on a CPU: every CUDA thread of a cluster is a fibre, barriers and mailboxes are real.
//
// A seed shuffles what a card leaves open. One warp runs as far ahead of the others as barriers let it, and which one
// changes at random; what is sent to another block arrives late, in any order. So a barrier that is missing shows: as
// a wrong result, as a read of memory that is still NaN, or as a deadlock, which is reported.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#define AHLM_DEVICE inline
#define AHLM_KERNEL(threads) void
#define AHLM_UNROLL

struct float4 {
  float x, y, z, w;
};

namespace ahlm::gpu {

using Half = _Float16;
struct Mailbox {
  std::int32_t bytes;  // expected and not here yet; negative where they come before they are expected
  std::int16_t arrivals, phase;
};

constexpr int kLanesOfWarp = 32, kBlocksOfCluster = 8;

struct Block {
  std::vector<unsigned char> shared;
  int running = 0;
};
struct Fibre;
struct Barrier {
  int members = 0;
  std::vector<Fibre*> waiting;
};
struct Warp {
  std::vector<Fibre*> runnable;
  const char* meeting = nullptr;
  int arrived = 0;
  Fibre* members[kLanesOfWarp];
  void* operands[kLanesOfWarp];
  std::uint32_t priority = 0;
};
struct Fibre {
  ucontext_t context;
  jmp_buf jump;
  bool started = false;
  int thread, rank, warp;
  const char* waits_for = nullptr;
};
struct Message {
  unsigned char bytes[16];
  int size, rank;
  void* place;
  Mailbox* box;
};

// One cluster at a time; a single operating-system thread.
struct Machine {
  std::uint64_t seed = 0;
  std::mt19937_64 random;
  std::string error;
  int cluster = 0, alive = 0;
  int dropped = 0;  // a barrier to leave out
  double promptness = 1;  // how often something on its way arrives rather than a fibre runs
  std::function<void()> kernel;
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  std::vector<Block> blocks;
  std::vector<Barrier> block_barriers;
  Barrier cluster_barrier;
  std::vector<Message> messages;
  std::map<Mailbox*, std::vector<Fibre*>> waiting;
  Fibre* current = nullptr;
  jmp_buf scheduler;
  std::uint64_t switches = 0;
};
inline Machine& machine() {
  static Machine one;
  return one;
}

inline void wake(Fibre* fibre) {
  fibre->waits_for = nullptr;
  machine().warps[static_cast<std::size_t>(fibre->warp)].runnable.push_back(fibre);
}
__attribute__((noinline)) inline void block(const char* on) {
  machine().current->waits_for = on;
  if (!_setjmp(machine().current->jump)) _longjmp(machine().scheduler, 1);
}
inline void fail(const std::string& what) {
  if (machine().error.empty()) machine().error = what;
}

inline void settle(Mailbox* box) {
  if (box->arrivals < 0) return fail("a mailbox was told twice what to expect");
  if (box->arrivals != 0 || box->bytes != 0) return;
  ++box->phase;
  box->arrivals = 1;
  const std::vector<Fibre*> woken = std::move(machine().waiting[box]);
  machine().waiting.erase(box);
  for (Fibre* fibre : woken) wake(fibre);
}
inline void deliver() {
  Machine& m = machine();
  std::swap(m.messages[m.random() % m.messages.size()], m.messages.back());
  const Message message = m.messages.back();
  m.messages.pop_back();
  if (m.blocks[static_cast<std::size_t>(message.rank)].running == 0)
    return fail("something was sent to the shared memory of a block that had ended");
  std::memcpy(message.place, message.bytes, static_cast<std::size_t>(message.size));
  message.box->bytes -= message.size;
  settle(message.box);
}

inline void start_fibre() {
  Machine& m = machine();
  m.kernel();
  --m.alive;
  --m.blocks[static_cast<std::size_t>(m.current->rank)].running;
  _longjmp(m.scheduler, 1);
}

// runs fibres until all have ended or none can go on
__attribute__((noinline)) inline void schedule() {
  Machine& m = machine();
  while (m.alive > 0 && m.error.empty()) {
    if (m.switches++ % 256 == 0)
      for (Warp& warp : m.warps) warp.priority = static_cast<std::uint32_t>(m.random());
    Warp* chosen = nullptr;
    for (Warp& warp : m.warps)
      if (!warp.runnable.empty() && (!chosen || warp.priority > chosen->priority)) chosen = &warp;
    const double chance = static_cast<double>(m.random() >> 11) * 0x1p-53;
    if (!m.messages.empty() && (!chosen || chance < m.promptness)) {
      deliver();
      continue;
    }
    if (!chosen) {
      std::string on;
      for (const Fibre& fibre : m.fibres)
        if (fibre.waits_for) on = fibre.waits_for;
      return fail("deadlock, the last thread waits for " + on);
    }
    std::swap(chosen->runnable[m.random() % chosen->runnable.size()], chosen->runnable.back());
    m.current = chosen->runnable.back();
    chosen->runnable.pop_back();
    if (_setjmp(m.scheduler)) continue;
    if (m.current->started) _longjmp(m.current->jump, 1);
    m.current->started = true;
    setcontext(&m.current->context);
  }
}

// the fibres of one cluster, each with its part of `stacks`, and memory that is NaN until it is written
constexpr std::size_t kStack = 64 * 1024;
__attribute__((noinline)) inline void prepare(Fibre& fibre, char* stack) {
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = stack;
  fibre.context.uc_stack.ss_size = kStack;
  makecontext(&fibre.context, start_fibre, 0);
  wake(&fibre);
}
inline void prepare_cluster(int threads, std::size_t shared_bytes, char* stacks) {
  Machine& m = machine();
  const int count = threads * kBlocksOfCluster;
  m.blocks.assign(kBlocksOfCluster, Block{});
  for (Block& b : m.blocks) {
    b.shared.assign(shared_bytes + 128, 0xff);
    b.running = threads;
  }
  m.block_barriers.assign(kBlocksOfCluster, Barrier{threads, {}});
  m.cluster_barrier = {count, {}};
  m.warps.assign(static_cast<std::size_t>(count / kLanesOfWarp), Warp{});
  m.fibres.assign(static_cast<std::size_t>(count), Fibre{});
  m.messages.clear();
  m.waiting.clear();
  m.alive = count;
  for (int i = 0; i < count; ++i) {
    Fibre& fibre = m.fibres[static_cast<std::size_t>(i)];
    fibre.thread = i % threads;
    fibre.rank = i / threads;
    fibre.warp = i / kLanesOfWarp;
    m.warps[static_cast<std::size_t>(fibre.warp)].members[i % kLanesOfWarp] = &fibre;
    prepare(fibre, stacks + kStack * static_cast<std::size_t>(i));
  }
}

// every cluster of a grid in turn; returns what went wrong, or nothing
inline std::string run(int clusters, int threads, std::size_t shared_bytes, const std::function<void()>& kernel) {
  Machine& m = machine();
  m.random.seed(m.seed);
  m.error.clear();
  m.kernel = kernel;
  const double promptness[] = {1.0, 0.2, 0.01, 0.0};
  m.promptness = promptness[m.seed % 4];
  const std::unique_ptr<char[]> stacks(new char[kStack * static_cast<std::size_t>(threads * kBlocksOfCluster)]);
  for (m.cluster = 0; m.cluster < clusters && m.error.empty(); ++m.cluster) {
    prepare_cluster(threads, shared_bytes, stacks.get());
    schedule();
  }
  return m.error;
}

inline int thread_index() { return machine().current->thread; }
inline int cluster_index() { return machine().cluster; }
inline int cluster_rank() { return machine().current->rank; }

inline unsigned char* shared_base(int rank) {
  unsigned char* const start = machine().blocks[static_cast<std::size_t>(rank)].shared.data();
  return start + (128 - reinterpret_cast<std::uintptr_t>(start) % 128) % 128;
}
template <typename T>
T& shared_memory() {
  return *reinterpret_cast<T*>(shared_base(cluster_rank()));
}

inline bool keeps(int barrier) { return machine().dropped != barrier; }
inline void wait_at(Barrier& barrier, const char* name) {
  if (static_cast<int>(barrier.waiting.size()) + 1 < barrier.members) {
    barrier.waiting.push_back(machine().current);
    return block(name);
  }
  const std::vector<Fibre*> woken = std::move(barrier.waiting);
  barrier.waiting.clear();
  for (Fibre* fibre : woken) wake(fibre);
}
inline void block_barrier() {
  wait_at(machine().block_barriers[static_cast<std::size_t>(cluster_rank())], "a block barrier");
}
inline void cluster_barrier() { wait_at(machine().cluster_barrier, "a cluster barrier"); }

// the lanes of a warp meet; the last one to come does the work for all
template <typename Operand, typename Work>
void meet(const char* name, Operand& mine, Work work) {
  Fibre* const me = machine().current;
  Warp& warp = machine().warps[static_cast<std::size_t>(me->warp)];
  if (warp.arrived > 0 && std::strcmp(warp.meeting, name) != 0)
    fail(std::string("lanes of one warp are at ") + warp.meeting + " and at " + name);
  warp.meeting = name;
  warp.operands[me->thread % kLanesOfWarp] = &mine;
  if (++warp.arrived < kLanesOfWarp) return block(name);
  warp.arrived = 0;
  Operand* all[kLanesOfWarp];
  for (int i = 0; i < kLanesOfWarp; ++i) all[i] = static_cast<Operand*>(warp.operands[i]);
  work(all);
  for (Fibre* fibre : warp.members)
    if (fibre != me) wake(fibre);
}
inline void warp_barrier() {
  int nothing = 0;
  meet("a warp barrier", nothing, [](int**) {});
}

inline void mailbox_open(Mailbox* box) { *box = {0, 1, 0}; }
inline void mailboxes_opened() {}
inline void mailbox_expect(Mailbox* box, int bytes) {
  box->bytes += bytes;
  --box->arrivals;
  settle(box);
}
inline void mailbox_wait(Mailbox* box, int parity) {
  while ((box->phase & 1) == parity) {
    machine().waiting[box].push_back(machine().current);
    block("a mailbox");
  }
}
template <typename T>
void send(const T& value, void* place, Mailbox* box, int rank) {
  static_assert(sizeof(T) == 8 || sizeof(T) == 16, "st.async takes 8 or 16 bytes here");
  const auto there = [rank](void* here) {
    return shared_base(rank) + (static_cast<unsigned char*>(here) - shared_base(cluster_rank()));
  };
  if (reinterpret_cast<std::uintptr_t>(place) % sizeof(T) != 0) fail("something was sent to where it is not aligned");
  Message message{};
  std::memcpy(message.bytes, &value, sizeof(T));
  message.size = sizeof(T);
  message.rank = rank;
  message.place = there(place);
  message.box = reinterpret_cast<Mailbox*>(there(box));
  machine().messages.push_back(message);
}

inline float shuffle_xor(float value, int mask) {
  struct {
    float in, out;
  } mine{value, 0.0f};
  meet("a shuffle", mine, [mask](auto** all) {
    for (int i = 0; i < kLanesOfWarp; ++i) all[i]->out = all[i ^ mask]->in;
  });
  return mine.out;
}
inline unsigned ballot(bool value) {
  struct {
    bool in;
    unsigned out;
  } mine{value, 0};
  meet("a ballot", mine, [](auto** all) {
    unsigned votes = 0;
    for (int i = 0; i < kLanesOfWarp; ++i) votes |= static_cast<unsigned>(all[i]->in) << i;
    for (int i = 0; i < kLanesOfWarp; ++i) all[i]->out = votes;
  });
  return mine.out;
}

inline void load_matrices(std::uint32_t (&piece)[4], const void* row) {
  struct {
    const unsigned char* row;
    std::uint32_t* piece;
  } mine{static_cast<const unsigned char*>(row), piece};
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) fail("a row of a matrix is not aligned to 16 bytes");
  meet("loading matrices", mine, [](auto** all) {
    for (int lane = 0; lane < kLanesOfWarp; ++lane)
      for (int i = 0; i < 4; ++i) std::memcpy(all[lane]->piece + i, all[8 * i + lane / 4]->row + 4 * (lane % 4), 4);
  });
}
inline void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  struct {
    float* c;
    const std::uint32_t* a;
    std::uint32_t b[2];
  } mine{c, a, {b0, b1}};
  meet("multiplying matrices", mine, [](auto** all) {
    float left[16][16], right[16][8];
    for (int lane = 0; lane < kLanesOfWarp; ++lane)
      for (int i = 0; i < 4; ++i) {
        Half pair[2];
        std::memcpy(pair, all[lane]->a + i, 4);
        for (int j = 0; j < 2; ++j)
          left[lane / 4 + i % 2 * 8][2 * (lane % 4) + j + i / 2 * 8] = static_cast<float>(pair[j]);
        if (i >= 2) continue;
        std::memcpy(pair, all[lane]->b + i, 4);
        for (int j = 0; j < 2; ++j) right[2 * (lane % 4) + j + 8 * i][lane / 4] = static_cast<float>(pair[j]);
      }
    for (int lane = 0; lane < kLanesOfWarp; ++lane)
      for (int i = 0; i < 4; ++i) {
        float sum = all[lane]->c[i];
        for (int k = 0; k < 16; ++k) sum += left[lane / 4 + i / 2 * 8][k] * right[k][2 * (lane % 4) + i % 2];
        all[lane]->c[i] = sum;
      }
  });
}

inline Half to_half(float x) {
  x = x < -65504.0f ? -65504.0f : x;
  return static_cast<Half>(x > 65504.0f ? 65504.0f : x);
}
inline std::uint32_t half_bits(Half x) {
  std::uint16_t bits;
  std::memcpy(&bits, &x, 2);
  return bits;
}
inline float fast_exp(float x) { return std::exp(x); }
inline float fast_log(float x) { return std::log(x); }
inline float fast_divide(float x, float y) { return x / y; }

}  // namespace ahlm::gpu
