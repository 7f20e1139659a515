// Small N (toy sets, two dimensions): kernels/plane.cuh.
#include "field.h"
#include "kernels/plane.cuh"

namespace pfgm {
namespace {

template <class T, class C>
void run(const FieldCall& call) {
  const PlaneCall<T, C> plane{call.wanted, static_cast<const T*>(call.x), static_cast<const T*>(call.r),
                              static_cast<const T*>(call.r_next), static_cast<const C*>(call.charges), call.log_weights,
                              call.batch, call.charges_count, call.dim, static_cast<T>(call.divisor),
                              static_cast<T>(call.offset), call.aug_dim, static_cast<T*>(call.vector), call.lse};
  if (call.dim <= 2) launch_plane<2>(plane, call.stream);
  else if (call.dim <= 4) launch_plane<4>(plane, call.stream);
  else if constexpr (kPlaneLargest<T> > 4) launch_plane<kPlaneLargest<T>>(plane, call.stream);
}

}  // namespace

bool plane_serves(const FieldCall& call) {
  const bool one_sum = call.wanted != Wanted::kScore && call.wanted != Wanted::kMoment;
  // A block walks over all charges for 32 queries: few queries with many charges are better cut along the charges.
  const bool enough_rows = call.batch >= 8 * multiprocessors() || call.charges_count <= 16384;
  return one_sum && call.dim <= (call.is_double ? kPlaneLargest<double> : kPlaneLargest<float>) && enough_rows;
}

void run_plane(const FieldCall& call) {
  if (call.is_double) call.bytes ? run<double, uint8_t>(call) : run<double, double>(call);
  else call.bytes ? run<float, uint8_t>(call) : run<float, float>(call);
}

}  // namespace pfgm
