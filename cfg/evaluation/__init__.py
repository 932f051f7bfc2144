"""Evaluation: feature extractors, streaming statistics, and the metrics made of them."""
