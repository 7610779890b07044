"""The same operations for CUDA devices, written in Triton: what a training step of a TopK SAE is made of.

Import a module of this folder only where there is a CUDA device (or Triton's interpreter, see device.py): each imports
triton, which `import saelab` does not need.

    select.py   the encoder: the k largest pre-activations of every row         -> values, latents [B, K]
      screen.py   bf16 products, looked at tile by tile; what beats a row's bound is kept
      rescore.py  exact fp32 values of the best of these; rows for which that decides nothing are done again
      keys.py     value and latent in one sortable integer: ties, -0 and NaN in one place
    decode.py   sparse sums of directions, dot products at entries, residual and loss
    sort.py     entries in the order of their latents
    sums.py     sums over each latent's entries, latents with very many entries in chunks
    update.py   gradient, projection, Adam, norm and bf16 copy of one latent in one visit
      moments.py  the averages in fp32, bf16 or 8 bits, rounded at random
    auxk.py     the loss that revives dead latents, on a matrix of dead latents alone

A step goes: `topk_linear_forward` -> `decode_residual` -> `dot_at` (the gradient of the codes) -> `sort_by_latent` ->
`update` for each of both weights. Only the first is a dense product. Nothing there waits for the GPU or depends on
what is in the tensors for its shapes, so that a step can be captured as a CUDA graph.

**Memory** beside weights, averages and bf16 copies (L rows of D each) is flat in L but for a few numbers a latent:

    survivors of the screen      8 bytes * B * 1024          (more for k above 48; rows in blocks of at most 32,768)
    sums of chunks               4 bytes * (B K / 32) * D    (one weight at a time)
    sort                         4 bytes * 512 * B K / 256 and a few times 8 bytes * B K
    AuxK                         4 bytes * 2048 * (room for dead latents), and the gathered rows

**Order and chance.** Results do not depend on which program runs first: survivors come in any order but are chosen by
keys that all differ; sums go in a fixed order; random rounding comes from a counter.

**What is assumed of the hardware**: 32 lanes a warp and bf16 matrix products (compute capability 8.0 and later). From
9.0 on (Hopper), tiles of the encoder's product are fetched by the copy engine where L is a multiple of 128 and D of 64.
Tile sizes (128 x 128 x 64, 4 warps, 3 in flight: 98 KB of shared memory and some 210 registers a thread, as compiled
for sm_90, so two programs share a multiprocessor) were chosen by counting.

**State**: checked in Triton's interpreter on a CPU, against float64, and compiled for sm_90. None of it has run on a
GPU yet: how fast it is, whether the machine instructions of the screen's epilogue do what their twin in plain Triton
does, and that no step waits, are for `benchmarks/gpu_step.py` to show on one, and for the same tests, which use a GPU
where there is one.
"""
