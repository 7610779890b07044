"""Floor 6: what several SAEs have to do with each other: stitching, meta-SAEs, matching, manifolds of latents."""
