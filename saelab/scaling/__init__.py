"""Scaling laws: ladders of SAEs as cells, laws fitted to them, and plans made from the fits."""
