// Float32 products with packed matrices, experts, and attention, for XLA programs on one CPU.
//
// A matrix (K, N) is packed ahead of time into panels (N / NR, K, NR): what the innermost loop
// reads lies in a row. One micro-kernel does everything: R rows times one panel, all sums in
// registers. What goes before and after a product in a transformer is done to its rows on their
// way in and out. Every row's sum runs over K in order, whatever R is, so that a row's result does
// not depend on its mates. Vectors are the compiler's own (GCC, Clang), as wide as the processor's.
//
// Work is shared with XLA's own threads: whoever comes takes the next tasks, and the caller waits
// for tasks that were taken, never for threads that have not come.

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
constexpr int kLine = 16;           // numbers that are fetched together

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vector Load(const float* at) { return *reinterpret_cast<const UnalignedVec*>(at); }
inline void Store(float* at, Vector x) { *reinterpret_cast<UnalignedVec*>(at) = x; }
inline Vector Broadcast(float x) { return x - Vector{}; }  // minus zero changes nothing, plus would

inline int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What to fetch into the cache, so many bytes further on at every step. What is there already costs
// nothing.
struct Stream {
  const void* at;
  int64_t ahead;
};

// Bytes to be fetched in equal shares, of so many steps each.
struct Fetch {
  const char* from;
  int64_t share, ahead;
  Fetch(const void* from, int64_t bytes, int64_t shares, int64_t steps)
      : from(static_cast<const char*>(from)),
        share(Ceil(bytes, shares)),
        ahead(Ceil(share, steps)) {}
  Stream operator[](int64_t which) const { return {from + which * share, ahead}; }
};

// c[i, :] = sum over k of a[i * row + k * step] * b[k * pitch, :], for R rows i and one panel.
// Meanwhile both streams are fetched, a step for each k.
template <int R>
__attribute__((noinline)) void Tile(const float* a, int64_t row, int64_t step, const float* b,
                                    int64_t pitch, int64_t depth, float* c, int64_t out,
                                    Stream one, Stream two) {
  Vector sums[R][2];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) sums[i][0] = sums[i][1] = Vector{};
  const float* rows[3] = {a, a + 4 * row, a + 8 * row};
  for (int64_t k = 0; k < depth; ++k) {
    const Vector left = Load(b), right = Load(b + kLanes);
    __builtin_prefetch(one.at, 0, 2);
    __builtin_prefetch(two.at, 0, 2);
    one.at = static_cast<const char*>(one.at) + one.ahead;
    two.at = static_cast<const char*>(two.at) + two.ahead;
    // Three pointers, of which the compiler is not to make one: it would run out of registers.
    __asm__("" : "+r"(rows[0]), "+r"(rows[1]), "+r"(rows[2]));
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const Vector x = Broadcast(rows[i / 4][i % 4 * row]);
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
                              float*, int64_t, Stream, Stream);

template <int... R>
constexpr TileFunction TileOf(int rows, std::integer_sequence<int, R...>) {
  constexpr TileFunction tiles[] = {Tile<R + 1>...};
  return tiles[rows - 1];
}

// Up to any number of rows, in tiles as equal as can be.
template <typename F>
void InTiles(int64_t rows, F&& each) {
  const int64_t tiles = Ceil(rows, kRows);
  for (int64_t t = 0, at = 0; t < tiles; ++t) {
    const int64_t n = Ceil(rows - at, tiles - t);
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
      for (;;) {
        // Several at once while there are many, since an atomic addition waits for all stores.
        const int64_t left = range.end - range.next.load(std::memory_order_relaxed);
        const int64_t some = std::clamp<int64_t>(left / 16, 1, 8);
        const int64_t task = range.next.fetch_add(some), end = std::min(task + some, range.end);
        if (task >= end) break;
        if (!worker) worker.emplace((*make)());
        for (int64_t one = task; one < end; ++one) (*worker)(one);
        done += end - task;
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

// 2^(n + f) where `shifted` is n + kMagic and f at most a half; 0 where `tiny`.
constexpr float kMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to whole numbers
inline Vector Power(Vector shifted, Vector f, IntVec tiny) {
  // Fitted for the least relative error, 2e-9 before rounding.
  Vector p = Broadcast(1.53533620e-4f);
  p = p * f + Broadcast(1.33988739e-3f);
  p = p * f + Broadcast(9.61843692e-3f);
  p = p * f + Broadcast(5.55033237e-2f);
  p = p * f + Broadcast(2.40226477e-1f);
  p = p * f + Broadcast(6.93147182e-1f);
  p = p * f + Broadcast(1.f);
  // Of kMagic nothing is left of the exponent's place.
  const IntVec power = reinterpret_cast<IntVec>(shifted) << 23;
  p = reinterpret_cast<Vector>(reinterpret_cast<IntVec>(p) + power);
  return tiny ? Vector{} : p;
}

// 2^x and e^x for x below 127 and 87, in float32's precision (e^x where products and sums are fused:
// elsewhere its error grows with x, to 8e-6 of it); 0 where there is no normal number.
inline Vector Exp2(Vector x) {
  const Vector shifted = x + Broadcast(kMagic);
  return Power(shifted, x - (shifted - Broadcast(kMagic)), x < Broadcast(-126.f));
}

inline Vector Exp(Vector x) {
  const Vector shifted = x * Broadcast(1.44269502f) + Broadcast(kMagic);
  const Vector f = x * Broadcast(1.44269502f) - (shifted - Broadcast(kMagic));
  return Power(shifted, x * Broadcast(1.92596299e-8f) + f, x < Broadcast(-87.3f));
}

// Neighbouring rows, which stay in the second-level cache, and the panels they are multiplied with.
struct Block {
  int64_t top, many;
  const float* panels;
};

// Rows of `depth` numbers from `top` on, in blocks as equal as can be.
void AppendBlocks(int64_t top, int64_t rows, int64_t depth, const float* panels,
                  std::vector<Block>& blocks) {
  if (rows == 0) return;
  const int64_t most = std::clamp<int64_t>((1 << 17) / depth, kRows, 16 * kRows);
  const int64_t height = Ceil(Ceil(rows, Ceil(rows, most)), kRows) * kRows;
  for (int64_t at = 0; at < rows; at += height) {
    blocks.push_back({top + at, std::min(height, rows - at), panels});
  }
}

inline Vector Silu(Vector x) {
  // Below -87 what is left of x is 1e-38 of it, not nothing.
  const Vector down = -x < Broadcast(87.f) ? -x : Broadcast(87.f);
  return x / (Broadcast(1.f) + Exp(down));
}

// Blocks of rows of x (rows, depth), or what `prepare(row, to)` makes of each if they are to be
// `prepared`, times their panels, `each` of which are a task. `place(first, row, many, panel, own)`
// says where the products of so many rows from `row` on with a panel go and how far apart rows are
// there, and `finish(row, many, panel, own)` is called when they are there;
// `end(first, many, panel, own)` when those of all rows of a block with the panels of a task, from
// `panel` on, are. `first` is the block's first row, `own` the thread's memory, `wide` floats for
// each of the block's. x may be null if `prepare` finds its rows elsewhere.
template <typename Prepare, typename Place, typename Finish, typename End>
void Multiply(ffi::ThreadPool& pool, const float* x, const std::vector<Block>& blocks,
              int64_t depth, int64_t panels, int64_t each, int64_t wide, bool prepared,
              Prepare&& prepare, Place&& place, Finish&& finish, End&& end) {
  // Where rows are a page apart they are copied, with another pitch, so that they don't compete for
  // the same places in the first-level cache.
  const bool copied = prepared || depth % 1024 == 0;
  const int64_t pitch = copied ? depth + 16 : depth;
  const int64_t groups = Ceil(panels, each), count = blocks.size();
  int64_t height = 0;
  for (const Block& block : blocks) height = std::max(height, block.many);
  Share(pool, count * groups, [&] {
    float* const copies = Scratch(0, copied ? height * pitch : 0);
    float* const own = Scratch(1, height * wide);
    return [&, copies, own, held = int64_t{-1}](int64_t task) mutable {
      const int64_t which = task / groups, start = task % groups * each;
      const auto [top, many, weights] = blocks[which];
      const Block* const following = which + 1 < count ? &blocks[which + 1] : nullptr;
      const float* const mine = copied ? copies : x + top * depth;
      if (copied && which != held) {
        for (int64_t i = 0; i < many; ++i) {
          float* const to = copies + i * pitch;
          if (prepared) prepare(top + i, to);
          else std::memcpy(to, x + (top + i) * depth, depth * sizeof(float));
        }
        held = which;
      }
      // All tiles of a panel together fetch the next one, and all tiles of a block the next block's
      // rows: evenly, since in bursts it would hold them up. (One tile alone fetches every other
      // line of a panel.)
      const int64_t tiles = Ceil(many, kRows);
      const int64_t after = x && following ? following->many : 0;
      const Fetch rest(after ? x + (top + many) * depth : weights, after * depth * sizeof(float), panels * tiles,
                       depth);
      for (int64_t p = start; p < std::min(start + each, panels); ++p) {
        const float* const panel = weights + p * depth * kPanel;
        const float* const soon =
            p + 1 == panels && following ? following->panels : panel + depth * kPanel;
        const Fetch next(soon, depth * kPanel * sizeof(float), tiles, depth);
        InTiles(many, [&, top = top](TileFunction tile, int64_t at, int64_t n, int64_t t) {
          const auto [to, apart] = place(top, top + at, n, p, own);
          tile(mine + at * pitch, pitch, 1, panel, kPanel, depth, to, apart, next[t],
               rest[p * tiles + t]);
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

// Lanes of two vectors by number; those of the second begin at kLanes.
template <typename T, int... From>
inline T Shuffled(T a, T b, std::integer_sequence<int, From...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, From...);
#else
  return __builtin_shuffle(a, b, IntVec{From...});
#endif
}

using AllLanes = std::make_integer_sequence<int, kLanes>;

// Each lane changes place with the one W further on or back.
template <int W, typename T, int... J>
inline T Swapped(T x, std::integer_sequence<int, J...>) {
  return Shuffled(x, x, std::integer_sequence<int, (J ^ W)...>());
}

// In every lane what `join` makes of all of them.
template <int W = kLanes / 2, typename T, typename F>
inline T Across(T x, F&& join) {
  if constexpr (W == 0) return x;
  else return Across<W / 2>(join(x, Swapped<W>(x, AllLanes())), join);
}

// x / sqrt(mean of x^2 + eps) * weight, where there is a shift (`depth` of both) plus that.
void Norm(const float* x, const float* weight, bool shifted, float eps, int64_t depth, float* to) {
  // Several sums, so that an addition need not wait for the one before.
  Vector squares[4] = {};
  int64_t k = 0;
  for (; k + 4 * kLanes <= depth; k += 4 * kLanes) {
    for (int i = 0; i < 4; ++i) squares[i] += Load(x + k + i * kLanes) * Load(x + k + i * kLanes);
  }
  for (; k + kLanes <= depth; k += kLanes) squares[0] += Load(x + k) * Load(x + k);
  const Vector all = (squares[0] + squares[1]) + (squares[2] + squares[3]);
  float sum = Across(all, [](Vector u, Vector v) { return u + v; })[0];
  for (; k < depth; ++k) sum += x[k] * x[k];
  const float scale = 1.f / std::sqrt(sum / static_cast<float>(depth) + eps);
  if (shifted) {
    for (k = 0; k < depth; ++k) to[k] = x[k] * scale * weight[k] + weight[depth + k];
  } else {
    for (k = 0; k < depth; ++k) to[k] = x[k] * scale * weight[k];
  }
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

// A norm's weights (K,), or weights and biases (2, K).
bool IsNorm(const Floats& buffer, int64_t depth) {
  return Counts(buffer, depth) || Counts(buffer, 2 * depth);
}

bool Shifted(const Floats& norm, int64_t depth) {
  return static_cast<int64_t>(norm.element_count()) == 2 * depth;
}

// x (..., K), or its root-mean-square norm, times columns of a packed matrix
// from panel `first` on -> results (..., N), side by side in the matrix, each from a panel's
// beginning; then, in this order and where given:
//   bias (sum of N,), twice as many if gated: added.
//   gated: a panel's halves are columns of a gate and the same of another matrix; silu(gate) times
//     the other is the result.
//   cos, sin (..., E / 2): results from number `rotated` on are heads of `head` = E columns, to be
//     rotated; a panel's halves are columns of a head's first half and the same of its second.
//   add (..., N): added.
ffi::Error Product(ffi::ThreadPool pool, Floats x, Floats packed, Floats norm, Floats bias,
                   Floats cos, Floats sin, Floats add, ffi::RemainingRets results, int64_t first,
                   float eps, bool gated, int64_t head, int64_t rotated) {
  struct Side {
    float* to;
    int64_t columns, column, panel;  // its own, and where it begins
    bool rotated;
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
    const bool rotates = cos.element_count() && static_cast<int64_t>(i) >= rotated;
    if (static_cast<int64_t>((*result)->element_count()) != rows * n || n == 0 ||
        (i + 1 < results.size() && n % each) ||
        (rotates && (head < kPanel || head % kPanel || n % head))) {
      return refused();
    }
    sides.push_back({(*result)->typed_data(), n, columns, panels, rotates});
    columns += n;
    panels += Ceil(n, each);
  }
  if (sides.empty() || first < 0 || first + panels > dims[0] || !IsNorm(norm, depth) ||
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
    return plain && !of.rotated && (p - of.panel + 1) * kPanel <= of.columns;
  };
  std::vector<Block> blocks;
  AppendBlocks(0, rows, depth, packed.typed_data() + first * depth * kPanel, blocks);
  Multiply(
      pool, x.typed_data(), blocks, depth, panels, 1, kPanel, norm.element_count() > 0,
      [&, shifted = Shifted(norm, depth)](int64_t row, float* to) {
        Norm(x.typed_data() + row * depth, norm.typed_data(), shifted, eps, depth, to);
      },
      [&, more = Maybe(add)](int64_t, int64_t row, int64_t many, int64_t p, float* own) {
        const Side& of = side(p);
        if (more) {  // which is needed when the tile is done
          for (int64_t i = 0; i < many; ++i) {
            const float* const at = more + (row + i) * of.columns + (p - of.panel) * each;
            __builtin_prefetch(at);
            __builtin_prefetch(at + kLanes);
          }
        }
        return direct(of, p)
                   ? std::pair(of.to + row * of.columns + (p - of.panel) * kPanel, of.columns)
                   : std::pair(own, int64_t{kPanel});
      },
      [&, shift = Maybe(bias), more = Maybe(add)](int64_t row, int64_t many, int64_t p,
                                                  const float* own) {
        const Side& of = side(p);
        if (direct(of, p)) return;
        int64_t left = (p - of.panel) * each, right = left + kLanes, angle = 0;
        if (of.rotated) {
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
          if (gated) a = Silu(a) * b;
          if (of.rotated) {
            const int64_t at = (row + i) * (head / 2) + angle;
            const Vector c = Load(cos.typed_data() + at), s = Load(sin.typed_data() + at);
            const Vector rotated_a = a * c - b * s;
            b = b * c + a * s;
            a = rotated_a;
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

// Experts that each row chooses by logits (N, X), bias (X,) or none: -> chosen, weights (N, K).
// Scores are the logits' softmax, or sigmoids. The K experts whose scores plus bias are the largest
// are chosen, ties to the first; of `groups` equal groups only in the `top` ones by the sum of each
// one's two largest. Weights are their scores, plus bias if it `weighs`; divided by their sum if
// they are to be `normalized`; times `scale`.
ffi::Error Route(ffi::ThreadPool pool, Floats logits, Floats bias,
                 ffi::ResultBuffer<ffi::S32> chosen, ffi::ResultBuffer<ffi::F32> weights,
                 bool sigmoid, bool weighs, bool normalized, float scale, int64_t groups,
                 int64_t top) {
  const auto ld = logits.dimensions(), cd = chosen->dimensions();
  if (ld.size() != 2 || cd.size() != 2 || cd[0] != ld[0] || cd[1] > ld[1] || groups < 1 ||
      ld[1] % groups || top < 1 || top > groups || cd[1] > ld[1] / groups * top ||
      !Counts(bias, ld[1]) || weights->element_count() != chosen->element_count()) {
    return ffi::Error::InvalidArgument("leapjax_route: shapes do not agree");
  }
  constexpr int64_t kTogether = 8;
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const int64_t rows = ld[0], experts = ld[1], some = cd[1], each = experts / groups;
  const int64_t room = Ceil(experts, kLanes) * kLanes;
  if (chosen->element_count() == 0) return ffi::Error::Success();
  Share(pool, Ceil(rows, kTogether), [&] {
    float* const score = Scratch(0, 2 * room + groups);
    return [&, score, biased = score + room, best = score + 2 * room](int64_t task) {
      // The place of the largest that was not taken, the first of equals; it is taken.
      std::vector<bool> taken;
      const auto take = [&](const float* from, int64_t many) {
        int64_t at = -1;
        for (int64_t i = 0; i < many; ++i) {
          if (!taken[i] && (at < 0 || from[i] > from[at])) at = i;
        }
        taken[at] = true;
        return at;
      };
      for (int64_t row = task * kTogether; row < std::min((task + 1) * kTogether, rows); ++row) {
        const float* const own = logits.typed_data() + row * experts;
        const float largest = *std::max_element(own, own + experts);
        Vector sums = {};
        for (int64_t i = 0; i < experts; i += kLanes) {
          const Vector x = LoadSome(own + i, experts - i);
          const Vector down = -x < Broadcast(87.f) ? -x : Broadcast(87.f);
          Vector y = sigmoid ? Broadcast(1.f) / (Broadcast(1.f) + Exp(down))
                             : Exp(x - Broadcast(largest));
          Store(score + i, y);
          for (int64_t j = std::max<int64_t>(experts - i, 0); j < kLanes; ++j) y[j] = 0;
          sums += y;
        }
        const Vector total = Across(sums, [](Vector u, Vector v) { return u + v; });
        for (int64_t i = 0; i < experts; i += kLanes) {
          const Vector y = sigmoid ? Load(score + i) : Load(score + i) / total;
          Store(score + i, y);
          Store(biased + i,
                bias.element_count() ? y + LoadSome(bias.typed_data() + i, experts - i) : y);
        }
        taken.assign(experts, false);
        if (top < groups) {
          for (int64_t g = 0; g < groups; ++g) {
            float first = kNone, second = kNone;
            for (int64_t i = g * each; i < (g + 1) * each; ++i) {
              second = std::max(second, std::min(first, biased[i]));
              first = std::max(first, biased[i]);
            }
            best[g] = first + second;
          }
          std::vector<bool> others(experts, true);
          taken.assign(groups, false);
          for (int64_t n = 0; n < top; ++n) {
            const int64_t g = take(best, groups);
            std::fill_n(others.begin() + g * each, each, false);
          }
          taken = others;
        }
        int32_t* const to = chosen->typed_data() + row * some;
        float* const share = weights->typed_data() + row * some;
        float sum = 1e-20f;
        for (int64_t n = 0; n < some; ++n) {
          to[n] = take(biased, experts);
          share[n] = (weighs ? biased : score)[to[n]];
          sum += share[n];
        }
        for (int64_t n = 0; n < some; ++n) share[n] = share[n] / (normalized ? sum : 1) * scale;
      }
    };
  });
  return ffi::Error::Success();
}

// x (N, D), or its root-mean-square norm, through the experts that each row has chosen, of X:
// chosen, weights (N, K).
//   gate_up (X, P, D, NR): gate and another matrix, gated as in Product; down (X, Q, F, NR).
//   add (N, D) where given, + sum over K in order of weight * (silu(gate) * up) down -> (N, D).
// So many rows at once as `inner` (rows * K, F) and `parts` (rows * K, Q * NR) have room for; they
// hold an expert's rows side by side. Weights of experts that nobody has chosen are not read.
ffi::Error Experts(ffi::ThreadPool pool, Floats x, ffi::Buffer<ffi::S32> chosen, Floats weights,
                   Floats gate_up, Floats down, Floats norm, Floats add,
                   ffi::ResultBuffer<ffi::F32> out, ffi::ResultBuffer<ffi::F32> inner,
                   ffi::ResultBuffer<ffi::F32> parts, float eps) {
  const auto xd = x.dimensions(), cd = chosen.dimensions(), gd = gate_up.dimensions(),
             dd = down.dimensions(), id = inner->dimensions(), pd = parts->dimensions();
  const auto refused = [] {
    return ffi::Error::InvalidArgument("leapjax_experts: shapes do not agree");
  };
  if (xd.size() != 2 || cd.size() != 2 || gd.size() != 4 || dd.size() != 4 || id.size() != 2 ||
      pd.size() != 2) {
    return refused();
  }
  const int64_t rows = xd[0], depth = xd[1], some = cd[1], experts = gd[0], width = dd[2];
  const int64_t wide = dd[1] * kPanel, place = gd[1] * gd[2] * kPanel, back = wide * width;
  if (cd[0] != rows || weights.element_count() != chosen.element_count() || gd[2] != depth ||
      gd[3] != kPanel || dd[0] != experts || dd[3] != kPanel || gd[1] != Ceil(width, kLanes) ||
      dd[1] != Ceil(depth, kPanel) || !IsNorm(norm, depth) || !Counts(add, rows * depth) ||
      out->element_count() != x.element_count() || id[1] != width || pd[1] != wide ||
      pd[0] != id[0] || (rows && (some < 1 || id[0] < some))) {
    return refused();
  }
  const int32_t* const all = chosen.typed_data();
  if (std::any_of(all, all + rows * some, [&](int32_t e) { return e < 0 || e >= experts; })) {
    return ffi::Error::InvalidArgument("leapjax_experts: there is no such expert");
  }
  std::vector<int64_t> ends, order, position;  // of a choice among its expert's, and back
  std::vector<Block> blocks;
  for (int64_t from = 0, room = some ? id[0] / some : 0; from < rows; from += room) {
    const int64_t many = std::min(room, rows - from), choices = many * some;
    const int32_t* const own = all + from * some;
    ends.assign(experts + 1, 0);
    for (int64_t i = 0; i < choices; ++i) ++ends[own[i] + 1];
    for (int64_t e = 0; e < experts; ++e) ends[e + 1] += ends[e];
    order.resize(choices);
    position.resize(choices);
    for (int64_t i = 0; i < choices; ++i) order[position[i] = ends[own[i]]++] = i;
    const auto each_expert = [&](int64_t numbers, const float* panels, int64_t apart) {
      blocks.clear();
      for (int64_t e = 0, top = 0; e < experts; top = ends[e++]) {
        AppendBlocks(top, ends[e] - top, numbers, panels + e * apart, blocks);
      }
    };
    each_expert(depth, gate_up.typed_data(), place);
    Multiply(
        pool, nullptr, blocks, depth, gd[1], 1, kPanel, true,
        [&, weight = Maybe(norm), shifted = Shifted(norm, depth)](int64_t row, float* to) {
          const float* const own = x.typed_data() + (from + order[row] / some) * depth;
          if (weight) Norm(own, weight, shifted, eps, depth, to);
          else std::memcpy(to, own, depth * sizeof(float));
        },
        [](int64_t, int64_t, int64_t, int64_t, float* own) {
          return std::pair(own, int64_t{kPanel});
        },
        [&](int64_t row, int64_t n, int64_t p, const float* own) {
          float* const to = inner->typed_data() + row * width + p * kLanes;
          for (int64_t i = 0; i < n; ++i) {
            const Vector gate = Load(own + i * kPanel), up = Load(own + i * kPanel + kLanes);
            StoreSome(to + i * width, Silu(gate) * up, width - p * kLanes);
          }
        },
        [](int64_t, int64_t, int64_t, const float*) {});
    each_expert(width, down.typed_data(), back);
    Multiply(
        pool, inner->typed_data(), blocks, width, dd[1], 1, 0, false, [](int64_t, float*) {},
        [&](int64_t, int64_t row, int64_t, int64_t p, float*) {
          return std::pair(parts->typed_data() + row * wide + p * kPanel, wide);
        },
        [](int64_t, int64_t, int64_t, const float*) {},
        [](int64_t, int64_t, int64_t, const float*) {});
    constexpr int64_t kTogether = 8;
    Share(pool, Ceil(many, kTogether), [&] {
      return [&](int64_t task) {
        for (int64_t i = task * kTogether; i < std::min((task + 1) * kTogether, many); ++i) {
          const int64_t to = (from + i) * depth;
          for (int64_t k = 0; k < depth; k += kLanes) {
            Vector sum = {};
            for (int64_t j = i * some; j < (i + 1) * some; ++j) {
              sum += Broadcast(weights.typed_data()[from * some + j]) *
                     Load(parts->typed_data() + position[j] * wide + k);
            }
            if (add.element_count()) sum += LoadSome(add.typed_data() + to + k, depth - k);
            StoreSome(out->typed_data() + to + k, sum, depth - k);
          }
        }
      };
    });
  }
  return ffi::Error::Success();
}

// Of scale * (x, or its norm, times a packed matrix) + bias, some panels at a time: the largest
// number of each row, the first column it stands in, and the sum of exponentials of the numbers
// less the largest. x (..., K), bias (P, NR) -> three times (groups of panels, ...). And, with
// biases of their own, the numbers of some columns: ids, biases (M,) -> (..., M). The product is
// held nowhere.
ffi::Error Summary(ffi::ThreadPool pool, Floats x, Floats packed, Floats norm, Floats bias,
                   ffi::Buffer<ffi::S32> ids, Floats biases, ffi::ResultBuffer<ffi::F32> largest,
                   ffi::ResultBuffer<ffi::S32> column, ffi::ResultBuffer<ffi::F32> total,
                   ffi::ResultBuffer<ffi::F32> apart, float scale, float eps) {
  const auto dims = packed.dimensions();
  const int64_t depth = dims[1], panels = dims[0], groups = largest->dimensions()[0];
  if (dims.size() != 3 || dims[2] != kPanel || x.dimensions().back() != depth || panels == 0 ||
      static_cast<int64_t>(bias.element_count()) != panels * kPanel || groups < 1 ||
      Ceil(panels, Ceil(panels, groups)) != groups || !IsNorm(norm, depth) ||
      ids.element_count() != biases.element_count() ||
      apart->element_count() * depth != x.element_count() * ids.element_count() ||
      largest->element_count() * depth != x.element_count() * groups) {
    return ffi::Error::InvalidArgument("leapjax_summary: shapes do not agree");
  }
  if (x.element_count() == 0) return ffi::Error::Success();
  const int64_t rows = x.element_count() / depth, each = Ceil(panels, groups);
  const int64_t wide = each * kPanel, some = ids.element_count();
  std::vector<Block> blocks;
  AppendBlocks(0, rows, depth, packed.typed_data(), blocks);
  Multiply(
      pool, x.typed_data(), blocks, depth, panels, each, wide, norm.element_count() > 0,
      [&, shifted = Shifted(norm, depth)](int64_t row, float* to) {
        Norm(x.typed_data() + row * depth, norm.typed_data(), shifted, eps, depth, to);
      },
      [&](int64_t top, int64_t row, int64_t, int64_t p, float* own) {
        return std::pair(own + (row - top) * wide + p % each * kPanel, wide);
      },
      [](int64_t, int64_t, int64_t, const float*) {},
      [&](int64_t first, int64_t many, int64_t start, float* own) {
        const int64_t count = std::min(each, panels - start) * kPanel;
        const float* const shift = bias.typed_data() + start * kPanel;
        IntVec lane;
        for (int j = 0; j < kLanes; ++j) lane[j] = j;
        const IntVec none = IntVec{} + static_cast<int32_t>(panels * kPanel);
        for (int64_t i = 0; i < many; ++i) {
          float* const numbers = own + i * wide;
          for (int64_t m = 0; m < some; ++m) {
            const int64_t k = ids.typed_data()[m] - start * kPanel;
            if (k < 0 || k >= count) continue;
            apart->typed_data()[(first + i) * some + m] =
                numbers[k] * scale + biases.typed_data()[m];
          }
          Vector tops = Broadcast(-std::numeric_limits<float>::infinity());
          for (int64_t k = 0; k < count; k += kLanes) {
            const Vector x = Load(numbers + k) * Broadcast(scale) + Load(shift + k);
            Store(numbers + k, x);
            tops = x > tops ? x : tops;
          }
          const Vector top = Across(tops, [](Vector u, Vector v) { return u > v ? u : v; });
          // Of nothing but barred columns the sum is none: no number less itself.
          const bool any = top[0] > -std::numeric_limits<float>::infinity();
          const Vector base = any ? top : Vector{};
          IntVec where = none;
          Vector sums = {};
          for (int64_t k = 0; k < count; k += kLanes) {
            const Vector x = Load(numbers + k);
            const IntVec at = x == top ? lane + static_cast<int32_t>(start * kPanel + k) : none;
            where = at < where ? at : where;
            sums += Exp(x - base);
          }
          where = Across(where, [](IntVec u, IntVec v) { return u < v ? u : v; });
          sums = Across(sums, [](Vector u, Vector v) { return u + v; });
          const int64_t to = start / each * rows + first + i;
          largest->typed_data()[to] = top[0];
          column->typed_data()[to] = where[0];
          total->typed_data()[to] = sums[0];
        }
      });
  return ffi::Error::Success();
}

// One step of turning a square around: lanes whose number has the bit W change places with those
// that don't of the vector W further on.
template <int W, int... J>
inline void Exchange(Vector& a, Vector& b, std::integer_sequence<int, J...>) {
  const Vector old = a;
  a = Shuffled(old, b, std::integer_sequence<int, (J & W ? kLanes + (J ^ W) : J)...>());
  b = Shuffled(old, b, std::integer_sequence<int, (J & W ? kLanes + J : J ^ W)...>());
}

// Numbers in rows to numbers in columns.
template <int W = kLanes / 2>
inline void Turn(Vector (&x)[kLanes]) {
  if constexpr (W > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (!(i & W)) Exchange<W>(x[i], x[i + W], AllLanes());
    }
    Turn<W / 2>(x);
  }
}

// Rows of `width` numbers, `pitch` apart, to `wide` apart, filled up with zeros.
void Gather(const float* from, int64_t pitch, int64_t rows, int64_t width, float* to,
            int64_t wide) {
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(to + i * wide, from + i * pitch, width * sizeof(float));
    std::memset(to + i * wide + width, 0, (wide - width) * sizeof(float));
  }
}

// Columns of one head that attention reads: keys and values, `pitch` apart.
struct Columns {
  const float *keys, *values;
  int64_t pitch, count;
};

// Appends the runs of marked columns to `runs`.
void AppendMarked(Columns all, const bool* marked, std::vector<Columns>& runs) {
  for (int64_t at = 0; at < all.count; ++at) {
    const int64_t first = at;
    while (at < all.count && marked[at]) ++at;
    if (at == first) continue;
    const int64_t offset = first * all.pitch;
    runs.push_back({all.keys + offset, all.values + offset, all.pitch, at - first});
  }
}

// Attention of q (B, S, H, E) to keys and values (B, N, G, E), valid (B, N), and to layer `layer`
// of cached ones (L, B, G, T, E), others (B, T); H / G query heads for each of theirs.
// -> (B, S, H * E). Scores of a panel of queries are held as (columns, NR), so that both products
// are the tile above and the softmax runs over columns. Only valid columns have scores.
ffi::Error Attention(ffi::ThreadPool pool, Floats q, Floats cached_keys, Floats cached_values,
                     ffi::Buffer<ffi::PRED> others, Floats keys, Floats values,
                     ffi::Buffer<ffi::PRED> valid, ffi::ResultBuffer<ffi::F32> out, int64_t layer) {
  const auto qd = q.dimensions(), cd = cached_keys.dimensions(), kd = keys.dimensions();
  const auto od = cached_values.dimensions(), vd = values.dimensions();
  if (qd.size() != 4 || kd.size() != 4 || cd.size() != 5 || kd[0] != qd[0] || kd[3] != qd[3] ||
      cd[1] != qd[0] || cd[2] != kd[2] || cd[4] != qd[3] || qd[2] % kd[2] || layer < 0 ||
      layer >= cd[0] || out->element_count() != q.element_count() ||
      static_cast<int64_t>(valid.element_count()) != qd[0] * kd[1] ||
      static_cast<int64_t>(others.element_count()) != qd[0] * cd[3] ||
      !std::equal(kd.begin(), kd.end(), vd.begin(), vd.end()) ||
      !std::equal(cd.begin(), cd.end(), od.begin(), od.end())) {
    return ffi::Error::InvalidArgument("leapjax_attention: shapes do not agree");
  }
  const int64_t b = qd[0], s = qd[1], heads = qd[2], width = qd[3];
  const int64_t fresh = kd[1], groups = kd[2], stored = cd[3];
  const int64_t t = stored + fresh, share = heads / groups;
  if (out->element_count() == 0) return ffi::Error::Success();
  // Scores are exponents of 2, which takes less than e.
  const float scale = 1.44269504f / std::sqrt(static_cast<float>(width));
  const int64_t panels = Ceil(share * s, kPanel), wide = Ceil(width, kPanel) * kPanel;
  // Where several panels of queries read a head's values, and where a head ends within a panel,
  // they are put side by side first.
  const bool copied = panels > 1 || wide != width;
  Share(pool, b * groups * panels, [&] {
    float* const query = Scratch(0, kPanel * (width + t) + 2 * kPanel * wide);
    float* const scores = query + kPanel * width;
    float* const mixed = scores + kPanel * t;
    float* const more = mixed + kPanel * wide;
    float* const own = Scratch(1, copied ? t * wide : 0);
    return [&, query, scores, mixed, more, own, held = int64_t{-1}, alike = false, n = int64_t{0},
            runs = std::vector<Columns>()](int64_t task) mutable {
      const int64_t row = task / (groups * panels), group = task / panels % groups;
      const int64_t from = task % panels * kPanel;
      const int64_t many = std::min<int64_t>(kPanel, share * s - from);
      if (held != task / panels) {
        held = task / panels;
        const int64_t old = ((layer * b + row) * groups + group) * stored * width;
        const int64_t first = (row * fresh * groups + group) * width;
        const Columns all[] = {{cached_keys.typed_data() + old, cached_values.typed_data() + old,
                                width, stored},
                               {keys.typed_data() + first, values.typed_data() + first,
                                groups * width, fresh}};
        runs.clear();
        AppendMarked(all[0], others.typed_data() + row * stored, runs);
        AppendMarked(all[1], valid.typed_data() + row * fresh, runs);
        // A row without any key attends to all of them alike, as in XLA.
        alike = runs.empty();
        if (alike) runs.assign(all, all + 2);
        n = 0;
        for (const Columns& run : runs) {
          if (copied) Gather(run.values, run.pitch, run.count, width, own + n * wide, wide);
          n += run.count;
        }
      }
      // Where the panel's queries are: the places of this group's first head, then of its next.
      int64_t places[kPanel];
      for (int64_t i = 0, place = from % s, head = group * share + from / s; i < kPanel; ++i) {
        places[i] = i < many ? ((row * s + place) * heads + head) * width : places[0];
        if (++place == s) place = 0, ++head;
      }
      const int64_t squares = width / kLanes * kLanes;
      for (int64_t i = 0; i < kPanel; i += kLanes) {
        for (int64_t e = 0; e < squares; e += kLanes) {
          Vector square[kLanes];
#pragma GCC unroll 16
          for (int j = 0; j < kLanes; ++j) square[j] = Load(q.typed_data() + places[i + j] + e);
          Turn(square);
#pragma GCC unroll 16
          for (int j = 0; j < kLanes; ++j) {
            Store(query + (e + j) * kPanel + i, square[j] * Broadcast(scale));
          }
        }
      }
      for (int64_t i = 0; i < kPanel; ++i) {
        const float* const at = q.typed_data() + places[i];
        for (int64_t e = squares; e < width; ++e) query[e * kPanel + i] = at[e] * scale;
      }
      float* next = scores;
      for (const Columns& run : runs) {
        InTiles(run.count, [&](TileFunction tile, int64_t at, int64_t rows, int64_t) {
          // Meanwhile keys after the next ones, and the values that go with these.
          const auto soon = [&](const float* from) {
            for (int64_t e = 0; e < width; e += kLine) __builtin_prefetch(from + e, 0, 2);
          };
          for (int64_t i = at; i < at + rows; ++i) {
            soon(run.keys + (i + 2 * kRows) * run.pitch);
            if (!copied) soon(run.values + i * run.pitch);
          }
          tile(run.keys + at * run.pitch, run.pitch, 1, query, kPanel, width, next + at * kPanel,
               kPanel, {query, 0}, {query, 0});
        });
        next += run.count * kPanel;
      }
      if (alike) std::fill(scores, next, 0.f);
      const Vector lowest = Broadcast(std::numeric_limits<float>::lowest());
      Vector top[2] = {lowest, lowest};
      for (int64_t i = 0; i < n; ++i) {
        for (int h = 0; h < 2; ++h) {
          const Vector x = Load(scores + i * kPanel + h * kLanes);
          top[h] = x > top[h] ? x : top[h];
        }
      }
      Vector total[2] = {Vector{}, Vector{}};
      for (int64_t i = 0; i < n; ++i) {
        for (int h = 0; h < 2; ++h) {
          float* const at = scores + i * kPanel + h * kLanes;
          const Vector p = Exp2(Load(at) - top[h]);
          total[h] += p;
          Store(at, p);
        }
      }
      float sums[kPanel];
      Store(sums, total[0]);
      Store(sums + kLanes, total[1]);
      const auto mix = [&](const float* weights, const float* read, int64_t apart, int64_t count,
                           float* to) {
        for (int64_t e = 0; e < wide; e += kPanel) {
          InTiles(many, [&](TileFunction tile, int64_t at, int64_t, int64_t) {
            tile(weights + at, 1, kPanel, read + e, apart, count, to + at * wide + e, wide,
                 {weights, 0}, {weights, 0});
          });
        }
      };
      if (copied) mix(scores, own, wide, n, mixed);
      const float* weights = scores;
      for (size_t r = 0; r < runs.size() && !copied; ++r) {
        const Columns& run = runs[r];
        mix(weights, run.values, run.pitch, run.count, r ? more : mixed);
        for (int64_t i = 0; r && i < many * wide; ++i) mixed[i] += more[i];
        weights += run.count * kPanel;
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
                                  .Attr<int64_t>("rotated"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(leapjax_summary, Summary,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<Floats>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("scale")
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(leapjax_route, Route,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("sigmoid")
                                  .Attr<bool>("weighs")
                                  .Attr<bool>("normalized")
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("groups")
                                  .Attr<int64_t>("top"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(leapjax_experts, Experts,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(leapjax_attention, Attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("layer"));

extern "C" int leapjax_panel() { return kPanel; }
