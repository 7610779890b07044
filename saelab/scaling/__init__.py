"""Scaling: laws fitted to ladders of SAEs, plans made from them, and where capacity goes with feature manifolds."""
