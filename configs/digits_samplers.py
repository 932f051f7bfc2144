"""The digits by every sampler, on every grid of levels, in 8 to 256 steps: which few do for many.

Commands:
  python -m cfg.main --config=configs/digits.py --mode=train
  python -m cfg.main --config=configs/digits_samplers.py --workdir=runs/digits --mode=sweep

Hardware: two CPU cores.
Time: an hour and a half for the sweep, which takes 27 million evaluations of the network.

The first variant is the paper's sampler with T = 256, which all others are compared with at the
same strength and from the same noise. docs/digits.md has the results.
"""

from configs import digits

SAMPLERS = {
  "ancestral": dict(name="ancestral", var_interp=0.3),
  "ddim": dict(name="ddim"),
  "heun": dict(name="heun"),
  "dpm_solver_pp_2m": dict(name="dpm_solver_pp_2m"),
  "dpm_solver_pp_2m_sde": dict(name="dpm_solver_pp_2m", eta=1.0),
}
SPACINGS = ("u", "logsnr", "edm")


def get_config():
  """digits.py, swept over samplers, their levels and T."""
  config = digits.get_config()
  config.sweep.w = (0.0, 0.1, 0.3, 1.0)
  config.sweep.num_samples = 400
  config.sweep.batch_size = 200
  config.sweep.num_steps = (256, 128, 64, 32, 16, 8)
  methods = {
    f"{name}_{spacing}": dict(sampler=dict(sampler, spacing=spacing))
    for name, sampler in SAMPLERS.items()
    for spacing in SPACINGS
  }
  # the paper's v is for T = 256
  methods["ancestral_v06_u"] = dict(sampler=dict(var_interp=0.6))
  config.methods = methods
  config.sweep.methods = tuple(methods)  # a ConfigDict sorts its names
  return config
