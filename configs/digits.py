"""Handwritten digits, 8x8: the whole experiment on a laptop's CPU. The base of the other configs.

Command:
  python -m cfg.main --config=configs/digits.py

Hardware: two CPU cores, 3 GB of memory; nothing is downloaded.
Time: about 3 minutes.

docs/config.md describes every field, docs/digits.md the results.
"""

import ml_collections
from ml_collections import config_dict


def get_config():
  """Every field there is; a config for other data changes a few."""
  section = ml_collections.ConfigDict
  config = section()

  # with (config, seed) a run is determined
  config.seed = 0
  # virtual devices where there is only a CPU: XLA is quicker with one per core
  config.cpu_devices = 2

  # "digits"; "folder": `path` holds a sub-folder of images per class; "prepared": `path` is what
  # python -m cfg.data.prepare made; "tfds:NAME": a data set of TFDS, prepared in `path` ("": TFDS's
  # own folder); "synthetic": made-up images, to try things
  config.data = section(
    dict(
      name="digits",
      path="",
      resolution=8,  # side of the images of a folder or of TFDS; the digits have 8
      # how those images are made square: "area" (the paper's), "adm" or "edm" (cfg.data.recipes)
      recipe="area",
      # 0: as many as there are; otherwise it must agree. The synthetic images have so many
      num_classes=0,
      num_images=0,  # of the synthetic images
      heldout_fraction=0.2,
      split_seed=0,
    )
  )

  # cfg.models.unet.UNet
  config.model = section(
    dict(
      ch=16,
      emb_ch=64,
      ch_mult=(1, 2),
      num_res_blocks=1,
      attn_resolutions=(4,),
      # None where head_dim is given; a reference keeps its type, so that it can be set again
      num_heads=config_dict.FieldReference(2),
      head_dim=config_dict.placeholder(int),
      dropout=0.0,
      norm_groups=8,
      remat=False,  # recompute each block in the backward pass: less memory, a third more work
      attention="auto",  # or "xla", "cudnn", "splash"
      dtype="float32",  # or "bfloat16": of activations; parameters and normalisation stay float32
    )
  )

  # log-SNR at u = 1 and u = 0
  config.schedule = section(dict(logsnr_min=-20.0, logsnr_max=20.0))

  # cfg.base.optim.make_optimizer
  config.optimizer = section(
    dict(
      learning_rate=3e-3, warmup_steps=50, grad_clip=1.0, beta1=0.9, beta2=0.999, weight_decay=0.0
    )
  )

  config.train = section(
    dict(
      batch_size=128,  # of all devices together
      # processes that read and decode images; 0: threads, which are enough for prepared data
      data_workers=0,
      accumulate=1,  # micro-batches an update is made of: the same update in less memory
      fsdp=1,  # devices over which parameters, averages and moments are split; 1: each has a copy
      num_steps=400,
      # "denoise": a diffusion model; "classify": a classifier of noised images, to guide one
      objective="denoise",
      # the paper's 0.1 and 0.2 do equally well; so short a run trains the null label little
      p_uncond=0.2,
      flip=False,
      # updates in a row that are skipped, as their loss or gradient is not finite, before it stops
      most_skipped=10,
      ema_decays=(0.99,),  # one average each; the first is watched, and swept by default
      # every_steps, here and below: n is every n steps and at the end, 0 is never
      log_every_steps=20,
      checkpoint_every_steps=200,  # the end's is always written
      keep_checkpoints=2,  # the newest so many
      keep_every_steps=0,  # and those of every so many steps for good: earlier ones can guide
    )
  )

  # the held-out loss, in num_bins equal parts of u
  config.heldout = section(
    dict(every_steps=200, num_bins=8, num_images=0, batch_size=64, seed=0)  # 0 images: all
  )
  # what the two branches know of held-out images, of which each is noised at a level in each of
  # num_levels equal parts of the log-SNR (cfg.metrics.meter): before a sweep, once, and while
  # training
  config.meter = section(
    dict(
      every_steps=0,
      num_levels=56,  # 0: it is not measured
      num_images=1000,  # evenly spaced; 0: all
      batch_size=512,  # noised images at once
      seed=0,
    )
  )
  # pictures of the same noises at these strengths while training
  config.preview = section(dict(every_steps=200, w=(0.0, 2.0), num_classes=10, num_per_class=6))

  # FID and the rest of few samples while training, in the sweep's networks: biased, to be compared
  # along this run alone
  config.watch = section(dict(every_steps=0, w=(0.0,), num_samples=1000))

  # what the networks say together (cfg.rules.RULES)
  config.guidance = section(
    dict(
      # "classifier_free": the paper's; "conditional": none; "second_network": `guide` in place of
      # the null label (autoguidance); "classifier": by the gradient of that in `guide`, on the
      # conditional model, or with "classifier_unconditional" on the unconditional one;
      # "cfg_plus_plus": w is its lambda; "projected"; "power_law"; for networks without a null
      # label "random_label" and "shifted_level"; low temperatures "scaled_score",
      # "temporal_rescaling", "shrunk_noise" and "truncation"
      rule="classifier_free",
      guide="",  # work directory or weights file of the second network or the classifier
      guide_ema=config_dict.placeholder(float),  # which average of it, by decay; None: the first
      guide_step=config_dict.placeholder(int),  # which checkpoint of a work directory; None: newest
      # of w from pure noise to the end: "constant", "linear" or "cosine" (cfg.guidance.RAMPS)
      ramp="constant",
      # guided at these log-SNRs alone, one branch elsewhere; None: no end
      logsnr_min=config_dict.placeholder(float),
      logsnr_max=config_dict.placeholder(float),
      # "meter": logsnr_max is the level at which the meter has seen all; "none": as given above
      interval="none",
      # of "projected"
      momentum=0.0,
      norm_limit=config_dict.placeholder(float),  # None: none
      parallel=1.0,
      level_shift=0.01,  # of "shifted_level", in u
      power=0.0,  # of "power_law": 0 is the paper's rule
      data_std=0.5,  # of "temporal_rescaling": of a pixel given its class
    )
  )

  config.sampler = section(
    dict(
      # "ancestral" (the paper's, with its v), "ddim", "heun" or "dpm_solver_pp_2m"
      # (cfg.sampling.SAMPLERS)
      name="ancestral",
      # T, levels at which the networks are called, and v of "ancestral": so few with this v draw
      # what 256 of the paper's v = 0.3 draw (docs/digits.md, Samplers)
      num_steps=16,
      var_interp=0.6,
      eta=0.0,  # of "ddim" and "dpm_solver_pp_2m": 0 draws no noise, 1 as "ancestral" with v = 0
      # of "heun": EDM's S_churn, S_noise, and the log-SNRs between which there is any; None: no end
      churn=0.0,
      churn_noise=1.0,
      churn_logsnr_min=config_dict.placeholder(float),
      churn_logsnr_max=config_dict.placeholder(float),
      particles=1,  # samples of a class that are weighed and resampled together; 1: none are
      limit="clip",  # of x_hat after the mix: "none", "clip" to [-1, 1], or "dynamic"
      limit_percentile=0.995,  # of "dynamic"
      limit_max=config_dict.placeholder(float),  # of "dynamic"; None: none
      spacing="u",  # of the T levels: uniform in "u" (the paper's) or in "logsnr", or "edm"
      rho=7.0,  # of "edm"
      # ends of the grid; None: the schedule's
      logsnr_min=config_dict.placeholder(float),
      logsnr_max=config_dict.placeholder(float),
    )
  )

  config.sweep = section(
    dict(
      w=(0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 4.0),
      num_samples=1500,  # at each w; rounded up to equal blocks of balanced labels
      num_blocks=5,  # for the errors
      batch_size=256,
      seed=0,
      ema=config_dict.placeholder(float),  # None: the first of train.ema_decays
      # names of config.methods, swept beside each other; the first is what the others are compared
      # with. Empty: the sections guidance and sampler as they are
      methods=(),
      # further axes: the sweep goes through every combination. Empty: the sampler's own value, and
      # `ema`
      sampler=(),
      num_steps=(),
      var_interp=(),
      eta=(),
      spacing=(),
      ema_decays=(),
      # T is the largest at which a guided sample takes at most so many evaluations of the networks;
      # None: sampler.num_steps
      evaluations=config_dict.placeholder(int),
      gflops=config_dict.placeholder(float),  # the same in 1e9 FLOPs, which a gradient has more of
      # Fréchet distances of fewer images than Inception has features: they mean little
      allow_few=False,
      # also Inception's at infinitely many images, where blocks are large enough
      extrapolate=False,
    )
  )

  # what sweep.methods names: {name: {section: {field: its value}}} of the sections guidance and
  # sampler, and sweep's w (configs/digits_methods.py has some)
  config.methods = section()

  # FID's Inception network, besides the judge
  config.inception = section(
    dict(
      path="",  # its weights (python -m cfg.interop.inception); "": not used
      # statistics of real images (python -m cfg.evaluate --make_reference, ADM's, EDM's); "": of
      # the training split
      reference="",
      num_reference=0,  # images of the training split that are measured then, evenly spaced; 0: all
    )
  )

  # published numbers, set beside the sweep's where both are FID and IS: rows of (T or 0 for any, w,
  # FID, IS)
  config.paper = section(dict(source="", num_samples=0, rows=()))

  # the classifier of the data's classes in whose features FID and IS are measured too:
  # cfg.models.judge.Judge, trained on the training split
  config.judge = section(
    dict(
      # a file of akamaster/pytorch_resnet_cifar10 (.th, or .npz of its state dict), used instead
      # where the data are CIFAR-10: then of the fields below only batch_size and min_accuracy count
      path="",
      ch=32,
      levels=2,
      feature_dim=64,
      dropout=0.3,
      num_steps=600,  # 0: no judge
      batch_size=64,
      learning_rate=2e-3,
      warmup_steps=20,
      weight_decay=1e-3,
      min_accuracy=0.97,  # on the held-out images, or the sweep refuses
    )
  )
  return config
