"""What the rest stands on: files, config, checkpoints, logs, devices. Knows nothing of diffusion."""
