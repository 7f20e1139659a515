// The choice between the paths that serve a field operator, and the bound on its scratch memory.
#include "field.h"

#include <algorithm>

namespace pfgm {
namespace {

constexpr int64_t kScratch = int64_t{1}
                             << 30;   // bytes that a call takes at most, unless one query alone needs more
constexpr int64_t kWholeTiles = 128;  // queries of a part are a multiple of this where so many fit

const void* shifted(const void* pointer, int64_t bytes) {
  return pointer ? static_cast<const char*>(pointer) + bytes : nullptr;
}
void* shifted(void* pointer, int64_t bytes) {
  return pointer ? static_cast<char*>(pointer) + bytes : nullptr;
}

void run_part(const FieldCall& part, Arena& arena) {
  if (bytes_serves(part)) run_bytes(part, arena);
  else if (floats_serves(part)) run_floats(part, arena);
  else run_direct(part, arena);
}

int64_t scratch_of(const FieldCall& part) {
  Arena arena;
  run_part(part, arena);
  return arena.bytes();
}

/// How many of the call's queries are served at a time: as many as the bound allows.
int64_t queries_at_a_time(const FieldCall& call) {
  int64_t queries = call.batch;
  for (int64_t bytes; queries > 1 && (bytes = scratch_of(call.rows(0, queries))) > kScratch;) {
    const int64_t fewer = std::min(
        queries - 1, static_cast<int64_t>(static_cast<double>(kScratch) / static_cast<double>(bytes) *
                                          static_cast<double>(queries)));
    queries = fewer > kWholeTiles ? fewer / kWholeTiles * kWholeTiles : std::max<int64_t>(1, fewer);
  }
  return queries;
}

}  // namespace

FieldCall FieldCall::rows(int64_t first, int64_t count) const {
  const int64_t scalar = first * (is_double ? 8 : 4), matrix = scalar * dim;
  FieldCall part = *this;
  part.batch = count;
  part.x = shifted(x, matrix);
  part.r = shifted(r, scalar);
  part.u = shifted(u, matrix);
  part.r_next = shifted(r_next, scalar);
  part.out = shifted(out, matrix);
  part.gradient = shifted(gradient, matrix);
  part.rate = shifted(rate, scalar);
  part.trace = shifted(trace, scalar);
  part.lse = lse ? lse + first : nullptr;
  return part;
}

void run_field(const FieldCall& call) {
  if (call.batch == 0) return;
  if (small_n_serves(call)) return run_small_n(call);
  if (call.count >= int64_t{1} << 31) throw std::runtime_error("pfgm_fast CUDA: more than 2^31 charges");
  const int64_t queries = queries_at_a_time(call), last = call.batch % queries;
  const int64_t bytes =
      std::max(scratch_of(call.rows(0, queries)), last == 0 ? 0 : scratch_of(call.rows(0, last)));
  const std::shared_ptr<void> memory =
      call.scratch(bytes);  // every part's in turn: the stream keeps their order
  for (int64_t first = 0; first < call.batch; first += queries) {
    Arena arena(memory.get(), bytes);
    run_part(call.rows(first, std::min(queries, call.batch - first)), arena);
  }
}

}  // namespace pfgm
