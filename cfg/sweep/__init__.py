"""The guidance sweep: one strength at a time, resumable, each row with its provenance."""
