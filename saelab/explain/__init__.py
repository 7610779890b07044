"""Explanations of latents by a language model, and scores of how well they hold."""
