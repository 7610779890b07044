"""Explanations of latents and how well they hold: token patterns (N2G), and words that a language model finds."""
