"""A trained network, and the sharded program that draws from it."""
