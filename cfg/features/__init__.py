"""Feature extractors: what one is, those there are, and what real images give in them."""
