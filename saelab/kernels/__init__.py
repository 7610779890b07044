"""Floor 1: fast versions of a handful of operations. Each file holds the plain reference beside the fast one."""
