// The choice between the ways to serve a field operator, and the bound on its scratch memory.
#include "field.h"

#include <algorithm>

namespace pfgm {
namespace {

constexpr int64_t kScratch = int64_t{1} << 30;  // bytes of pairs at a time, about
constexpr int64_t kBytesPerPair = 16;           // gaps in double, and products, weights or packed digits

const void* shifted(const void* pointer, int64_t bytes) { return pointer ? static_cast<const char*>(pointer) + bytes : nullptr; }
void* shifted(void* pointer, int64_t bytes) { return pointer ? static_cast<char*>(pointer) + bytes : nullptr; }

}  // namespace

FieldCall FieldCall::rows(int64_t first, int64_t count) const {
  const int64_t scalar = first * (is_double ? 8 : 4), matrix = scalar * dim;
  FieldCall part = *this;
  part.batch = count;
  part.x = shifted(x, matrix);
  part.r = shifted(r, scalar);
  part.u = shifted(u, matrix);
  part.r_next = shifted(r_next, scalar);
  part.vector = shifted(vector, matrix);
  part.gradient = shifted(gradient, matrix);
  part.rate = shifted(rate, scalar);
  part.trace = shifted(trace, scalar);
  part.lse = lse ? lse + first : nullptr;
  return part;
}

void run_field(const FieldCall& call) {
  if (call.batch == 0) return;
  if (plane_serves(call)) return run_plane(call);
  const int64_t rows = std::max<int64_t>(128, kScratch / (kBytesPerPair * call.charges_count) / 128 * 128);
  for (int64_t first = 0; first < call.batch; first += rows) {
    const FieldCall part = call.rows(first, std::min(rows, call.batch - first));
    if (bytes_serves(part)) run_bytes(part);
    else if (floats_serves(part)) run_floats(part);
    else run_direct(part);
  }
}

}  // namespace pfgm
