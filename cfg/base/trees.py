"""Nested dicts of arrays or values: flat names and back, and a hash of the whole."""

import hashlib

import numpy as np

MOST_NESTED = 100


def flatten(tree, *, separator="/", prefix=""):
  """{"cond/dense0/kernel": leaf, ...} of nested dicts; an empty one is a leaf."""
  flat = {}
  for key, value in tree.items():
    name = f"{prefix}{key}"
    if isinstance(value, dict) and value:
      flat.update(flatten(value, separator=separator, prefix=f"{name}{separator}"))
    else:
      flat[name] = value
  return flat


def unflatten(flat, *, separator="/"):
  """The inverse of `flatten`; ValueError for names that no nested dicts have."""
  tree = {}
  for name, value in flat.items():
    *parents, leaf = name.split(separator)
    if len(parents) > MOST_NESTED:
      raise ValueError(f"{name[:40]}... is nested more than {MOST_NESTED} deep")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        raise ValueError(f"{name} and {parent} of it are both there")
    if leaf in node:
      raise ValueError(f"{name} and something in it are both there")
    node[leaf] = value
  return tree


def tree_hash(tree):
  """SHA-256 over paths, shapes, dtypes and bytes of a tree of arrays: equal trees, equal hash, on
  any device.
  """
  import jax  # here alone: the command line flattens configs before it imports jax

  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    leaf = np.ascontiguousarray(leaf)
    digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}\n".encode())
    digest.update(leaf.tobytes())
  return digest.hexdigest()
