#!/usr/bin/env bash
# Train and sweep on all the devices of this machine, in the background, and follow the log.
#
#   launch/single_host.sh CONFIG WORKDIR [--config.field=value ...]
#   launch/single_host.sh configs/imagenet64.py runs/imagenet64 --config.data.path=/data/imagenet64
#
# Makes .venv beside launch/ if there is none: with the extra `cuda` where there is an NVIDIA card, `tpu`
# where there is a TPU (EXTRA=cuda|tpu|none chooses). The run outlives this terminal; Ctrl-C stops
# following, not the run. The same command again continues a run that was stopped. Relative paths are
# those of the folder that it is called from; a config that is not there is cfg's own.
# DRY_RUN=1 prints what would be done and does nothing.
set -euo pipefail

if [ $# -lt 2 ]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
config=$1 workdir=${2/#\~\//$HOME/}
shift 2
case $workdir in
  *://*)
    echo "error: WORKDIR is '$workdir': it must be a path of this machine; mount the bucket and give the folder" >&2
    exit 1
    ;;
esac

run() {
  printf '+ '; printf '%q ' "$@"; echo
  if [ -z "${DRY_RUN:-}" ]; then "$@"; fi
}

extra=${EXTRA:-}
if [ -z "$extra" ]; then
  extra=none
  if command -v nvidia-smi >/dev/null; then extra=cuda; fi
  if [ -e /dev/accel0 ] || [ -e /dev/vfio/0 ]; then extra=tpu; fi
fi
target=$root
if [ "$extra" != none ]; then target="${root}[$extra]"; fi

if [ ! -x "$python" ]; then
  run python3 -m venv "$root/.venv"
fi
run "$python" -m pip install -q -e "$target"
run mkdir -p "$workdir"

pid_file=$workdir/pid
if [ -e "$pid_file" ] && kill -0 "$(cat "$pid_file")" 2>/dev/null; then
  echo "already running as process $(cat "$pid_file"): following its log; stop it with: kill $(cat "$pid_file")"
else
  command=("$python" -m cfg.main "--config=$config" "--workdir=$workdir" "$@")
  printf '+ nohup '; printf '%q ' "${command[@]}"; printf '>> %q 2>&1 &\n' "$workdir/log.txt"
  if [ -z "${DRY_RUN:-}" ]; then
    nohup "${command[@]}" >>"$workdir/log.txt" 2>&1 &
    echo $! >"$pid_file"
    echo "running as process $(cat "$pid_file"); it saves and stops on: kill $(cat "$pid_file")"
  fi
fi
if [ -z "${DRY_RUN:-}" ]; then
  exec tail -n +1 -F --pid="$(cat "$pid_file")" "$workdir/log.txt"
fi
