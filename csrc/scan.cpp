#include "scan.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <numeric>
#include <stdexcept>
#include <system_error>
#include <thread>

namespace ahlm {
namespace {

constexpr std::int64_t kSegment = 16, kRow = 32;  // of padding, in floats; every panel's width divides a row

std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

// an odd number of cache lines, so that a column through many rows does not fall into a few sets of the cache
std::int64_t row_of(std::int64_t n) { return round_up(n, kRow) + kSegment; }

std::vector<std::string> find_instruction_sets() {
#if defined(AHLM_SCAN_PORTABLE)
  return {"portable"};
#else
  std::vector<std::string> found;
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("popcnt")) return found;
  found.emplace_back("x86-64-v2");
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2")) return found;
  found.emplace_back("x86-64-v3");
  for (const bool part : {__builtin_cpu_supports("avx512f") != 0, __builtin_cpu_supports("avx512bw") != 0,
                          __builtin_cpu_supports("avx512cd") != 0, __builtin_cpu_supports("avx512dq") != 0,
                          __builtin_cpu_supports("avx512vl") != 0})
    if (!part) return found;
  found.emplace_back("x86-64-v4");
  return found;
#endif
}

std::atomic<ThreadPool> pool{nullptr};

// Calls run(thread) on `wanted` threads at once, or on fewer where the system has no more to give.
void run_threads(std::size_t wanted, unsigned n_threads, const std::function<void(std::size_t)>& run) {
  struct Team {
    std::size_t wanted;
    const std::function<void(std::size_t)>& run;
    std::atomic<std::size_t> arrived{0};
  } team{wanted, run};
  const auto join = [](void* given) {
    Team& own = *static_cast<Team*>(given);
    const std::size_t thread = own.arrived++;
    if (thread < own.wanted) own.run(thread);
  };
  const ThreadPool given = pool;
  // always as many threads as the pool has: it would end those that are not asked for
  if (wanted > 1 && given) return given(join, &team, n_threads, 0);
  std::vector<std::thread> others;
  try {
    while (others.size() + 1 < wanted) others.emplace_back(join, &team);
  } catch (const std::system_error&) {
    // fewer do the same work
  }
  join(&team);
  for (std::thread& other : others) other.join();
}

std::atomic<std::size_t>& chosen() {
  static std::atomic<std::size_t> index{scan_instruction_sets().size() - 1};
  return index;
}

}  // namespace

const std::vector<std::string>& scan_instruction_sets() {
  static const std::vector<std::string> sets = find_instruction_sets();
  return sets;
}

void set_thread_pool(ThreadPool parallel) { pool = parallel; }

std::size_t scan_instruction_set_index() {
  if (scan_instruction_sets().empty()) throw std::runtime_error("the compiled scans need x86-64-v2");
  return chosen();
}

std::string scan_instruction_set() { return scan_instruction_sets()[scan_instruction_set_index()]; }

void set_scan_instruction_set(const std::string& name) {
  const auto& sets = scan_instruction_sets();
  const auto found = std::find(sets.begin(), sets.end(), name);
  if (found == sets.end()) {
    std::string expected;
    for (const std::string& set : sets) expected += (expected.empty() ? "" : ", ") + set;
    throw std::invalid_argument("this machine runs the scans built for " + expected + ", not for " + name);
  }
  chosen() = static_cast<std::size_t>(found - sets.begin());
}

ScanSizes scan_sizes(std::int64_t batch, std::int64_t snippets, std::int64_t latent, std::int64_t state) {
  const std::int64_t latent_pad = round_up(latent, kSegment), state_pad = round_up(state, kSegment);
  return {batch,      snippets,  latent, state, latent_pad, state_pad, row_of(latent), row_of(state),
          row_of(3 * state_pad)};
}

Buffer make_buffer(std::int64_t floats) {
  const auto line = std::align_val_t{64};
  const auto bytes = static_cast<std::size_t>(std::max<std::int64_t>(floats, 1)) * sizeof(float);
  auto* const data = static_cast<float*>(::operator new(bytes, line));
  std::memset(data, 0, bytes);
  return {data, [](float* p) { ::operator delete(p, std::align_val_t{64}); }};
}

void pack(const float* weight, std::int64_t segments, std::int64_t size, std::int64_t pad, std::int64_t depth,
          std::int64_t panel, Buffer& packed) {
  packed = make_buffer(round_up(segments * pad, kRow) * depth);
  for (std::int64_t segment = 0; segment < segments; ++segment)
    for (std::int64_t i = 0; i < size; ++i) {
      const std::int64_t n = segment * pad + i;
      const float* const row = weight + (segment * size + i) * depth;
      float* const column = packed.get() + n / panel * panel * depth + n % panel;
      for (std::int64_t k = 0; k < depth; ++k) column[k * panel] = row[k];
    }
}

void pack_back(const float* weight, std::int64_t segments, std::int64_t size, std::int64_t pad, std::int64_t depth,
               std::int64_t panel, Buffer& packed) {
  const std::int64_t rows = segments * pad;
  packed = make_buffer(round_up(depth, kRow) * rows);
  for (std::int64_t begin = 0; begin < depth; begin += panel) {
    const auto width = static_cast<std::size_t>(std::min(panel, depth - begin)) * sizeof(float);
    for (std::int64_t segment = 0; segment < segments; ++segment)
      for (std::int64_t i = 0; i < size; ++i)
        std::memcpy(packed.get() + begin * rows + (segment * pad + i) * panel,
                    weight + (segment * size + i) * depth + begin, width);
  }
}

Buffer pad_segments(const float* values, std::int64_t segments, std::int64_t size, std::int64_t pad) {
  Buffer padded = make_buffer(round_up(segments * pad, kRow));
  for (std::int64_t segment = 0; segment < segments; ++segment)
    std::copy_n(values + segment * size, size, padded.get() + segment * pad);
  return padded;
}

void unpad_sums(const std::vector<const float*>& groups, std::int64_t segments, std::int64_t size, std::int64_t pad,
                std::int64_t row, std::int64_t depth, unsigned n_threads, float* out) {
  constexpr std::int64_t kBlock = 64;
  const std::int64_t rows = segments * size, blocks = (rows + kBlock - 1) / kBlock;
  run_tasks(static_cast<std::size_t>(blocks), n_threads, [&](std::size_t block, std::size_t) {
    const std::int64_t begin = static_cast<std::int64_t>(block) * kBlock;
    for (std::int64_t i = begin; i < std::min(begin + kBlock, rows); ++i) {
      const std::int64_t from = (i / size * pad + i % size) * row;
      float* const to = out + i * depth;
      std::copy_n(groups[0] + from, depth, to);
      for (std::size_t group = 1; group < groups.size(); ++group)
        for (std::int64_t k = 0; k < depth; ++k) to[k] += groups[group][from + k];
    }
  });
}

PackedGru pack_gru(const ScanSizes& s, const float* input, const float* state, const float* input_bias,
                   const float* state_bias, std::int64_t panel, bool backward) {
  PackedGru gru{};
  const auto keep = [&](Buffer buffer) {
    gru.buffers.push_back(std::move(buffer));
    return gru.buffers.back().get();
  };
  const auto packed = [&](auto how, const float* weight, std::int64_t depth) {
    Buffer buffer = make_buffer(0);
    how(weight, 3, s.state, s.state_pad, depth, panel, buffer);
    return keep(std::move(buffer));
  };
  gru.weights.input = packed(pack, input, s.latent);
  gru.weights.state = packed(pack, state, s.state);
  gru.weights.input_bias = keep(pad_segments(input_bias, 3, s.state, s.state_pad));
  gru.weights.state_bias = keep(pad_segments(state_bias, 3, s.state, s.state_pad));
  if (backward) {
    gru.weights.input_back = packed(pack_back, input, s.latent);
    gru.weights.state_back = packed(pack_back, state, s.state);
  }
  return gru;
}

ScanPlan plan_tiles(const std::int64_t* lengths, const ScanSizes& sizes, std::int64_t most, std::int64_t share) {
  ScanPlan plan{};
  plan.videos.resize(static_cast<std::size_t>(sizes.batch));
  std::iota(plan.videos.begin(), plan.videos.end(), 0);
  std::stable_sort(plan.videos.begin(), plan.videos.end(),
                   [&](std::int64_t a, std::int64_t b) { return lengths[a] > lengths[b]; });
  const std::int64_t tiles = std::min(sizes.batch, round_up((sizes.batch + most - 1) / most, share));
  for (std::int64_t i = 0; i < tiles; ++i) {
    const std::int64_t begin = sizes.batch * i / tiles, end = sizes.batch * (i + 1) / tiles;
    plan.tiles.push_back({plan.videos.data() + begin, end - begin});
    plan.largest = std::max(plan.largest, end - begin);
  }
  return plan;
}

void run_tasks(std::size_t n_tasks, unsigned n_threads,
               const std::function<void(std::size_t, std::size_t)>& run) {
  std::atomic<std::size_t> next{0};
  run_threads(std::min<std::size_t>(n_threads, n_tasks), n_threads, [&](std::size_t thread) {
    for (std::size_t task; (task = next++) < n_tasks;) run(task, thread);
  });
}

SumPieces make_sums(std::size_t n_groups, const std::vector<std::int64_t>& floats) {
  SumPieces sums{{}, std::vector<std::vector<float*>>(n_groups), std::vector<std::vector<const float*>>(floats.size())};
  for (std::vector<float*>& group : sums.groups)
    for (std::size_t i = 0; i < floats.size(); ++i) {
      sums.buffers.push_back(make_buffer(floats[i]));
      group.push_back(sums.buffers.back().get());
      sums.pieces[i].push_back(sums.buffers.back().get());
    }
  return sums;
}

void run_groups(const ScanPlan& plan, std::size_t n_groups, unsigned n_threads, std::int64_t scratch_floats,
                const std::function<void(const ScanTile&, std::size_t, float*)>& run) {
  std::vector<Buffer> scratch;
  for (std::size_t i = 0; i < std::min<std::size_t>(n_threads, n_groups); ++i)
    scratch.push_back(make_buffer(scratch_floats));
  run_tasks(n_groups, n_threads, [&](std::size_t group, std::size_t thread) {
    for (std::size_t tile = group; tile < plan.tiles.size(); tile += n_groups)
      run(plan.tiles[tile], group, scratch[thread].get());
  });
}

void run_tiles(const ScanPlan& plan, unsigned n_threads, std::int64_t scratch_floats, void (*help)(ScanHelper&),
               const std::function<void(const ScanTile&, ScanHelper*, float*)>& run) {
  const std::size_t n_tiles = plan.tiles.size(), n_scans = std::min<std::size_t>(n_threads, n_tiles);
  const bool helped = help && 2 * n_tiles <= n_threads;
  std::vector<ScanHelper> helpers(helped ? n_tiles : 0);
  for (ScanHelper& helper : helpers) helper.yield = std::this_thread::yield;
  std::vector<Buffer> scratch;
  for (std::size_t i = 0; i < n_scans; ++i) scratch.push_back(make_buffer(scratch_floats));
  std::atomic<std::size_t> next{0};
  run_threads(n_scans + helpers.size(), n_threads, [&](std::size_t thread) {
    if (thread >= n_scans) return help(helpers[thread - n_scans]);
    for (std::size_t tile; (tile = next++) < n_tiles;) {
      run(plan.tiles[tile], helped ? &helpers[tile] : nullptr, scratch[thread].get());
      if (helped) __atomic_store_n(&helpers[tile].given, ScanHelper::kEnd, __ATOMIC_RELEASE);
    }
  });
}

}  // namespace ahlm
