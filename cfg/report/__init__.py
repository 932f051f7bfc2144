"""What a reader sees of a sweep: table, curves, grids."""
