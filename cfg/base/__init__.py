"""What the rest is built on: files, config, checkpoints, logs, devices. No diffusion here."""
