// Matrix products shared by two threads, where a batch has fewer tiles than the machine has cores: one video's step is
// too short for locks, so both sides spin for the microsecond that a half takes.
#pragma once

#include "scan_types.hpp"
#include "scan_vector.hpp"

namespace {

using ahlm::ScanHelper;

// spins until `is_over`, and lets others run where that takes longer than a step does
template <typename Condition>
AHLM_INLINE void wait_until(const ScanHelper& helper, Condition is_over) {
  constexpr int kPatience = 4096;
  for (int spins = 0; !is_over(); ++spins) {
    if (spins >= kPatience) helper.yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}
AHLM_INLINE bool take_turn(ScanHelper& helper, std::uint64_t turn) {
  std::uint64_t before = turn - 1;
  return __atomic_compare_exchange_n(&helper.taken, &before, turn, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

// all products; they must not need one another
template <std::int64_t kCount>
AHLM_INLINE void multiply_all(ScanHelper* helper, const Product (&products)[kCount]) {
  if (!helper) return multiply_share(products, kCount, 0, 1);
  const std::uint64_t turn = helper->given + 1;
  helper->products = products;
  helper->n_products = kCount;
  __atomic_store_n(&helper->given, turn, __ATOMIC_RELEASE);
  multiply_share(products, kCount, 0, 2);
  if (take_turn(*helper, turn)) return multiply_share(products, kCount, 1, 2);
  wait_until(*helper, [&] { return __atomic_load_n(&helper->done, __ATOMIC_ACQUIRE) == turn; });
}

// what the second thread does until the scan gives it leave
inline void help(ScanHelper& helper) {
  for (std::uint64_t seen = 0, turn = 0;; seen = turn) {
    wait_until(helper, [&] { return (turn = __atomic_load_n(&helper.given, __ATOMIC_ACQUIRE)) != seen; });
    if (turn == ScanHelper::kEnd) return;
    if (!take_turn(helper, turn)) continue;
    multiply_share(static_cast<const Product*>(helper.products), helper.n_products, 1, 2);
    __atomic_store_n(&helper.done, turn, __ATOMIC_RELEASE);
  }
}

}  // namespace
