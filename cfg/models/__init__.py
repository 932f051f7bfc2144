"""Networks. The only rooms that know flax.linen, with train_state."""
