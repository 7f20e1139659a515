// field_step(query, r_next) on the CPU: x + (r′ − r)/r · (x − m), one Euler step in the true field.
// common/field_operators.h has the function, field.cpp the paths that serve it.
#include "field_operator.h"

PFGM_FIELD_OPERATOR(field_step)
