"""What the families share: the video DiT, control weights, discriminator heads, and weights in and out of
files."""
