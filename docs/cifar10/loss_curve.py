"""python docs/cifar10/loss_curve.py runs/cifar10_cpu docs/cifar10/loss.png: training and held-out
loss of a run, from its metrics.jsonl.
"""

import json
import pathlib
import sys

import matplotlib.pyplot as plt
import numpy as np

WINDOW = 10  # records in a running mean


def main(run, out):
  rows = [
    json.loads(line)
    for line in (pathlib.Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
  ]
  step, loss = np.array([(r["step"], r["loss"]) for r in rows if "loss" in r]).T
  fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
  ax.plot(step, loss, lw=0.5, alpha=0.4, label="training, means over 20 steps")
  ax.plot(
    step[WINDOW - 1 :],
    np.convolve(loss, np.ones(WINDOW) / WINDOW, "valid"),
    lw=1.2,
    color="C0",
    label=f"training, running mean over {20 * WINDOW} steps",
  )
  for name, label, style in (
    ("cond", "held out, true labels (EMA 0.999)", "o-"),
    ("null", "held out, null label (EMA 0.999)", "s--"),
  ):
    points = [(r["step"], r[f"heldout/loss_{name}"]) for r in rows if f"heldout/loss_{name}" in r]
    ax.plot(*zip(*points), style, ms=4, lw=1, label=label)
  ax.set(
    xlabel="step (64 images each)",
    ylabel="mean squared error in eps",
    ylim=(0.055, 0.12),
    xlim=(0, step[-1]),
  )
  ax.legend(fontsize=8)
  fig.savefig(out, dpi=150)


if __name__ == "__main__":
  main(*sys.argv[1:])
