"""What the metrics benchmarks share: a file of random weights, and the Inception networks that
read it.
"""

import functools
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import metrics_golden as golden  # noqa: E402

THREADS = 2


def write_weights(path, *, direction=None):
  """A file as pytorch-fid's and torch-fidelity's own, of metrics_golden.state_dict."""
  import torch

  torch.save({name: torch.tensor(a) for name, a in golden.state_dict(direction).items()}, path)


def cfg_network(path, outputs):
  """uint8 [N,H,W,3] -> {output: array}: this project's network as cfg.evaluate has it, on a virtual
  CPU device for each core.
  """
  from cfg.base import runtime

  runtime.start(cpu_devices=THREADS)
  import jax

  from cfg.base import sharding
  from cfg.interop import inception as interop
  from cfg.models import inception

  mesh = sharding.make_mesh()
  whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  params = jax.device_put(interop.read(path)[0], whole)
  apply = jax.jit(
    functools.partial(inception.apply, outputs=outputs),
    in_shardings=(whole, rows),
    out_shardings=rows,
  )

  def run(pixels):
    padded = np.concatenate([pixels, np.repeat(pixels[-1:], -len(pixels) % mesh.size, axis=0)])
    return {
      name: np.asarray(a)[: len(pixels)]
      for name, a in apply(params, sharding.put_rows(mesh, padded)).items()
    }

  return run


def pytorch_fid_network(path, **options):
  """pytorch-fid's module with the file's weights: float [N,3,H,W] -> [[N,2048,1,1]]."""
  import torch
  from pytorch_fid import inception

  torch.set_num_threads(THREADS)
  inception.load_state_dict_from_url = lambda *_, **__: torch.load(path)
  return inception.InceptionV3([inception.InceptionV3.DEFAULT_BLOCK_INDEX], **options).eval()


def torch_fidelity_network(path):
  """uint8 [N,H,W,3] -> {output: array} under our names: torch-fidelity's extractor; the first
  channels of mixed_6/conv by a hook.
  """
  import torch
  from torch_fidelity.utils import create_feature_extractor

  torch.set_num_threads(THREADS)
  names = {
    "768": "mixed_7",
    "2048": "pool_3",
    "logits_unbiased": "logits_no_bias",
    "logits": "logits",
  }
  network = create_feature_extractor(
    "inception-v3-compat",
    list(names),
    cuda=False,
    feature_extractor_weights_path=path,
    verbose=False,
  )
  found = {}
  keep = lambda module, inputs, output: found.update(
    spatial=output[:, :7].permute(0, 2, 3, 1).flatten(1).numpy()
  )
  network.Mixed_6d.branch1x1.register_forward_hook(keep)

  def apply(pixels):
    with torch.no_grad():
      features = network(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    return {
      names[name]: a.numpy() for name, a in network.convert_features_tuple_to_dict(features).items()
    } | found

  return apply
