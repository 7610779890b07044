"""What single latents do to the model's output."""
