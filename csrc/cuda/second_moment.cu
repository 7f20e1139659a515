// second_moment(query, u, power): Σ w c^k (ρ·u) ρ and Σ w c^k (ρ·u).
// common/field_operators.h has the function, field.cu the paths that serve it.
#include "field_operator.h"

PFGM_FIELD_OPERATOR(second_moment)
