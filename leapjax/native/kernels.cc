// Float32 products with packed matrices, and attention, for XLA programs on one CPU.
//
// A matrix (K, N) is packed ahead of time into panels (N / NR, K, NR): what the innermost loop
// reads lies in a row. One micro-kernel does everything: R rows times one panel, all sums in
// registers. Every row's sum runs over K in order, whatever R is, so that a row's result does not
// depend on its mates. Vectors are the compiler's own (GCC, Clang), as wide as the processor's.
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
// Meanwhile `next` is fetched into the cache, a line for each k.
template <int R>
__attribute__((noinline)) void Tile(const float* a, int64_t row, int64_t step, const float* b,
                                    int64_t pitch, int64_t depth, float* c, int64_t out,
                                    const char* next) {
  Vector sums[R][2];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) sums[i][0] = sums[i][1] = Vector{};
  const float* rows[3] = {a, a + 4 * row, a + 8 * row};
  for (int64_t k = 0; k < depth; ++k) {
    const Vector left = Load(b), right = Load(b + kLanes);
    __builtin_prefetch(next + k * 64, 0, 2);
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
                              float*, int64_t, const char*);

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
    each(TileOf(n, std::make_integer_sequence<int, kRows>()), at, n, t);
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

// Rows of x (rows, depth) times panels: for every tile of rows and every panel,
// `place(row, panel, own)` says where its products go and how far apart rows are there, and
// `finish(row, many, panel, own)` is called when they are there. `own` is the thread's, one tile.
template <typename Place, typename Finish>
void Multiply(ffi::ThreadPool& pool, const float* x, int64_t rows, int64_t depth,
              const float* weights, int64_t panels, Place&& place, Finish&& finish) {
  // Rows of a block stay in the second-level cache. A pitch that is no power of two keeps them
  // from competing for the same places in the first.
  const int64_t pitch = depth + 16;
  const int64_t most = std::clamp<int64_t>((1 << 17) / pitch, kRows, 16 * kRows);
  const int64_t height = Ceil(Ceil(rows, Ceil(rows, most)), kRows) * kRows;
  const int64_t blocks = Ceil(rows, height);
  Share(pool, blocks * panels, [&] {
    float* const mine = Scratch(0, height * pitch);
    float* const own = Scratch(1, kRows * kPanel);
    return [&, mine, own, held = int64_t{-1}](int64_t task) mutable {
      const int64_t block = task / panels, p = task % panels;
      const int64_t top = block * height, many = std::min(height, rows - top);
      if (block != held) {
        for (int64_t i = 0; i < many; ++i) {
          std::memcpy(mine + i * pitch, x + (top + i) * depth, depth * sizeof(float));
        }
        held = block;
      }
      const float* const panel = weights + p * depth * kPanel;
      InTiles(many, [&](TileFunction tile, int64_t at, int64_t n, int64_t which) {
        // The first two tiles fetch half of the next panel each.
        const char* const next = reinterpret_cast<const char*>(panel + depth * kPanel) +
                                 (which == 1 ? depth * 64 : 0);
        const auto [to, apart] = place(top + at, p, own);
        tile(mine + at * pitch, pitch, 1, panel, kPanel, depth, to, apart, next);
        finish(top + at, n, p, own);
      });
    };
  });
}

// x (..., K) times columns [first * NR, first * NR + N) of a packed matrix -> (..., N).
ffi::Error Product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> packed,
                   ffi::ResultBuffer<ffi::F32> y, int64_t first) {
  const auto dims = packed.dimensions();
  const int64_t depth = dims[1], columns = y->dimensions().back();
  const int64_t panels = Ceil(columns, kPanel), whole = columns / kPanel;
  if (dims.size() != 3 || dims[2] != kPanel || x.dimensions().back() != depth || first < 0 ||
      first + panels > dims[0]) {
    return ffi::Error::InvalidArgument("leapjax_product: shapes do not agree");
  }
  if (y->element_count() == 0) return ffi::Error::Success();
  if (y->element_count() / columns * depth != static_cast<int64_t>(x.element_count())) {
    return ffi::Error::InvalidArgument("leapjax_product: rows do not agree");
  }
  float* const out = y->typed_data();
  Multiply(
      pool, x.typed_data(), y->element_count() / columns, depth,
      packed.typed_data() + first * depth * kPanel, panels,
      [&](int64_t row, int64_t p, float* own) {
        return p < whole ? std::pair(out + row * columns + p * kPanel, columns)
                         : std::pair(own, int64_t{kPanel});
      },
      [&](int64_t row, int64_t many, int64_t p, const float* own) {
        if (p < whole) return;
        for (int64_t i = 0; i < many; ++i) {
          std::memcpy(out + (row + i) * columns + p * kPanel, own + i * kPanel,
                      (columns - p * kPanel) * sizeof(float));
        }
      });
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

// Of scale * (x times a packed matrix) + bias, panel by panel: the largest number of each row, the
// first column it stands in, and the sum of exponentials of the numbers less the largest.
// x (..., K), bias (P, NR) -> three times (P, ...). The product itself is held nowhere.
ffi::Error Summary(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> packed,
                   ffi::Buffer<ffi::F32> bias, ffi::ResultBuffer<ffi::F32> largest,
                   ffi::ResultBuffer<ffi::S32> column, ffi::ResultBuffer<ffi::F32> total,
                   float scale) {
  const auto dims = packed.dimensions();
  const int64_t depth = dims[1], panels = dims[0];
  if (dims.size() != 3 || dims[2] != kPanel || x.dimensions().back() != depth ||
      static_cast<int64_t>(bias.element_count()) != panels * kPanel ||
      largest->element_count() * depth != x.element_count() * panels) {
    return ffi::Error::InvalidArgument("leapjax_summary: shapes do not agree");
  }
  if (x.element_count() == 0) return ffi::Error::Success();
  const int64_t rows = x.element_count() / depth;
  Multiply(
      pool, x.typed_data(), rows, depth, packed.typed_data(), panels,
      [](int64_t, int64_t, float* own) { return std::pair(own, int64_t{kPanel}); },
      [&](int64_t row, int64_t many, int64_t p, const float* own) {
        const Vector left = Load(bias.typed_data() + p * kPanel);
        const Vector right = Load(bias.typed_data() + p * kPanel + kLanes);
        Whole lane;
        for (int j = 0; j < kLanes; ++j) lane[j] = j;
        for (int64_t i = 0; i < many; ++i, ++row) {
          const Vector a = Load(own + i * kPanel) * All(scale) + left;
          const Vector b = Load(own + i * kPanel + kLanes) * All(scale) + right;
          const auto larger = [](Vector u, Vector v) { return u > v ? u : v; };
          const Vector top = Across(larger(a, b), larger);
          const Whole none = Whole{} + 2 * kPanel;
          const Whole in_a = a == top ? lane : none, in_b = b == top ? lane + kLanes : none;
          const auto less = [](Whole u, Whole v) { return u < v ? u : v; };
          const Whole where = Across(less(in_a, in_b), less);
          // Of nothing but barred columns the sum is none: no number less itself.
          const bool some = top[0] > -std::numeric_limits<float>::infinity();
          const Vector e = Exp(a - top) + Exp(b - top);
          const Vector sum = Across(e, [](Vector u, Vector v) { return u + v; });
          largest->typed_data()[p * rows + row] = top[0];
          column->typed_data()[p * rows + row] = static_cast<int32_t>(p * kPanel) + where[0];
          total->typed_data()[p * rows + row] = some ? sum[0] : 0.f;
        }
      });
  return ffi::Error::Success();
}

// Attention of q (B, S, H, E) to layer `layer` of keys and values (L, B, T, G, E), H / G query
// heads for each of theirs; valid (B, T). -> (B, S, H * E). Scores of a panel of queries are held
// as (T, NR), so that both products are the tile above and the softmax runs over columns.
ffi::Error Attention(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> q, ffi::Buffer<ffi::F32> keys,
                     ffi::Buffer<ffi::F32> values, ffi::Buffer<ffi::PRED> valid,
                     ffi::ResultBuffer<ffi::F32> out, int64_t layer) {
  const auto qd = q.dimensions(), kd = keys.dimensions(), vd = values.dimensions();
  const int64_t b = qd[0], s = qd[1], heads = qd[2], width = qd[3];
  if (qd.size() != 4 || kd.size() != 5 || kd[1] != b || kd[4] != width || heads % kd[3] ||
      layer < 0 || layer >= kd[0] || out->element_count() != q.element_count() ||
      static_cast<int64_t>(valid.element_count()) != b * kd[2] || !std::equal(kd.begin(), kd.end(), vd.begin(), vd.end())) {
    return ffi::Error::InvalidArgument("leapjax_attention: shapes do not agree");
  }
  const int64_t t = kd[2], groups = kd[3], share = heads / groups, pitch = groups * width;
  if (out->element_count() == 0) return ffi::Error::Success();
  const float scale = 1.f / std::sqrt(static_cast<float>(width));
  const int64_t panels = Ceil(share * s, kPanel), wide = Ceil(width, kPanel) * kPanel;
  Share(pool, b * groups * panels, [&] {
    return [&](int64_t task) {
      const int64_t row = task / (groups * panels), group = task / panels % groups;
      const int64_t from = task % panels * kPanel;
      const int64_t many = std::min<int64_t>(kPanel, share * s - from);
      float* const query = Scratch(0, kPanel * (width + t + wide) + (wide == width ? 0 : t * wide));
      float* const scores = query + kPanel * width;
      float* const mixed = scores + kPanel * t;
      // Query i of the panel: place `(from + i) % s` of the head `(from + i) / s` of this group.
      const auto head = [&](int64_t i) { return group * share + (from + i) / s; };
      for (int64_t i = 0; i < kPanel; ++i) {
        const float* at = q.typed_data();
        if (i < many) at += ((row * s + (from + i) % s) * heads + head(i)) * width;
        for (int64_t e = 0; e < width; ++e) query[e * kPanel + i] = i < many ? at[e] * scale : 0.f;
      }
      const int64_t offset = ((layer * b + row) * t * groups + group) * width;
      const float* const k = keys.typed_data() + offset;
      InTiles(t, [&](TileFunction tile, int64_t at, int64_t, int64_t) {
        tile(k + at * pitch, pitch, 1, query, kPanel, width, scores + at * kPanel, kPanel,
             reinterpret_cast<const char*>(k + (at + kRows) * pitch));
      });
      Vector top[2] = {All(std::numeric_limits<float>::lowest()), All(std::numeric_limits<float>::lowest())};
      for (int64_t i = 0; i < t; ++i) {
        for (int h = 0; h < 2; ++h) {
          float* const at = scores + i * kPanel + h * kLanes;
          // The lowest number: a row without any key attends to all of them alike, as in XLA.
          if (!valid.typed_data()[row * t + i]) Store(at, All(std::numeric_limits<float>::lowest()));
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
      const float* v = values.typed_data() + offset;
      int64_t step = pitch;
      if (wide != width) {
        float* const padded = mixed + kPanel * wide;
        for (int64_t i = 0; i < t; ++i) {
          std::memcpy(padded + i * wide, v + i * pitch, width * sizeof(float));
          std::memset(padded + i * wide + width, 0, (wide - width) * sizeof(float));
        }
        v = padded;
        step = wide;
      }
      for (int64_t e = 0; e < wide; e += kPanel) {
        InTiles(many, [&](TileFunction tile, int64_t at, int64_t, int64_t) {
          tile(scores + at, 1, kPanel, v + e, step, t, mixed + at * wide + e, wide,
               reinterpret_cast<const char*>(scores));
        });
      }
      for (int64_t i = 0; i < many; ++i) {
        float* const to = out->typed_data() + ((row * s + (from + i) % s) * heads + head(i)) * width;
        const float inverse = sums[i];
        for (int64_t e = 0; e < width; ++e) to[e] = mixed[i * wide + e] / inverse;
      }
    };
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(leapjax_product, Product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("first"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(leapjax_summary, Summary,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("scale"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(leapjax_attention, Attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("layer"));

extern "C" int leapjax_panel() { return kPanel; }
