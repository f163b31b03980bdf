// Float32 products with packed matrices, and attention, for XLA programs on one CPU.
//
// A matrix (K, N) is packed ahead of time into panels (N / NR, K, NR): what the innermost loop
// reads lies in a row. One micro-kernel does everything: R rows times one panel, all sums in
// registers. What goes before and after a product in a transformer is done to its rows on their
// way in and out. Every row's sum runs over K in order, whatever R is, so that a row's result does
// not depend on its mates. Vectors are the compiler's own (GCC, Clang), as wide as the processor's.
//
// Work is shared with XLA's own threads: whoever comes takes the next task, and the caller waits for
// tasks that were taken, never for threads that have not come.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 12;  // 24 of 32 registers hold sums
#elif defined(__AVX__)
constexpr int kLanes = 8, kRows = 6;  // 12 of 16
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRows = 12;  // 24 of 32
#else
constexpr int kLanes = 4, kRows = 6;
#endif
constexpr int kPanel = 2 * kLanes;  // columns

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Whole __attribute__((vector_size(4 * kLanes)));
typedef float Loose __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vector Load(const float* at) { return *reinterpret_cast<const Loose*>(at); }
inline void Store(float* at, Vector x) { *reinterpret_cast<Loose*>(at) = x; }
inline Vector All(float x) { return x - Vector{}; }  // minus zero changes nothing, plus would

// c[i, :] = sum over k of a[i * row + k * step] * b[k * pitch, :], for R rows i and one panel.
// Meanwhile what lies at `next` is fetched into the cache, `ahead` bytes further on for each k.
template <int R>
__attribute__((noinline)) void Tile(const float* a, int64_t row, int64_t step, const float* b,
                                    int64_t pitch, int64_t depth, float* c, int64_t out,
                                    const char* next, int64_t ahead) {
  Vector sums[R][2];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) sums[i][0] = sums[i][1] = Vector{};
  const float* rows[3] = {a, a + 4 * row, a + 8 * row};
  for (int64_t k = 0; k < depth; ++k) {
    const Vector left = Load(b), right = Load(b + kLanes);
    __builtin_prefetch(next, 0, 2);
    next += ahead;
    // Three pointers, of which the compiler is not to make one: it would run out of registers.
    __asm__("" : "+r"(rows[0]), "+r"(rows[1]), "+r"(rows[2]));
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const Vector x = All(rows[i / 4][i % 4 * row]);
      sums[i][0] += x * left;
      sums[i][1] += x * right;
    }
    rows[0] += step;
    rows[1] += step;
    rows[2] += step;
    b += pitch;
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    Store(c + i * out, sums[i][0]);
    Store(c + i * out + kLanes, sums[i][1]);
  }
}

using TileFunction = void (*)(const float*, int64_t, int64_t, const float*, int64_t, int64_t,
                              float*, int64_t, const char*, int64_t);

template <int... R>
constexpr TileFunction TileOf(int rows, std::integer_sequence<int, R...>) {
  constexpr TileFunction tiles[] = {Tile<R + 1>...};
  return tiles[rows - 1];
}

// Up to any number of rows, in tiles as equal as can be.
template <typename F>
void InTiles(int64_t rows, F&& each) {
  const int64_t tiles = (rows + kRows - 1) / kRows;
  for (int64_t t = 0, at = 0; t < tiles; ++t) {
    const int64_t n = (rows - at + tiles - t - 1) / (tiles - t);
    each(TileOf(n, std::make_integer_sequence<int, kRows>()), at, n, t, tiles);
    at += n;
  }
}

// A thread's own memory of at least so many floats, aligned for vectors, kept for its next call.
float* Scratch(int which, int64_t floats) {
  thread_local std::vector<float> kept[2];
  if (static_cast<int64_t>(kept[which].size()) < floats + 16) kept[which].resize(floats + 16);
  const auto at = reinterpret_cast<uintptr_t>(kept[which].data());
  return reinterpret_cast<float*>((at + 63) / 64 * 64);
}

// Runs `make()(task)` for every task, on the calling thread and those of the pool that come. Each
// of them makes a worker of its own and begins with a range of its own, so that what it reads next
// lies behind what it has read; who is done takes from the others' ranges.
template <typename Make>
void Share(ffi::ThreadPool& pool, int64_t tasks, Make&& make) {
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };
  struct Board {
    std::atomic<int64_t> arrived{0}, finished{0};
    std::vector<Range> ranges;
  };
  const int64_t threads = std::clamp<int64_t>(pool.num_threads(), 1, tasks);
  auto board = std::make_shared<Board>();
  board->ranges = std::vector<Range>(threads);
  for (int64_t i = 0; i < threads; ++i) {
    board->ranges[i].next = tasks * i / threads;
    board->ranges[i].end = tasks * (i + 1) / threads;
  }
  const auto work = [board, threads, make = &make] {
    // Whoever holds a task keeps the caller waiting; without one, `make` may be gone.
    std::optional<decltype((*make)())> worker;
    int64_t done = 0;
    for (int64_t i = 0, first = board->arrived.fetch_add(1); i < threads; ++i) {
      Range& range = board->ranges[(first + i) % threads];
      for (int64_t task; (task = range.next.fetch_add(1)) < range.end; ++done) {
        if (!worker) worker.emplace((*make)());
        (*worker)(task);
      }
    }
    board->finished.fetch_add(done);
  };
  for (int64_t i = 1; i < threads; ++i) pool.Schedule(std::remove_const_t<decltype(work)>(work));
  work();
  for (int spins = 0; board->finished.load() < tasks; ++spins) {
    if (spins > 10000) std::this_thread::yield();
  }
}

int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

// e^x in float32's precision; 0 below the smallest normal number.
inline Vector Exp(Vector x) {
  const Whole tiny = x < All(-87.3f);
  x = tiny ? All(-87.3f) : x;
  const Vector magic = All(12582912.f);  // 1.5 * 2^23: adding it rounds to whole numbers
  const Vector shifted = x * All(1.44269504f) + magic;
  const Vector n = shifted - magic;
  const Vector r = (x - n * All(0.693359375f)) - n * All(-2.12194440e-4f);
  // Coefficients of Cephes' expf.
  Vector p = All(1.9875691500e-4f);
  p = p * r + All(1.3981999507e-3f);
  p = p * r + All(8.3334519073e-3f);
  p = p * r + All(4.1665795894e-2f);
  p = p * r + All(1.6666665459e-1f);
  p = p * r + All(5.0000001201e-1f);
  p = p * (r * r) + r + All(1.f);
  const Whole power = (reinterpret_cast<Whole>(shifted) - reinterpret_cast<Whole>(magic)) << 23;
  p = reinterpret_cast<Vector>(reinterpret_cast<Whole>(p) + power);
  return tiny ? Vector{} : p;
}

// Rows of x (rows, depth) times panels, `each` of which are a task: `load(row, to)` gives a row of
// x, `place(first, row, panel, own)` says where the products of the rows from `row` on with a panel
// go and how far apart rows are there, and `finish(row, many, panel, own)` is called when they are
// there; `end(first, many, panel, own)` when those of all rows of a block with the panels of a
// task, from `panel` on, are. `first` is the block's first row, `own` the thread's memory, `wide`
// floats for each of the block's.
template <typename Load, typename Place, typename Finish, typename End>
void Multiply(ffi::ThreadPool& pool, int64_t rows, int64_t depth, const float* weights,
              int64_t panels, int64_t each, int64_t wide, Load&& load, Place&& place,
              Finish&& finish, End&& end) {
  // Rows of a block stay in the second-level cache. A pitch that is no power of two keeps them
  // from competing for the same places in the first.
  const int64_t pitch = depth + 16;
  const int64_t most = std::clamp<int64_t>((1 << 17) / pitch, kRows, 16 * kRows);
  const int64_t height = Ceil(Ceil(rows, Ceil(rows, most)), kRows) * kRows;
  const int64_t blocks = Ceil(rows, height), groups = Ceil(panels, each);
  Share(pool, blocks * groups, [&] {
    float* const mine = Scratch(0, height * pitch);
    float* const own = Scratch(1, height * wide);
    return [&, mine, own, held = int64_t{-1}](int64_t task) mutable {
      const int64_t block = task / groups, start = task % groups * each;
      const int64_t top = block * height, many = std::min(height, rows - top);
      if (block != held) {
        for (int64_t i = 0; i < many; ++i) load(top + i, mine + i * pitch);
        held = block;
      }
      for (int64_t p = start; p < std::min(start + each, panels); ++p) {
        const float* const panel = weights + p * depth * kPanel;
        InTiles(many, [&](TileFunction tile, int64_t at, int64_t n, int64_t which, int64_t tiles) {
          // All tiles together fetch the next panel, evenly: in bursts it would hold them up. (One
          // tile alone fetches every other line.)
          constexpr int64_t line = kPanel * sizeof(float);
          const char* const next = reinterpret_cast<const char*>(panel + depth * kPanel) +
                                   depth * line * which / tiles;
          const auto [to, apart] = place(top, top + at, p, own);
          tile(mine + at * pitch, pitch, 1, panel, kPanel, depth, to, apart, next,
               Ceil(line, tiles));
          finish(top + at, n, p, own);
        });
      }
      end(top, many, start, own);
    };
  });
}

// `many` numbers, at most a vector's; the other lanes are 0.
inline Vector LoadSome(const float* at, int64_t many) {
  if (many >= kLanes) return Load(at);
  float some[kLanes] = {};
  if (many > 0) std::memcpy(some, at, many * sizeof(float));
  return Load(some);
}

inline void StoreSome(float* at, Vector x, int64_t many) {
  if (many >= kLanes) return Store(at, x);
  float some[kLanes];
  Store(some, x);
  if (many > 0) std::memcpy(at, some, many * sizeof(float));
}

// x / sqrt(mean of x^2 + eps) * weight.
void Norm(const float* x, const float* weight, float eps, int64_t depth, float* to) {
  Vector squares = {};
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) squares += Load(x + k) * Load(x + k);
  float sum = 0;
  for (int j = 0; j < kLanes; ++j) sum += squares[j];
  for (; k < depth; ++k) sum += x[k] * x[k];
  const float scale = 1.f / std::sqrt(sum / static_cast<float>(depth) + eps);
  for (k = 0; k < depth; ++k) to[k] = x[k] * scale * weight[k];
}

using Floats = ffi::Buffer<ffi::F32>;

// An operand that may be left out: empty.
const float* Maybe(const Floats& buffer) {
  return buffer.element_count() ? buffer.typed_data() : nullptr;
}

bool Counts(const Floats& buffer, int64_t wanted) {
  const auto count = static_cast<int64_t>(buffer.element_count());
  return count == 0 || count == wanted;
}

// x (..., K), or its root-mean-square norm with weights (K,), times columns of a packed matrix
// from panel `first` on -> results (..., N), side by side in the matrix, each from a panel's
// beginning; then, in this order and where given:
//   bias (sum of N,), twice as many if gated: added.
//   gated: a panel's halves are columns of a gate and the same of another matrix; silu(gate) times
//     the other is the result.
//   cos, sin (..., E / 2): results from number `turned` on are heads of `head` = E columns, to be
//     rotated; a panel's halves are columns of a head's first half and the same of its second.
//   add (..., N): added.
ffi::Error Product(ffi::ThreadPool pool, Floats x, Floats packed, Floats norm, Floats bias,
                   Floats cos, Floats sin, Floats add, ffi::RemainingRets results, int64_t first,
                   float eps, bool gated, int64_t head, int64_t turned) {
  struct Side {
    float* to;
    int64_t columns, column, panel;  // its own, and where it begins
    bool turned;
  };
  const auto refused = [] {
    return ffi::Error::InvalidArgument("leapjax_product: shapes do not agree");
  };
  const auto dims = packed.dimensions();
  if (dims.size() != 3 || dims[2] != kPanel || x.dimensions().back() != dims[1]) return refused();
  const int64_t depth = dims[1], rows = depth ? x.element_count() / depth : 0;
  const int64_t each = gated ? kLanes : kPanel;  // columns of a result that a panel gives
  std::vector<Side> sides;
  int64_t columns = 0, panels = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    auto result = results.get<Floats>(i);
    if (!result) return result.error();
    const int64_t n = (*result)->dimensions().back();
    const bool turns = cos.element_count() && static_cast<int64_t>(i) >= turned;
    if (static_cast<int64_t>((*result)->element_count()) != rows * n || n == 0 ||
        (i + 1 < results.size() && n % each) ||
        (turns && (head < kPanel || head % kPanel || n % head))) {
      return refused();
    }
    sides.push_back({(*result)->typed_data(), n, columns, panels, turns});
    columns += n;
    panels += Ceil(n, each);
  }
  if (sides.empty() || first < 0 || first + panels > dims[0] || !Counts(norm, depth) ||
      !Counts(bias, gated ? 2 * columns : columns) || !Counts(cos, rows * (head / 2)) ||
      cos.element_count() != sin.element_count() || !Counts(add, rows * columns) ||
      ((gated || add.element_count()) && sides.size() > 1) || (gated && cos.element_count())) {
    return refused();
  }
  if (rows == 0) return ffi::Error::Success();
  const auto side = [&](int64_t p) -> const Side& {
    size_t i = sides.size() - 1;
    while (p < sides[i].panel) --i;
    return sides[i];
  };
  const bool plain = !gated && !bias.element_count() && !add.element_count();
  // Such panels go where they belong without a stop.
  const auto direct = [&](const Side& of, int64_t p) {
    return plain && !of.turned && (p - of.panel + 1) * kPanel <= of.columns;
  };
  Multiply(
      pool, rows, depth, packed.typed_data() + first * depth * kPanel, panels, 1, kPanel,
      [&, weights = Maybe(norm)](int64_t row, float* to) {
        const float* const from = x.typed_data() + row * depth;
        if (weights) return Norm(from, weights, eps, depth, to);
        std::memcpy(to, from, depth * sizeof(float));
      },
      [&](int64_t, int64_t row, int64_t p, float* own) {
        const Side& of = side(p);
        return direct(of, p)
                   ? std::pair(of.to + row * of.columns + (p - of.panel) * kPanel, of.columns)
                   : std::pair(own, int64_t{kPanel});
      },
      [&, shift = Maybe(bias), more = Maybe(add)](int64_t row, int64_t many, int64_t p,
                                                  const float* own) {
        const Side& of = side(p);
        if (direct(of, p)) return;
        int64_t left = (p - of.panel) * each, right = left + kLanes, angle = 0;
        if (of.turned) {
          angle = left % head / 2;
          left = left / head * head + angle;
          right = left + head / 2;
        }
        // Of the matrix, and of the result, whose columns may end within a half.
        const int64_t other = gated ? of.columns + left : right;
        const int64_t here = of.columns - left, there = gated ? here : of.columns - right;
        Vector before[2] = {};
        if (shift) {
          before[0] = LoadSome(shift + of.column + left, here);
          before[1] = LoadSome(shift + of.column + other, there);
        }
        for (int64_t i = 0; i < many; ++i) {
          Vector a = Load(own + i * kPanel) + before[0];
          Vector b = Load(own + i * kPanel + kLanes) + before[1];
          if (gated) {
            // Below -87 what is left of a is 1e-38 of it, not nothing.
            const Vector down = -a < All(87.f) ? -a : All(87.f);
            a = a / (All(1.f) + Exp(down)) * b;
          }
          if (of.turned) {
            const int64_t at = (row + i) * (head / 2) + angle;
            const Vector c = Load(cos.typed_data() + at), s = Load(sin.typed_data() + at);
            const Vector turned_a = a * c - b * s;
            b = b * c + a * s;
            a = turned_a;
          }
          const int64_t at = (row + i) * of.columns;
          if (more) {
            a += LoadSome(more + at + left, here);
            if (!gated) b += LoadSome(more + at + right, there);
          }
          StoreSome(of.to + at + left, a, here);
          if (!gated) StoreSome(of.to + at + right, b, there);
        }
      },
      [](int64_t, int64_t, int64_t, const float*) {});
  return ffi::Error::Success();
}

// The lanes in another order: each changes place with the one `w` further on or back.
template <typename T>
inline T Swapped(T x, int w) {
#if defined(__clang__)
  T y;
  for (int j = 0; j < kLanes; ++j) y[j] = x[j ^ w];
  return y;
#else
  Whole from;
  for (int j = 0; j < kLanes; ++j) from[j] = j ^ w;
  return __builtin_shuffle(x, from);
#endif
}

// In every lane what `join` makes of all of them.
template <typename T, typename F>
inline T Across(T x, F&& join) {
#pragma GCC unroll 4
  for (int w = kLanes / 2; w > 0; w /= 2) x = join(x, Swapped(x, w));
  return x;
}

// Of scale * (x times a packed matrix) + bias, some panels at a time: the largest number of each
// row, the first column it stands in, and the sum of exponentials of the numbers less the largest.
// x (..., K), bias (P, NR) -> three times (groups of panels, ...). The product is held nowhere.
ffi::Error Summary(ffi::ThreadPool pool, Floats x, Floats packed, Floats bias,
                   ffi::ResultBuffer<ffi::F32> largest, ffi::ResultBuffer<ffi::S32> column,
                   ffi::ResultBuffer<ffi::F32> total, float scale) {
  const auto dims = packed.dimensions();
  const int64_t depth = dims[1], panels = dims[0], groups = largest->dimensions()[0];
  if (dims.size() != 3 || dims[2] != kPanel || x.dimensions().back() != depth || panels == 0 ||
      static_cast<int64_t>(bias.element_count()) != panels * kPanel || groups < 1 ||
      Ceil(panels, Ceil(panels, groups)) != groups ||
      largest->element_count() * depth != x.element_count() * groups) {
    return ffi::Error::InvalidArgument("leapjax_summary: shapes do not agree");
  }
  if (x.element_count() == 0) return ffi::Error::Success();
  const int64_t rows = x.element_count() / depth, each = Ceil(panels, groups);
  const int64_t wide = each * kPanel;
  Multiply(
      pool, rows, depth, packed.typed_data(), panels, each, wide,
      [&](int64_t row, float* to) {
        std::memcpy(to, x.typed_data() + row * depth, depth * sizeof(float));
      },
      [&](int64_t top, int64_t row, int64_t p, float* own) {
        return std::pair(own + (row - top) * wide + p % each * kPanel, wide);
      },
      [](int64_t, int64_t, int64_t, const float*) {},
      [&](int64_t first, int64_t many, int64_t start, float* own) {
        const int64_t count = std::min(each, panels - start) * kPanel;
        const float* const shift = bias.typed_data() + start * kPanel;
        Whole lane;
        for (int j = 0; j < kLanes; ++j) lane[j] = j;
        const Whole none = Whole{} + static_cast<int32_t>(panels * kPanel);
        for (int64_t i = 0; i < many; ++i) {
          float* const numbers = own + i * wide;
          Vector tops = All(-std::numeric_limits<float>::infinity());
          for (int64_t k = 0; k < count; k += kLanes) {
            const Vector x = Load(numbers + k) * All(scale) + Load(shift + k);
            Store(numbers + k, x);
            tops = x > tops ? x : tops;
          }
          const Vector top = Across(tops, [](Vector u, Vector v) { return u > v ? u : v; });
          // Of nothing but barred columns the sum is none: no number less itself.
          const bool some = top[0] > -std::numeric_limits<float>::infinity();
          const Vector base = some ? top : Vector{};
          Whole where = none;
          Vector sums = {};
          for (int64_t k = 0; k < count; k += kLanes) {
            const Vector x = Load(numbers + k);
            const Whole at = x == top ? lane + static_cast<int32_t>(start * kPanel + k) : none;
            where = at < where ? at : where;
            sums += Exp(x - base);
          }
          where = Across(where, [](Whole u, Whole v) { return u < v ? u : v; });
          sums = Across(sums, [](Vector u, Vector v) { return u + v; });
          const int64_t to = start / each * rows + first + i;
          largest->typed_data()[to] = top[0];
          column->typed_data()[to] = where[0];
          total->typed_data()[to] = sums[0];
        }
      });
  return ffi::Error::Success();
}

// Rows of `width` numbers, `pitch` apart, to `wide` apart, filled up with zeros.
void Gather(const float* from, int64_t pitch, int64_t rows, int64_t width, float* to,
            int64_t wide) {
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(to + i * wide, from + i * pitch, width * sizeof(float));
    std::memset(to + i * wide + width, 0, (wide - width) * sizeof(float));
  }
}

// Attention of q (B, S, H, E) to layer `layer` of keys and values (L, B, T, G, E), H / G query
// heads for each of theirs; valid (B, T). -> (B, S, H * E). Scores of a panel of queries are held
// as (T, NR), so that both products are the tile above and the softmax runs over columns.
ffi::Error Attention(ffi::ThreadPool pool, Floats q, Floats keys, Floats values,
                     ffi::Buffer<ffi::PRED> valid, ffi::ResultBuffer<ffi::F32> out, int64_t layer) {
  const auto qd = q.dimensions(), kd = keys.dimensions(), vd = values.dimensions();
  const int64_t b = qd[0], s = qd[1], heads = qd[2], width = qd[3];
  if (qd.size() != 4 || kd.size() != 5 || kd[1] != b || kd[4] != width || heads % kd[3] ||
      layer < 0 || layer >= kd[0] || out->element_count() != q.element_count() ||
      static_cast<int64_t>(valid.element_count()) != b * kd[2] ||
      !std::equal(kd.begin(), kd.end(), vd.begin(), vd.end())) {
    return ffi::Error::InvalidArgument("leapjax_attention: shapes do not agree");
  }
  const int64_t t = kd[2], groups = kd[3], share = heads / groups, pitch = groups * width;
  if (out->element_count() == 0) return ffi::Error::Success();
  const float scale = 1.f / std::sqrt(static_cast<float>(width));
  const int64_t panels = Ceil(share * s, kPanel), wide = Ceil(width, kPanel) * kPanel;
  // Keys and values of a head lie apart. Where several panels of queries read them, and where a
  // head ends within a panel, they are put side by side first.
  const bool copied = panels > 1 || wide != width;
  const int64_t step = copied ? wide : pitch;
  Share(pool, b * groups * panels, [&] {
    float* const query = Scratch(0, kPanel * (width + t + wide));
    float* const scores = query + kPanel * width;
    float* const mixed = scores + kPanel * t;
    float* const own = Scratch(1, copied ? 2 * t * wide : 0);
    return [&, query, scores, mixed, own, held = int64_t{-1}](int64_t task) mutable {
      const int64_t row = task / (groups * panels), group = task / panels % groups;
      const int64_t from = task % panels * kPanel;
      const int64_t many = std::min<int64_t>(kPanel, share * s - from);
      const int64_t offset = ((layer * b + row) * t * groups + group) * width;
      const float* k = keys.typed_data() + offset;
      const float* v = values.typed_data() + offset;
      if (copied) {
        if (held != task / panels) {
          Gather(k, pitch, t, width, own, wide);
          Gather(v, pitch, t, width, own + t * wide, wide);
          held = task / panels;
        }
        k = own;
        v = own + t * wide;
      }
      // Where the panel's queries are: the places of this group's first head, then of its next.
      int64_t places[kPanel];
      for (int64_t i = 0, place = from % s, head = group * share + from / s; i < kPanel; ++i) {
        places[i] = i < many ? ((row * s + place) * heads + head) * width : places[0];
        if (++place == s) place = 0, ++head;
      }
      for (int64_t i = 0; i < kPanel; ++i) {
        const float* const at = q.typed_data() + places[i];
        for (int64_t e = 0; e < width; ++e) query[e * kPanel + i] = at[e] * scale;
      }
      InTiles(t, [&](TileFunction tile, int64_t at, int64_t n, int64_t, int64_t) {
        if (!copied) {
          // Keys after the next ones, and the values that go with these.
          for (int64_t i = at; i < at + n; ++i) {
            for (int64_t e = 0; e < width; e += 16) {
              __builtin_prefetch(k + (i + 2 * kRows) * pitch + e, 0, 2);
              __builtin_prefetch(v + i * pitch + e, 0, 2);
            }
          }
        }
        tile(k + at * step, step, 1, query, kPanel, width, scores + at * kPanel, kPanel,
             reinterpret_cast<const char*>(query), 0);
      });
      const Vector lowest = All(std::numeric_limits<float>::lowest());
      Vector top[2] = {lowest, lowest};
      for (int64_t i = 0; i < t; ++i) {
        for (int h = 0; h < 2; ++h) {
          float* const at = scores + i * kPanel + h * kLanes;
          // The lowest number: a row without any key attends to all of them alike, as in XLA.
          if (!valid.typed_data()[row * t + i]) Store(at, lowest);
          const Vector x = Load(at);
          top[h] = x > top[h] ? x : top[h];
        }
      }
      Vector total[2] = {Vector{}, Vector{}};
      for (int64_t i = 0; i < t; ++i) {
        for (int h = 0; h < 2; ++h) {
          float* const at = scores + i * kPanel + h * kLanes;
          const Vector p = Exp(Load(at) - top[h]);
          total[h] += p;
          Store(at, p);
        }
      }
      float sums[kPanel];
      Store(sums, total[0]);
      Store(sums + kLanes, total[1]);
      for (int64_t e = 0; e < wide; e += kPanel) {
        InTiles(many, [&](TileFunction tile, int64_t at, int64_t, int64_t, int64_t) {
          tile(scores + at, 1, kPanel, v + e, step, t, mixed + at * wide + e, wide,
               reinterpret_cast<const char*>(scores), 0);
        });
      }
      for (int64_t i = 0; i < many; ++i) {
        float* const to = out->typed_data() + places[i];
        const float inverse = 1.f / sums[i];
        for (int64_t e = 0; e < width; ++e) to[e] = mixed[i * wide + e] * inverse;
      }
    };
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(leapjax_product, Product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .RemainingRets()
                                  .Attr<int64_t>("first")
                                  .Attr<float>("eps")
                                  .Attr<bool>("gated")
                                  .Attr<int64_t>("head")
                                  .Attr<int64_t>("turned"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(leapjax_summary, Summary,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("scale"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(leapjax_attention, Attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("layer"));

extern "C" int leapjax_panel() { return kPanel; }
