"""Classifier-free diffusion guidance (Ho & Salimans 2022, arXiv 2207.12598) in JAX."""

__version__ = "0.1.0"
