// Small N (toy sets, two dimensions): kernels/small_n.cuh.
#include "field.h"
#include "kernels/small_n.cuh"

namespace pfgm {
namespace {

template <class T, class C>
void run(const FieldCall& call) {
  const SmallNCall<T, C> plane{call.op,
                               static_cast<const T*>(call.x),
                               static_cast<const T*>(call.r),
                               static_cast<const T*>(call.r_next),
                               static_cast<const C*>(call.charges),
                               call.log_weights,
                               call.batch,
                               call.count,
                               call.dim,
                               static_cast<T>(call.divisor),
                               static_cast<T>(call.offset),
                               call.aug_dim,
                               static_cast<T*>(call.out),
                               call.lse};
  if (call.dim <= 2) launch_small_n<2>(plane, call.stream);
  else if (call.dim <= 4) launch_small_n<4>(plane, call.stream);
  else if constexpr (kSmallNLargest<T> > 4) launch_small_n<kSmallNLargest<T>>(plane, call.stream);
}

}  // namespace

bool small_n_serves(const FieldCall& call) {
  const bool one_sum = call.op != FieldOp::kScore && call.op != FieldOp::kSecondMoment;
  // A block walks over all charges for 32 queries: few queries with many charges are better cut along the
  // charges.
  const bool enough_rows = call.batch >= 8 * multiprocessors() || call.count <= 16384;
  return one_sum && call.dim <= (call.is_double ? kSmallNLargest<double> : kSmallNLargest<float>) &&
         enough_rows;
}

void run_small_n(const FieldCall& call) {
  if (call.is_double) call.bytes ? run<double, uint8_t>(call) : run<double, double>(call);
  else call.bytes ? run<float, uint8_t>(call) : run<float, float>(call);
}

}  // namespace pfgm
