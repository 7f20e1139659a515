// score(query): g = Σ w c ρ, x − m, s = Σ w c, t = Σ w c ‖ρ‖², and the relative log-sum-exp.
// common/field_operators.h has the function, field.cu the paths that serve it.
#include "field_operator.h"

PFGM_FIELD_OPERATOR(score)
