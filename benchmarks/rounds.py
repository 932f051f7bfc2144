"""Times of several programs on a machine that others share: in turn, so that what slows one down
slows the others too, and compared within a round. Used by guidance_cost.py and sampler_speed.py.
"""

import statistics
import sys
import time


def in_turn(calls, *, rounds, title=""):
  """{name: [(seconds, processor seconds) of each round]}, after one call each to warm up; every
  second round goes backwards.
  """
  for name, call in calls.items():
    start = time.perf_counter()
    call()
    print(f"{title} {name}: first {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
  times = {name: [] for name in calls}
  for i in range(rounds):
    for name in list(calls)[:: -1 if i % 2 else 1]:
      start = time.perf_counter(), time.process_time()
      calls[name]()
      times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    seconds = ", ".join(f"{name} {spent[-1][0]:.3f} s" for name, spent in times.items())
    print(f"{title} {i + 1}/{rounds}: {seconds}", file=sys.stderr, flush=True)
  return times


def median(times, clock=0):
  """The median seconds of one name; clock 1 for those of processors."""
  return statistics.median(spent[clock] for spent in times)


def ratio(first, second, clock=0):
  """(the median, the lower and the upper quartile) of first over second within each round."""
  ratios = [a[clock] / b[clock] for a, b in zip(first, second, strict=True)]
  low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
  return middle, low, high


def cell(first, second, clock=0):
  """A ratio and its quartiles, for a table."""
  middle, low, high = ratio(first, second, clock)
  return f"{middle:.3f} ({low:.3f} to {high:.3f})"
