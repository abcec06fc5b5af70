// What the kernels ask of the hardware, as small functions: PTX for sm_90 here, the same functions on fibres in
// emulation.hpp. Kernels are written against this list only, so that one source runs on a card and, slowly, on any CPU.
//
//   place      thread_index, cluster_index, cluster_rank, shared_memory<T>
//   barriers   warp_barrier, block_barrier, cluster_barrier; keeps(n) is false where the emulation is to leave one out
//   mailboxes  words in shared memory that count bytes on their way from other blocks of the cluster (mbarrier):
//              mailbox_open, mailboxes_opened, mailbox_expect, mailbox_wait, send
//   a warp     shuffle_xor, ballot
//   matrices   load_matrices (ldmatrix), multiply (mma m16n8k16, fp16 to fp32)
//   numbers    Half, to_half, fast_exp, fast_log, fast_divide
//
// A lane l of a warp stands at row l / 4 and columns 2 (l % 4), 2 (l % 4) + 1 of the 8 x 8 pieces of those matrices.
#pragma once

#include <cstdint>

#ifdef AHLM_EMULATE
#include "emulation.hpp"
#else

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define AHLM_DEVICE __device__ __forceinline__
#define AHLM_KERNEL(threads) __global__ void __cluster_dims__(8, 1, 1) __launch_bounds__(threads, 1)
#define AHLM_UNROLL _Pragma("unroll")

namespace ahlm::gpu {

using Half = __half;
struct Mailbox {
  std::uint64_t word;
};

AHLM_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
AHLM_DEVICE int cluster_index() { return static_cast<int>(blockIdx.x / 8); }
AHLM_DEVICE int cluster_rank() {
  std::uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
template <typename T>
AHLM_DEVICE T& shared_memory() {
  extern __shared__ __align__(128) unsigned char ahlm_shared[];
  return *reinterpret_cast<T*>(ahlm_shared);
}

AHLM_DEVICE constexpr bool keeps(int) { return true; }
AHLM_DEVICE void warp_barrier() { __syncwarp(); }
AHLM_DEVICE void block_barrier() { __syncthreads(); }
AHLM_DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

AHLM_DEVICE std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}
AHLM_DEVICE std::uint32_t address_in(std::uint32_t address, int rank) {
  std::uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
// by one thread; then mailboxes_opened by the same thread and a cluster barrier by all, before anything is sent
AHLM_DEVICE void mailbox_open(Mailbox* box) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(box)) : "memory");
}
AHLM_DEVICE void mailboxes_opened() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// by one thread, once a phase: how many bytes the phase waits for (they may have come before)
AHLM_DEVICE void mailbox_expect(Mailbox* box, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(box)), "r"(bytes)
               : "memory");
}
// by whole warps, until the phase of this parity (0, 1, 0, ...) is over; what was sent is then visible
AHLM_DEVICE void mailbox_wait(Mailbox* box, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(
          shared_address(box)),
      "r"(parity)
      : "memory");
  __syncwarp();  // PTX does not promise that the lanes leave the loop together, as ldmatrix and mma want them
}
// 8 or 16 bytes from here to the place and mailbox that have these addresses in block `rank` of the cluster
template <typename T>
AHLM_DEVICE void send(const T& value, void* place, Mailbox* box, int rank) {
  static_assert(sizeof(T) == 8 || sizeof(T) == 16, "st.async takes 8 or 16 bytes here");
  const std::uint32_t to = address_in(shared_address(place), rank), tell = address_in(shared_address(box), rank);
  std::uint32_t word[sizeof(T) / 4];
  __builtin_memcpy(word, &value, sizeof(T));
  if constexpr (sizeof(T) == 8) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(to),
                 "r"(word[0]), "r"(word[1]), "r"(tell)
                 : "memory");
  } else {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
                 "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3]), "r"(tell)
                 : "memory");
  }
}

AHLM_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
AHLM_DEVICE unsigned ballot(bool value) { return __ballot_sync(~0u, value); }

// four 8 x 8 pieces of 16-bit numbers; lane l gives the address of row l % 8 of piece l / 8
AHLM_DEVICE void load_matrices(std::uint32_t (&piece)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(piece[0]), "=r"(piece[1]), "=r"(piece[2]), "=r"(piece[3])
               : "r"(shared_address(row))
               : "memory");
}
// c (16 x 8) += a (16 x 16) b (16 x 8); pieces of a: rows 0-7 and 8-15 of the first 8 columns, then of the last 8
AHLM_DEVICE void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

AHLM_DEVICE Half to_half(float x) {  // to the largest where it is out of range; NaN passes
  x = x < -65504.0f ? -65504.0f : x;
  return __float2half_rn(x > 65504.0f ? 65504.0f : x);
}
AHLM_DEVICE std::uint32_t half_bits(Half x) { return __half_as_ushort(x); }
AHLM_DEVICE float fast_exp(float x) {  // what is below the smallest normal number is 0, which spares a test
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
}
AHLM_DEVICE float fast_log(float x) { return __logf(x); }
AHLM_DEVICE float fast_divide(float x, float y) { return __fdividef(x, y); }

}  // namespace ahlm::gpu
#endif
