// second_moment(query, u, power) on the CPU: Σ w c^power (ρ·u) ρ and Σ w c^power (ρ·u).
// common/field_operators.h has the function, field.cpp the paths that serve it.
#include "field_operator.h"

PFGM_FIELD_OPERATOR(second_moment)
