#!/usr/bin/env bash
# Run a config on a Google Cloud TPU slice: make or reuse it, copy the code, install, start, follow; delete.
#
#   launch/tpu_pod.sh up     NAME ZONE TYPE                 # make the slice, or reuse it: v4-32, v5litepod-64, ...
#   launch/tpu_pod.sh start  NAME ZONE CONFIG WORKDIR [--config.field=value ...]
#   launch/tpu_pod.sh logs   NAME ZONE                      # follow the first worker's log
#   launch/tpu_pod.sh stop   NAME ZONE                      # SIGTERM: the run saves, then ends
#   launch/tpu_pod.sh down   NAME ZONE                      # delete the slice and all that is on its disks
#
# WORKDIR is a path that all workers share (a mounted bucket or network disk) if the slice has
# several. Needs gcloud, logged in, with a project. RUNTIME chooses the machine's image, SPOT=1 a
# preemptible slice. DRY_RUN=1 prints the commands and runs none.
set -euo pipefail

usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
}

run() {
  printf '+ '; printf '%q ' "$@"; echo
  if [ -z "${DRY_RUN:-}" ]; then "$@"; fi
}

tpu() { run gcloud compute tpus tpu-vm "$@"; }

# COMMAND on WORKER (all, or a number)
on() { tpu ssh "$name" --zone="$zone" --worker="$1" --command="$2"; }

exists() {
  [ -z "${DRY_RUN:-}" ] && gcloud compute tpus tpu-vm describe "$name" --zone="$zone" >/dev/null 2>&1
}

[ $# -ge 3 ] || usage
action=$1 name=$2 zone=$3
shift 3
cd "$(dirname "$0")/.."

case $action in
  up)
    [ $# -eq 1 ] || usage
    if exists; then
      echo "the slice $name is there: it is reused"
    else
      tpu create "$name" --zone="$zone" --accelerator-type="$1" --version="${RUNTIME:-tpu-ubuntu2204-base}" ${SPOT:+--spot}
    fi
    ;;
  start)
    [ $# -ge 2 ] || usage
    config=$1 workdir=$2
    shift 2
    case $workdir in
      *://*)
        echo "error: WORKDIR is '$workdir': it must be a path of the workers; mount the bucket and give the folder" >&2
        exit 1
        ;;
    esac
    # what is committed is what runs
    archive=${TMPDIR:-/tmp}/cfg-$name.tar.gz
    run git archive --format=tar.gz --output="$archive" HEAD
    tpu scp "$archive" "$name:cfg.tar.gz" --zone="$zone" --worker=all
    run rm -f "$archive"
    on all 'mkdir -p cfg-code && tar -xzf cfg.tar.gz -C cfg-code && cd cfg-code && python3 -m venv .venv && .venv/bin/pip install -q -e ".[tpu]"'
    command=$(printf '%q ' .venv/bin/python -m cfg.main --distributed "--config=$config" "--workdir=$workdir" "$@")
    on all "cd cfg-code && (nohup $command >> ~/cfg.log 2>&1 & echo \$! > ~/cfg.pid)"
    [ -n "${DRY_RUN:-}" ] || echo "started on all workers; follow it with: $0 logs $name $zone"
    ;;
  logs) on 0 'tail -n +1 -F ~/cfg.log' ;;
  stop) on all "kill \"\$(cat ~/cfg.pid)\"" ;;
  down) tpu delete "$name" --zone="$zone" --quiet ;;
  *) usage ;;
esac
