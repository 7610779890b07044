"""Explanations of latents by token patterns (N2G), scored beside simpler ones."""
