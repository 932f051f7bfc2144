"""The command line: every bad input is one paragraph, an exit code, and nothing damaged."""

import os
import subprocess
import sys

import paths
import pytest

from cfg.base import checkpoint, logs
from cfg.base import config as config_lib

ROOT = paths.ROOT


def command(*options, config="configs/digits.py", cwd=ROOT, **env):
  """(exit code, stdout, stderr) of python -m cfg.main; without a config if it is None."""
  words = [sys.executable, "-m", "cfg.main", *([f"--config={config}"] if config else []), *options]
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **env}
  done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
  return done.returncode, done.stdout, done.stderr


@pytest.fixture
def workdir(tmp_path, config):
  """A work directory with a checkpoint of the test config; only its meta is looked at here."""
  meta = {
    "step": 3,
    "config": config_lib.to_json(config),
    "class_names": list("0123456789"),
    "image_shape": [8, 8, 1],
    "data_name": "digits",
  }
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, state={"ema": {"0.99": {"a": config.seed + 1.0}}}, meta=meta)
  return tmp_path


CASES = {
  "unknown field": (["--config.train.batchsize=3"], ["batch_size"]),
  "unknown section": (["--config.trian.batch_size=3"], ["trian", "train"]),
  "bad value": (["--config.train.batch_size=many"], ["config.train.batch_size", "many"]),
  "value no run can use": (["--config.train.p_uncond=2"], ["train.p_uncond is 2", "probability"]),
  "missing config": (["--config=configs/nothing.py"], ["configs/nothing.py", "cannot be loaded"]),
  "no config": ([None], ["--config=configs/digits.py"]),
  "unknown option": (["--wokdir=x"], ["wokdir"]),
  "unknown mode": (["--mode=trian"], ["train"]),
  "stray word": (["train"], ["unexpected argument 'train'"]),
  "missing data folder": (
    ["--config.data.name=folder", "--config.data.path=/nowhere/at/all"],
    ["/nowhere/at/all", "is not a folder"],
  ),
  "a sweep that gives no numbers, before training": (
    ["--config.sweep.num_blocks=1"],
    ["sweep.num_blocks is 1", "at least 2"],
  ),
  "w and scale": (["--mode=sample", "--w=1", "--scale=2"], ["--w=1 and --scale=2", "give one"]),
  "no flag file": (["--flagfile=/nowhere/at/all"], ["/nowhere/at/all"]),
  "memory that no device has": (["--mode=dry_run", "--memory_gb=0"], ["memory_gb", "above 0"]),
  "seed of the samples": (["--mode=sample", "--seed=-1"], ["--seed=-1", "4294967295"]),
  "seed that is another's": (["--config.seed=4294967296"], ["seed is 4294967296", "2^32 - 1"]),
  "a bucket": (["--out=gs://bucket/x", "--mode=export"], ["--out is 'gs://bucket/x'"]),
  "data in a bucket": (["--config.data.path=s3://b/x"], ["data.path is 's3://b/x'"]),
  "labels that nothing learnt": (["--config.train.p_uncond=1"], ["p_uncond is 1", "w = -1"]),
  "no such platform": (["--mode=dry_run", "JAX_PLATFORMS=cuda"], ["JAX_PLATFORMS=cuda", "unset"]),
  "jax's environment": (["--mode=dry_run", "JAX_ENABLE_X64=maybe"], ["JAX_ENABLE_X64", "maybe"]),
  "a batch that devices cannot share": (
    ["--mode=dry_run", "--config.train.batch_size=127"],
    ["train.batch_size", "devices"],
  ),
  "a bucket of another maker": (["--workdir=s3://b/x"], ["--workdir is 's3://b/x'", "gs://bucket"]),
  "no such chip": (["--mode=dry_run", "--topology=v4-31"], ["--topology is 'v4-31'", "v4-32"]),
  "a chip to train on": (["--mode=train", "--topology=v4-32"], ["--mode=dry_run", "train"]),
  "nothing trained": (["--mode=sample", "--w=1"], ["no checkpoint", "--mode=train"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_paragraph(case, tmp_path):
  """The thing and the remedy are named, on stderr, with an exit code and without a traceback;
  nothing was trained.
  """
  options, words = CASES[case]
  config = None if options == [None] else "configs/digits.py"
  env = dict(option.split("=") for option in options if option and option.startswith("JAX"))
  options = [option for option in options if option and not option.startswith("JAX")]
  code, _, stderr = command(f"--workdir={tmp_path}", *options, config=config, **env)
  error = stderr[stderr.index("error:") :]
  assert code == 1 and "Traceback" not in stderr and len(error.strip().splitlines()) == 1
  for word in words:
    assert word in error
  assert not (tmp_path / "checkpoints").exists()


def test_another_runs_directory_is_left_alone(workdir):
  """Training under another config in a directory that holds a checkpoint: the fields are named, no
  byte changes.
  """
  before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
  code, _, stderr = command(f"--workdir={workdir}", "--mode=train")
  assert (
    code == 1
    and "holds a checkpoint of another config" in stderr
    and "model.ch is 16, the checkpoint has 8" in stderr
  )
  assert "Traceback" not in stderr and "Choose another --workdir" in stderr
  assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_modes_that_read_make_no_directory(tmp_path):
  """--mode=sample with a mistyped work directory says so and leaves no empty folder behind."""
  code, _, stderr = command(f"--workdir={tmp_path / 'runn'}", "--mode=sample")
  assert code == 1 and "there is no work directory" in stderr and not (tmp_path / "runn").exists()


@pytest.mark.parametrize(
  "spelling, said",
  [
    ("--config digits.py --workdir={} --mode train", "a checkpoint of another config"),
    ("-config=digits.py -workdir {} -mode=train", "a checkpoint of another config"),
    ("--workdir {} --mode=sample --w -2", "w = -2"),
    ("-workdir={} -mode sample -w=-2", "w = -2"),
  ],
)
def test_both_spellings_of_an_option(spelling, said, workdir, tmp_path):
  """--name value is --name=value, and one dash is two, with a --config or without."""
  words = spelling.format(workdir).split()
  code, _, stderr = command(*words, config=None, cwd=tmp_path)
  assert code == 1 and said in stderr and "Traceback" not in stderr


def test_the_work_directory_is_in_the_home_folder(tmp_path):
  """~ in --workdir=~/..., which no shell expands; nothing is made of that name."""
  code, _, stderr = command(
    "--workdir=~/runs/x", "--mode=sample", cwd=tmp_path, HOME=str(tmp_path / "home")
  )
  assert code == 1 and f"no work directory '{tmp_path}/home/runs/x'" in stderr
  assert not list(tmp_path.iterdir())


def test_the_default_work_directory_has_the_configs_name(tmp_path):
  """Without the option behind the colon."""
  code, _, stderr = command("--mode=sample", config="imagenet64.py:p_uncond=0.2", cwd=tmp_path)
  assert code == 1 and "no work directory 'runs/imagenet64'" in stderr


def test_help_lists_the_options():
  """--help names every option of ours."""
  _, stdout, _ = command("--help")
  for name in (
    "--config",
    "--mode",
    "--workdir",
    "--label",
    "--num",
    "--w",
    "--scale",
    "--seed",
    "--ema",
    "--out",
  ):
    assert f"{name}:" in stdout


@pytest.mark.smoke
def test_metrics_log_drops_what_will_come_again(tmp_path):
  """Resumed at step 4, records after it and a line that a kill cut short are dropped."""
  (tmp_path / "metrics.jsonl").write_text(
    '{"step": 2, "loss": 1}\n{"step": 4, "loss": 2}\n{"step": 6, "loss": 3}\n{"step": 8, "lo'
  )
  with logs.MetricsLog(tmp_path, step=4) as log:
    log.scalars(6, {"loss": 5.0})
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert lines == ['{"step": 2, "loss": 1}', '{"step": 4, "loss": 2}', '{"step": 6, "loss": 5.0}']
