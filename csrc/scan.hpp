// What the drivers of both scans share: packed weights, tiles of videos, threads, the choice of instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "scan_types.hpp"

namespace ahlm {

ScanSizes scan_sizes(std::int64_t batch, std::int64_t snippets, std::int64_t latent, std::int64_t state);

using Buffer = std::unique_ptr<float[], void (*)(float*)>;
Buffer make_buffer(std::int64_t floats);  // aligned to a cache line, zeros

// Panels [n / panel][k][panel] of the rows of `weight` [segments * size, depth], each segment padded to `pad` rows.
void pack(const float* weight, std::int64_t segments, std::int64_t size, std::int64_t pad, std::int64_t depth,
          std::int64_t panel, Buffer& packed);
// The same weight as the right side of `gradient @ weight`: panels over `depth`, one row a padded row of the weight.
void pack_back(const float* weight, std::int64_t segments, std::int64_t size, std::int64_t pad, std::int64_t depth,
               std::int64_t panel, Buffer& packed);
Buffer pad_segments(const float* values, std::int64_t segments, std::int64_t size, std::int64_t pad);
// The inverse for gradients: sums [segments * pad, row] of all groups, in order, into [segments * size, depth].
void unpad_sums(const std::vector<const float*>& groups, std::int64_t segments, std::int64_t size, std::int64_t pad,
                std::int64_t row, std::int64_t depth, unsigned n_threads, float* out);

struct PackedGru {
  std::vector<Buffer> buffers;
  GruWeights weights;
};
PackedGru pack_gru(const ScanSizes& sizes, const float* input, const float* state, const float* input_bias,
                   const float* state_bias, std::int64_t panel, bool backward);

// Videos in order of falling length, in tiles of at most `most`; a multiple of `share` tiles where there are enough.
struct ScanPlan {
  std::vector<std::int64_t> videos;
  std::vector<ScanTile> tiles;
  std::int64_t largest;  // videos of one tile
};
ScanPlan plan_tiles(const std::int64_t* lengths, const ScanSizes& sizes, std::int64_t most, std::int64_t share);

// Videos of a tile; and for the reverse scan, where the number of threads must change no sum: into how many tiles at
// least a batch is cut, and into how many sums its weight gradients are.
constexpr std::int64_t kTile = 8, kBackwardShare = 4;
constexpr std::size_t kBackwardGroups = 16;

// Calls run(task, thread) for every task on up to n_threads threads.
void run_tasks(std::size_t n_tasks, unsigned n_threads, const std::function<void(std::size_t, std::size_t)>& run);

// Sums of weight gradients, one piece of memory each, for every group of tiles.
struct SumPieces {
  std::vector<Buffer> buffers;
  std::vector<std::vector<float*>> groups;         // [group][piece]
  std::vector<std::vector<const float*>> pieces;  // [piece][group]
};
SumPieces make_sums(std::size_t n_groups, const std::vector<std::int64_t>& floats);
// Runs every tile of a group, in order, into the sums of that group.
void run_groups(const ScanPlan& plan, std::size_t n_groups, unsigned n_threads, std::int64_t scratch_floats,
                const std::function<void(const ScanTile&, std::size_t, float*)>& run);
// Runs every tile; where there are two threads for each, the second is in `help`, unless that is null.
void run_tiles(const ScanPlan& plan, unsigned n_threads, std::int64_t scratch_floats, void (*help)(ScanHelper&),
               const std::function<void(const ScanTile&, ScanHelper*, float*)>& run);
constexpr std::int64_t kHelpFrom = 1 << 16;  // multiply-adds of a video's step from which on help pays

// OpenMP's fork and join as GCC calls it: function, its argument, threads, flags. After an operator of its own, torch's
// threads stay on their cores for milliseconds, looking for work; threads beside them would get half of a core.
using ThreadPool = void (*)(void (*)(void*), void*, unsigned, unsigned);
void set_thread_pool(ThreadPool parallel);  // null: threads of our own, a call

// Builds that this machine can run, the best last ("x86-64-v2", ... or "portable"); none: no scan.
const std::vector<std::string>& scan_instruction_sets();
std::string scan_instruction_set();
void set_scan_instruction_set(const std::string& name);  // throws std::invalid_argument
std::size_t scan_instruction_set_index();                 // into kernel tables: v2, v3, v4

}  // namespace ahlm
