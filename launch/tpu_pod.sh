#!/usr/bin/env bash
# Run a config on a Google Cloud TPU slice, and keep it running until it is done.
#
#   launch/tpu_pod.sh watch  NAME ZONE TYPE CONFIG WORKDIR [--config.field=value ...]
#                                            # up and start; both again after a pre-emption
#   launch/tpu_pod.sh status NAME ZONE       # the slice, each worker's process or exit code, its log's end
#   launch/tpu_pod.sh logs   NAME ZONE       # follow the first worker's log
#   launch/tpu_pod.sh stop   NAME ZONE       # SIGTERM: the run saves, then ends, and so does watch
#   launch/tpu_pod.sh down   NAME ZONE       # delete the slice and all that is on its disks
#   launch/tpu_pod.sh up     NAME ZONE TYPE  # queue for a slice (v4-32, v5litepod-64, ...), wait for it
#   launch/tpu_pod.sh start  NAME ZONE CONFIG WORKDIR [--config.field=value ...]    # once
#
# WORKDIR is gs://bucket/folder, or a path of the workers, which they share if there are several (a
# mounted disk). Needs gcloud, logged in, with a project, and its key in ssh-agent. SPOT=1 queues for
# a slice that may be taken away. PREPARE='...' is a command that each worker runs before the run, in
# its folder: a new slice has empty disks, so it copies data. RUNTIME chooses the machine's image,
# POLL the seconds between two looks (60). CREATE_FLAGS and SSH_FLAGS are more words for gcloud's
# create, and for its ssh and scp (--internal-ips and --internal-ip, for example). DRY_RUN=1 prints
# the commands and runs none.
#
# watch ends with the run's exit code: 0, or one that starting again does not help (1, 2, 70); with 75
# after stop or down; with 1 if the run ended five times in a row within ten minutes of its start, or
# could not be started.
set -euo pipefail

usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
}

fail() {
  echo "error: $1" >&2
  exit 1
}

run() {
  printf '+ '; printf '%q ' "$@"; echo
  if [ -z "${DRY_RUN:-}" ]; then "$@"; fi
}

queued() { run gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"; }

tpu() { run gcloud compute tpus tpu-vm "$@"; }

# a worker that was taken away says no farewell: ssh asks whether it is there
alive=(-oServerAliveInterval=30 -oServerAliveCountMax=4)

# COMMAND on WORKER (all, or a number)
on() { tpu ssh "$name" --zone="$zone" --worker="$1" "${alive[@]/#/--ssh-flag=}" ${ssh_flags[@]+"${ssh_flags[@]}"} --command="$2"; }

# --- the slice

# a value of what gcloud says of `queued-resources` or `tpu-vm`: NONE without one, UNKNOWN on errors
described() {
  local errors value
  errors=$(mktemp)
  if ! value=$(gcloud compute tpus "$1" describe "$name" --zone="$zone" --format="value($2)" 2>"$errors"); then
    value=UNKNOWN
    if grep -qi 'not.found' "$errors"; then value=NONE; else cat "$errors" >&2; fi
  fi
  rm -f "$errors"
  echo "$value"
}

# READY, NONE, UNKNOWN, or in gcloud's words: WAITING_FOR_RESOURCES, SUSPENDED, PREEMPTED, ...
state() {
  local now
  if [ -n "${DRY_RUN:-}" ]; then
    echo NONE
    return
  fi
  now=$(described queued-resources state.state)
  if [ "$now" = ACTIVE ]; then
    now=$(described tpu-vm state)
    if [ "$now" = NONE ]; then now=SUSPENDED; fi
  fi
  echo "$now"
}

create() {
  local image=${RUNTIME:-}
  if [ -z "$image" ]; then
    case $type in
      v5litepod-*) image=v2-alpha-tpuv5-lite ;;
      v5p-*) image=v2-alpha-tpuv5 ;;
      v6e-*) image=v2-alpha-tpuv6e ;;
      *) image=tpu-ubuntu2204-base ;;
    esac
  fi
  queued create --node-id="$name" --accelerator-type="$type" --runtime-version="$image" ${SPOT:+--spot} \
    ${create_flags[@]+"${create_flags[@]}"}
}

# wait for the slice; make it if there is none, and again if it was taken away
up() {
  local now before='' mine=''
  while now=$(state) && [ "$now" != READY ]; do
    case $now in
      NONE)
        # who deletes it does not want it back
        if [ -n "$had" ]; then
          echo "the slice $name was deleted: it is not made again"
          exit 75
        fi
        if create; then had=1 mine=1; elif [ -z "$ready" ]; then exit 1; fi
        ;;
      SUSPENDED | FAILED | PREEMPTED | TERMINATED)
        if [ "$now" = FAILED ] && [ -n "$mine" ] && [ -z "$ready" ]; then
          fail "no slice: see gcloud compute tpus queued-resources describe $name --zone=$zone"
        fi
        echo "the slice is $now: it is made again"
        # before: what fails may have deleted it all the same
        had=''
        if queued delete --force --quiet; then continue; fi
        ;;
      "$before") ;;
      *) echo "waiting for the slice: it is $now" ;;
    esac
    before=$now
    if [ -n "${DRY_RUN:-}" ]; then return; fi
    sleep "$poll"
  done
  if [ -n "$before" ] || [ -z "$ready" ]; then echo "the slice $name is ready"; fi
  had=1 ready=1
}

# --- the run

check_workdir() {
  case $1 in
    gs://*) ;;
    *://*) fail "WORKDIR is '$1': it must be gs://bucket/folder, or a path of the workers; mount other buckets or disks (PREPARE) and give the folder" ;;
  esac
}

# what a worker says of its process, in lines of the form "cfg: ..."
# shellcheck disable=SC2016 # the worker's shell expands it
look='pid=$(cat ~/cfg.pid 2>/dev/null)
if [ -z "$pid" ]; then echo "cfg: nothing was started"
elif tr "\0" " " 2>/dev/null </proc/$pid/cmdline | grep -q cfg.main; then echo "cfg: running as process $pid"
elif [ -s ~/cfg.exit ]; then echo "cfg: ended with $(cat ~/cfg.exit)"
else echo "cfg: gone"
fi
if [ -e ~/cfg.stop ]; then echo "cfg: was asked to stop"; fi'

# start CONFIG WORKDIR [options]; returns 1 if a step fails
start() {
  local archive=${TMPDIR:-/tmp}/cfg-$name.tar.gz command runner
  command=$(printf '%q ' .venv/bin/python -m cfg.main --distributed "--config=$1" "--workdir=$2" "${@:3}")
  # its exit code stays in a file, for watch and status
  runner="$command & echo \$! > ~/cfg.pid; wait \$!; echo \$? > ~/cfg.exit"
  on all "! { $look; } | grep 'cfg: running'" &&
    run git archive --format=tar.gz --output="$archive" "$commit" &&
    tpu scp "$archive" "$name:cfg.tar.gz" --zone="$zone" --worker=all "${alive[@]/#/--scp-flag=}" ${ssh_flags[@]+"${ssh_flags[@]}"} &&
    run rm -f "$archive" &&
    # files of an older commit would stay; the image's own Python is older than cfg needs
    on all 'rm -rf cfg-code/cfg cfg-code/configs && mkdir -p cfg-code && tar -xzf cfg.tar.gz -C cfg-code && cd cfg-code && python3 -m pip install -q --user uv && ~/.local/bin/uv venv -q --allow-existing --python 3.12 .venv && ~/.local/bin/uv pip install -q -e ".[tpu,gcs]"' &&
    { [ -z "${PREPARE:-}" ] || on all "cd cfg-code && $PREPARE"; } &&
    on all "cd cfg-code && rm -f ~/cfg.pid ~/cfg.exit ~/cfg.stop && (nohup bash -c $(printf %q "$runner") >> ~/cfg.log 2>&1 </dev/null &) && timeout 60 bash -c 'until [ -s ~/cfg.pid ]; do sleep 0.1; done'"
}

# watch CONFIG WORKDIR [options]
watch() {
  local seen codes code errors silent=0 began=$SECONDS quick=0 first=1
  errors=$(mktemp)
  # shellcheck disable=SC2064 # it is gone when the trap runs
  trap "rm -f '$errors'" EXIT
  while true; do
    up
    if [ -n "${DRY_RUN:-}" ]; then
      start "$@"
      return
    fi
    # one that is being repaired does not answer; the next look tells what became of it
    if ! seen=$(gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all "${alive[@]/#/--ssh-flag=}" ${ssh_flags[@]+"${ssh_flags[@]}"} --command="$look" 2>"$errors" | grep '^cfg: '); then
      echo "the workers do not answer"
      # at first and now and then why: a key or a firewall does not mend itself
      if [ $((silent % 10)) -eq 0 ]; then tail -n 5 "$errors" >&2; fi
      silent=$((silent + 1))
      sleep "$poll"
      continue
    fi
    silent=0
    if grep -q 'cfg: running' <<<"$seen"; then
      first=''
      sleep "$poll"
      continue
    fi
    # how an earlier run ended does not matter to this one
    if [ -z "$first" ]; then
      codes=" $(sed -n 's/^cfg: ended with //p' <<<"$seen" | sort -nu | tr '\n' ' ')"
      if grep -q 'asked to stop' <<<"$seen"; then
        echo "it was asked to stop, and ended (exit codes:$codes)"
        exit 75
      fi
      for code in 1 2 70; do
        if [[ $codes == *" $code "* ]]; then
          echo "it ended with exit code $code, which starting again does not help: see $0 logs $name $zone" >&2
          exit "$code"
        fi
      done
      if ! grep -qv 'cfg: ended with 0$' <<<"$seen"; then
        echo "the run is done"
        exit 0
      fi
      echo "it ended (exit codes:$codes): it is started again"
      if [ $((SECONDS - began)) -gt 600 ]; then quick=0; fi
      quick=$((quick + 1))
    fi
    [ $quick -lt 5 ] || fail "it ended, or could not be started, $quick times in a row: see $0 logs $name $zone"
    if start "$@"; then
      first=''
    else
      first=1 quick=$((quick + 1))
    fi
    began=$SECONDS
    sleep "$poll"
  done
}

[ $# -ge 3 ] || usage
action=$1 name=$2 zone=$3 poll=${POLL:-60}
had='' ready='' # whether there is a slice, and was one to run on
shift 3
read -ra create_flags <<<"${CREATE_FLAGS:-}"
read -ra ssh_flags <<<"${SSH_FLAGS:-}"
cd "$(dirname "$0")/.."
# what is committed is what runs, and goes on when it is started again
commit=$(git rev-parse HEAD)

case $action in
  up)
    [ $# -eq 1 ] || usage
    type=$1
    up
    ;;
  start)
    [ $# -ge 2 ] || usage
    check_workdir "$2"
    start "$@" || exit 1
    [ -n "${DRY_RUN:-}" ] || echo "started on all workers; follow it with: $0 logs $name $zone"
    ;;
  watch)
    [ $# -ge 3 ] || usage
    check_workdir "$3"
    type=$1
    shift
    watch "$@"
    ;;
  status)
    now=$(state)
    echo "slice: $now"
    [ "$now" = READY ] || [ -n "${DRY_RUN:-}" ] || exit 0
    on all "$look; tail -n 3 ~/cfg.log 2>/dev/null || true"
    ;;
  logs) on 0 'tail -n +1 -F ~/cfg.log' ;;
  stop) on all "touch ~/cfg.stop; kill \"\$(cat ~/cfg.pid)\"" ;;
  down) queued delete --force --quiet ;;
  *) usage ;;
esac
