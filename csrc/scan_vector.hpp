// Vectors of the width this translation unit is compiled for, and the functions the scans need of them.
//
// Included by the kernel files only, each compiled once an instruction set. Everything is in an unnamed namespace and
// nothing comes from the standard library's headers: a weak symbol compiled for a newer machine could be the one that
// the linker keeps, and would then run on an older one.
#pragma once

#include <cstddef>
#include <cstdint>

#define AHLM_INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRows = 8;  // rows of a block of the matrix product: kRows x 2 accumulators fit the register file
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRows = 6;
#else
constexpr int kLanes = 4;
constexpr int kRows = 6;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef std::int32_t IVec __attribute__((vector_size(kLanes * 4)));
// in memory, at any float: GCC 12 takes a memcpy of 32 bytes through the stack in halves, which stalls every load
typedef float Unaligned __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

AHLM_INLINE Vec load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
AHLM_INLINE void store(float* p, Vec x) { *reinterpret_cast<Unaligned*>(p) = x; }
AHLM_INLINE Vec all(float x) { return x - Vec{}; }

// the first n lanes, zeros behind them
AHLM_INLINE Vec load(const float* p, std::int64_t n) {
  if (n >= kLanes) return load(p);
  Vec x{};
  __builtin_memcpy(&x, p, static_cast<std::size_t>(n) * 4);
  return x;
}
AHLM_INLINE void store(float* p, Vec x, std::int64_t n) {
  if (n >= kLanes) return store(p, x);
  __builtin_memcpy(p, &x, static_cast<std::size_t>(n) * 4);
}
// zero in the lanes from n on
AHLM_INLINE Vec first(Vec x, std::int64_t n) {
  if (n >= kLanes) return x;
  IVec lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i < n ? -1 : 0;
  return lane ? x : Vec{};
}

// comparisons are written so that NaN passes
AHLM_INLINE Vec clamp(Vec x, float low, float high) {
  x = x < low ? all(low) : x;
  return x > high ? all(high) : x;
}
// gradient of clamp
AHLM_INLINE Vec inside(Vec x, float low, float high, Vec gradient) {
  return ((x >= low) & (x <= high)) ? gradient : Vec{};
}

// x = k ln 2 + r, exp(r) = 1 + r + tail; the polynomial is Cephes' (1 to 2 units in the last place)
struct Reduced {
  Vec r, tail, scale;  // scale = 2^k
  IVec k;
};
AHLM_INLINE Reduced reduce(Vec x) {
  x = clamp(x, -87.3f, 88.37f);
  const float to_nearest = 12582912.0f;  // 1.5 * 2^23
  const Vec k = (x * 1.44269504088896341f + to_nearest) - to_nearest;
  const Vec r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const IVec exponent = __builtin_convertvector(k, IVec);
  const IVec bits = (exponent + 127) << 23;
  return {r, p * r * r, reinterpret_cast<Vec>(bits), exponent};
}
AHLM_INLINE Vec exp(Vec x) {
  const Reduced reduced = reduce(x);
  return ((reduced.tail + reduced.r) + 1.0f) * reduced.scale;
}
AHLM_INLINE Vec expm1(Vec x) {
  const Reduced reduced = reduce(x);
  return (reduced.tail + reduced.r) * reduced.scale + (reduced.scale - 1.0f);
}
// expm1(x) - x, to the last digits also where x is small and the difference of the two would have none left
AHLM_INLINE Vec excess(Vec x) {
  const Reduced reduced = reduce(x);
  const Vec far = (reduced.tail + reduced.r) * reduced.scale + ((reduced.scale - 1.0f) - x);
  return reduced.k == 0 ? reduced.tail : far;
}
// of positive normal numbers; the polynomial is Cephes'
AHLM_INLINE Vec log(Vec x) {
  const IVec bits = reinterpret_cast<IVec>(x);
  IVec exponent = (bits >> 23) - 126;
  const IVec fraction = (bits & 0x7fffff) | 0x3f000000;
  Vec m = reinterpret_cast<Vec>(fraction);
  const IVec low = m < 0.707106781186547524f;
  exponent += low;
  m = (low ? m + m : m) - 1.0f;
  const Vec e = __builtin_convertvector(exponent, Vec), square = m * m;
  Vec p = m * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  p = p * m * square - e * 2.12194440e-4f - square * 0.5f;
  return m + p + e * 0.693359375f;
}
AHLM_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }
AHLM_INLINE Vec tanh(Vec x) { return 2.0f / (1.0f + exp(-2.0f * x)) - 1.0f; }

// sums over Z always run in 16 interleaved lanes, so that a vector's width changes no result
constexpr int kSumLanes = 16;
struct Sum {
  Vec parts[kSumLanes / kLanes];
};
AHLM_INLINE float total(const Sum& sum) {
  float lanes[kSumLanes];
  __builtin_memcpy(lanes, sum.parts, sizeof lanes);
  for (int width = kSumLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}
// body(i, n, part): n of the Z elements from i on, which belong to part `part` of a Sum
template <typename Body>
AHLM_INLINE void over(std::int64_t size, Body body) {
  std::int64_t i = 0;
  for (; i + kSumLanes <= size; i += kSumLanes)
    for (int part = 0; part < kSumLanes / kLanes; ++part) body(i + part * kLanes, std::int64_t{kLanes}, part);
  for (int part = 0; i < size; ++part, i += kLanes) body(i, size - i < kLanes ? size - i : kLanes, part);
}

AHLM_INLINE void copy(float* to, const float* from, std::int64_t n) {
  __builtin_memcpy(to, from, static_cast<std::size_t>(n) * 4);
}
AHLM_INLINE void clear(float* to, std::int64_t n) { __builtin_memset(to, 0, static_cast<std::size_t>(n) * 4); }
AHLM_INLINE std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

// hands out pieces of one block; without a block it only counts
struct Arena {
  float* block;
  std::int64_t used;
};
AHLM_INLINE float* take(Arena& arena, std::int64_t n) {
  float* const piece = arena.block ? arena.block + arena.used : nullptr;
  arena.used += round_up(n, 16);
  return piece;
}

// ---- matrix product: C[m][n] = from[n] or C[m][n] or 0, + sum over k of A(m, k) W(k, n), in order of k, so that
// neither the number of rows at once nor the panel's width changes a result

constexpr int kPanel = 2 * kLanes;  // columns that are computed at once
enum class From { zero, bias, c };

struct Left {  // A(m, k) = data[m * row + k * step]
  const float* data;
  std::int64_t row, step;
};
struct Right {  // W(k, n) = data[n / kPanel * panel + k * step + n % kPanel]
  const float* data;
  std::int64_t panel, step;
};

template <int R, int P>
AHLM_INLINE void block(const Left& a, std::int64_t m, const Right& w, std::int64_t n, std::int64_t depth, float* c,
                       std::int64_t c_row, From from, const float* bias) {
  Vec sum[R][2 * P];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < 2 * P; ++j) {
      const float* const start = from == From::bias ? bias + n : c + (m + r) * c_row + n;
      sum[r][j] = from == From::zero ? Vec{} : load(start + j * kLanes);
    }
  const float* x = a.data + m * a.row;
  const float* y = w.data + n / kPanel * w.panel;
  for (std::int64_t k = 0; k < depth; ++k, x += a.step, y += w.step) {
    Vec column[2 * P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      column[2 * p] = load(y + p * w.panel);
      column[2 * p + 1] = load(y + p * w.panel + kLanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec value = all(x[r * a.row]);
#pragma GCC unroll 8
      for (int j = 0; j < 2 * P; ++j) sum[r][j] += value * column[j];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < 2 * P; ++j) store(c + (m + r) * c_row + n + j * kLanes, sum[r][j]);
}

// few rows leave registers free for more columns, which hides the latency of the additions
template <int R>
__attribute__((noinline)) void rows(const Left& a, std::int64_t m, const Right& w, std::int64_t n, std::int64_t panels,
                                    std::int64_t depth, float* c, std::int64_t c_row, From from, const float* bias) {
  constexpr int kWide = R == 1 ? 4 : R == 2 ? 2 : 1;
  const std::int64_t end = n + panels * kPanel;
  for (; n + kWide * kPanel <= end; n += kWide * kPanel) block<R, kWide>(a, m, w, n, depth, c, c_row, from, bias);
  for (; n < end; n += kPanel) block<R, 1>(a, m, w, n, depth, c, c_row, from, bias);
}

AHLM_INLINE void some_rows(std::int64_t count, const Left& a, std::int64_t m, const Right& w, std::int64_t n,
                           std::int64_t panels, std::int64_t depth, float* c, std::int64_t c_row, From from,
                           const float* bias) {
  switch (count) {
    case 1: return rows<1>(a, m, w, n, panels, depth, c, c_row, from, bias);
    case 2: return rows<2>(a, m, w, n, panels, depth, c, c_row, from, bias);
    case 3: return rows<3>(a, m, w, n, panels, depth, c, c_row, from, bias);
    case 4: return rows<4>(a, m, w, n, panels, depth, c, c_row, from, bias);
    case 5: return rows<5>(a, m, w, n, panels, depth, c, c_row, from, bias);
    case 6: return rows<6>(a, m, w, n, panels, depth, c, c_row, from, bias);
#if defined(__AVX512F__)
    case 7: return rows<7>(a, m, w, n, panels, depth, c, c_row, from, bias);
    case 8: return rows<8>(a, m, w, n, panels, depth, c, c_row, from, bias);
#endif
    default: return;
  }
}

// C [height, width]; width counts whole panels of W and must leave C's rows room for them
inline void multiply(std::int64_t height, std::int64_t width, std::int64_t depth, const Left& a, const Right& w, float* c,
                     std::int64_t c_row, From from, const float* bias = nullptr) {
  const std::int64_t panels = (width + kPanel - 1) / kPanel;
  if (height <= kRows) return some_rows(height, a, 0, w, 0, panels, depth, c, c_row, from, bias);
  // rows in equal shares: 9 rows are 5 and 4, not 8 and 1; a panel stays in the first-level cache for all of them
  const std::int64_t blocks = (height + kRows - 1) / kRows;
  for (std::int64_t panel = 0; panel < panels; ++panel)
    for (std::int64_t i = 0; i < blocks; ++i) {
      const std::int64_t begin = height * i / blocks, end = height * (i + 1) / blocks;
      some_rows(end - begin, a, begin, w, panel * kPanel, 1, depth, c, c_row, from, bias);
    }
}

struct Product {  // arguments of `multiply`
  std::int64_t height, width, depth;
  Left a;
  Right w;
  float* c;
  std::int64_t c_row;
  From from;
  const float* bias;
};
// one of `parts` equal shares of the panels of each product
inline void multiply_share(const Product* products, std::int64_t count, std::int64_t part, std::int64_t parts) {
  for (std::int64_t i = 0; i < count; ++i) {
    const Product& p = products[i];
    const std::int64_t panels = (p.width + kPanel - 1) / kPanel, begin = panels * part / parts;
    const std::int64_t end = panels * (part + 1) / parts, n = begin * kPanel;
    multiply(p.height, (end - begin) * kPanel, p.depth, p.a, {p.w.data + begin * p.w.panel, p.w.panel, p.w.step},
             p.c + n, p.c_row, p.from, p.bias ? p.bias + n : nullptr);
  }
}

AHLM_INLINE Left dense(const float* data, std::int64_t row) { return {data, row, 1}; }
AHLM_INLINE Left transposed(const float* data, std::int64_t row) { return {data, 1, row}; }
AHLM_INLINE Right packed(const float* data, std::int64_t depth) { return {data, depth * kPanel, kPanel}; }
AHLM_INLINE Right plain(const float* data, std::int64_t row) { return {data, kPanel, row}; }

// sums[n] += sum over rows
AHLM_INLINE void add_rows(float* sums, const float* data, std::int64_t n_rows, std::int64_t row, std::int64_t width) {
  for (std::int64_t i = 0; i < width; i += kLanes) {
    Vec sum = load(sums + i);
    for (std::int64_t r = 0; r < n_rows; ++r) sum += load(data + r * row + i);
    store(sums + i, sum);
  }
}

}  // namespace
