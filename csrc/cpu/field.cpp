// The choice of the path.
#include "field.h"

#include "field_operator.h"
#include "subnormals.h"

namespace pfgm {

void run_field(const FieldCall& call, const Parallel& parallel) {
  if (call.batch == 0) return;
  if (call.is_double || call.op == FieldOp::kSecondMoment) return run_direct(call, parallel);
  if (small_n_serves(call)) return run_small_n(call, parallel);
  run_large(call, parallel);
}

void serve(const FieldArguments& arguments, const Tensor&) {
  const auto loop = [](int64_t begin, int64_t end, int64_t grain, const Parallel::Body& body) {
    torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
      const SubnormalsToZero fast;
      body(first, last);
    });
  };
  run_field(arguments, {torch::stable::get_num_threads(), loop});
}

}  // namespace pfgm
