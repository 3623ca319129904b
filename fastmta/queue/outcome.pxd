cpdef outcome(envelope, list ends, policy_for, str site=*)
cpdef list notices(envelope, result, policy_for, reports, double now)
