// The choice of the way.
#include "field.h"

namespace pfgm {

void run_field(const FieldCall& call, const Parallel& parallel) {
  if (call.batch == 0) return;
  if (call.is_double || call.wanted == Wanted::kMoment) return run_exact(call, parallel);
  if (plane_serves(call)) return run_plane(call, parallel);
  run_large(call, parallel);
}

}  // namespace pfgm
