"""Data: where images come from (`sources`) and the stream that trains on them (`pipeline`)."""
