"""The training loop, its step and state, and what is measured on the way."""
