#!/usr/bin/env bash
# Train and sweep on this machine: N processes that share its GPUs. N is 1 unless processes of their
# own are wanted: one process uses all devices.
#
#   launch/local.sh N CONFIG WORKDIR [--config.field=value ...]
#   launch/local.sh 1 configs/imagenet64.py runs/imagenet64 --config.data.path=/data/imagenet64
#
# Process i logs to WORKDIR/log.<i>.txt, and process 0 to the screen as well. Ctrl-C, or kill of the
# process in WORKDIR/pid: all are asked to save and stop. (If WORKDIR is gs://bucket/name, these files
# are in the folder `name` of this machine.) The same command again goes on. The exit code is that of
# the first process to fail; the others then have PATIENCE seconds (150) to notice and end.
#
# Makes .venv beside launch/ if there is none, with the extra `cuda` where there is an NVIDIA card,
# `tpu` where there is a TPU (EXTRA=cuda|tpu|none chooses). PYTHON=... is used as it is instead.
# Relative paths are those of the folder that it is called from; a config that is not there is cfg's
# own. DRY_RUN=1 prints what would be done and does nothing.
set -euo pipefail

if [ $# -lt 3 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
count=$1 config=$2 workdir=${3/#\~\//$HOME/}
shift 3

fail() {
  echo "error: $1" >&2
  exit 1
}

run() {
  printf '+ '; printf '%q ' "$@"; echo
  if [ -z "${DRY_RUN:-}" ]; then "$@"; fi
}

# where the logs are
here=$workdir
case $workdir in
  gs://?*/?*) here=$(basename "$workdir") ;;
  *://*) fail "WORKDIR is '$workdir': it must be gs://bucket/folder, or a path of this machine; mount other buckets and give the folder" ;;
esac

# --- the GPUs of each process

if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
  IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
elif command -v nvidia-smi >/dev/null; then
  read -ra gpus <<<"$(nvidia-smi --query-gpu=index --format=csv,noheader | grep -E '^[0-9]+$' | tr '\n' ' ')"
else
  gpus=()
fi
share=$((${#gpus[@]} / count))
# jax wants as many devices in each process
[ $((share * count)) -eq ${#gpus[@]} ] || fail "$count processes cannot share ${#gpus[@]} GPUs evenly"

# --- Python

python=${PYTHON:-$root/.venv/bin/python}
if [ -z "${PYTHON:-}" ]; then
  extra=${EXTRA:-}
  if [ -z "$extra" ]; then
    extra=none
    if [ ${#gpus[@]} -gt 0 ]; then extra=cuda; fi
    if [ -e /dev/accel0 ] || [ -e /dev/vfio/0 ]; then extra=tpu; fi
  fi
  extras=()
  if [ "$extra" != none ]; then extras+=("$extra"); fi
  if [ "$here" != "$workdir" ]; then extras+=(gcs); fi
  target=$root
  if [ ${#extras[@]} -gt 0 ]; then target="${root}[$(IFS=,; echo "${extras[*]}")]"; fi
  if [ ! -x "$python" ]; then run python3 -m venv "$root/.venv"; fi
  run "$python" -m pip install -q -e "$target"
fi

# --- the processes

pid_file=$here/pid
if [ -e "$pid_file" ] && ps -o args= -p "$(cat "$pid_file")" | grep -q local.sh; then
  fail "$here has the logs of process $(cat "$pid_file"), which runs: stop it with kill"
fi
command=("$python" -m cfg.main "--config=$config" "--workdir=$workdir")
together=()
if [ "$count" -gt 1 ]; then
  command+=(--distributed)
  # below the range that systems give out by themselves; taken if somebody answers
  port=$((20000 + RANDOM % 10000))
  while (: </dev/tcp/127.0.0.1/$port) 2>/dev/null; do port=$((port + 1)); done
  together=("JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$count")
fi
command+=("$@")

# the variables of process $1, into `own`
variables() {
  own=()
  if [ "$count" -gt 1 ]; then
    own=("${together[@]}" "JAX_PROCESS_ID=$1")
    if [ "$share" -gt 0 ]; then
      mine=$(IFS=,; echo "${gpus[*]:$(($1 * share)):share}")
      own+=("CUDA_VISIBLE_DEVICES=$mine")
    fi
  fi
}

run mkdir -p "$here"
for ((i = 0; i < count; i++)); do
  variables "$i"
  printf '+ '; printf '%q ' env ${own[@]+"${own[@]}"} "${command[@]}"; printf '>> %q\n' "$here/log.$i.txt"
done
if [ -n "${DRY_RUN:-}" ]; then exit; fi

# shellcheck disable=SC2329 # the trap calls it
ask() {
  echo "asked to stop: all $count processes save and end" >&2
  for pid in "${running[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
}

echo $$ >"$pid_file"
trap 'rm -f "$pid_file"' EXIT
# what process 0 says goes to the screen too, and Ctrl-C is not for tee
exec 3> >(trap '' INT TERM HUP; exec tee -a "$here/log.0.txt")
screen=$!
running=()
trap ask INT TERM HUP
set -m # each in a process group of its own: Ctrl-C comes here alone, and is handed on once
for ((i = 0; i < count; i++)); do
  variables "$i"
  if [ "$i" -eq 0 ]; then
    env ${own[@]+"${own[@]}"} "${command[@]}" >&3 2>&1 3>&- </dev/null &
  else
    env ${own[@]+"${own[@]}"} "${command[@]}" >>"$here/log.$i.txt" 2>&1 3>&- </dev/null &
  fi
  running+=($!)
done
set +m
exec 3>&-
groups=("${running[@]}")

# --- until all have ended

code=0 deadline=
while [ ${#running[@]} -gt 0 ]; do
  left=()
  for pid in "${running[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      left+=("$pid")
      continue
    fi
    ended=0
    wait "$pid" 2>/dev/null || ended=$?
    if [ "$code" -eq 0 ] && [ "$ended" -ne 0 ]; then
      code=$ended deadline=$((SECONDS + ${PATIENCE:-150}))
    fi
  done
  running=(${left[@]+"${left[@]}"})
  if [ -n "$deadline" ] && [ $SECONDS -ge "$deadline" ] && [ ${#running[@]} -gt 0 ]; then
    echo "${#running[@]} processes have not ended since one did with exit code $code: they are killed" >&2
    deadline=
    for pid in "${running[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
  fi
  sleep 0.3 || true # Ctrl-C ends it
done
# what they started, such as processes that decode images
for pid in "${groups[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
wait "$screen" || true
exit "$code"
