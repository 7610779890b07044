"""Where capacity goes: allocation over features, loss curves of manifolds, their theory, and an SAE's diagnosis."""
