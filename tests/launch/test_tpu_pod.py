"""launch/tpu_pod.sh against a stand-in for gcloud whose workers are folders: each command runs in
them as a worker would run it.
"""

import os
import shutil
import subprocess
import time

import pytest
import stand_ins
from stand_ins import LAUNCH

WORKERS = 2
# $CLOUD/queued and $CLOUD/node are the states of the queued resource and the slice; without the
# first there is none, and ERROR is one that cannot be had, once
GCLOUD = """
cd "$CLOUD"
printf '%s|' "$@" >> calls; echo >> calls
worker=all
for word in "$@"; do
  case $word in
    --command=*) command=${word#--command=} ;;
    --worker=*) worker=${word#--worker=} ;;
  esac
done
case "$3 $4" in
  "queued-resources describe")
    if [ ! -e queued ]; then echo "ERROR: NOT_FOUND: no such thing" >&2; exit 1; fi
    if [ "$(cat queued)" = ERROR ]; then
      echo ACTIVE > queued; echo "ERROR: no network" >&2; exit 1
    fi
    cat queued
    ;;
  "tpu-vm describe") cat node ;;
  "queued-resources create")
    echo "${MADE:-ACTIVE}" > queued; echo READY > node; echo >> slices
    ;;
  "queued-resources delete")
    # a machine that goes away takes what runs with it, before its disk
    cat worker*/runner 2>/dev/null | xargs -r kill -KILL 2>/dev/null
    rm -rf queued node worker*
    exit ${LOST:-0}
    ;;
  "tpu-vm scp") for i in $ALL; do mkdir -p worker$i; cp "$5" worker$i/cfg.tar.gz; done ;;
  "tpu-vm ssh")
    [ "$worker" = all ] && worker=$ALL
    for i in $worker; do
      mkdir -p worker$i/.local/bin && cp uv worker$i/.local/bin
      (cd worker$i && HOME=$PWD bash -c "$command") || failed=1
    done
    exit ${failed:-0}
    ;;
esac
"""
UV = """
if [ "$1" = venv ]; then mkdir -p .venv/bin && cp "$CLOUD/python" .venv/bin; fi
"""
# the n-th run on worker i does what line n of $CLOUD/ends.<i> says
PYTHON = """
i=$(basename "$HOME")
(IFS='|'; echo "$*" >> "$CLOUD/runs.$i")
end=$(sed -n "$(wc -l < "$CLOUD/runs.$i")p" "$CLOUD/ends.$i" 2>/dev/null)
echo "run on $i"
case ${end:-0} in
  hold)
    trap 'exit 75' TERM
    echo $PPID > "$HOME/runner"
    mine=$(wc -l < "$CLOUD/slices")
    while [ -e "$CLOUD/node" ] && [ "$(wc -l < "$CLOUD/slices")" = "$mine" ]; do sleep 0.05; done
    exit 143
    ;;
  queued:*) echo "${end#*:}" > "$CLOUD/queued"; exit 143 ;;
  node:*) echo "${end#*:}" > "$CLOUD/node"; exit 143 ;;
  reboot) kill -KILL $PPID; exit 1 ;;
  *) exit "$end" ;;
esac
"""


class Cloud:
  """A checkout with the script, and what stands for Google Cloud."""

  def __init__(self, folder):
    self.folder = folder / "cloud"
    self.checkout = folder / "checkout"
    tools = folder / "tools"
    stand_ins.put(tools, "gcloud", GCLOUD)
    stand_ins.put(tools, "python3", "true")
    stand_ins.put(self.folder, "uv", UV)
    stand_ins.put(self.folder, "python", PYTHON)
    (self.checkout / "launch").mkdir(parents=True)
    shutil.copy(LAUNCH / "tpu_pod.sh", self.checkout / "launch")
    self.commit("first")
    self.env = stand_ins.environment(
      tools,
      CLOUD=str(self.folder),
      ALL=" ".join(map(str, range(WORKERS))),
      POLL="0.1",
      TMPDIR=str(folder),
    )

  def commit(self, text):
    """A commit with a file in cfg/ that has this name."""
    shutil.rmtree(self.checkout / "cfg", ignore_errors=True)
    (self.checkout / "cfg").mkdir()
    (self.checkout / "cfg" / text).write_text(text)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(self.checkout)]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", text]):
      subprocess.run([*git, *words], check=True)

  def ends(self, *ends, worker=None):
    """How the runs end, one after the other, on one worker or all."""
    for i in range(WORKERS) if worker is None else [worker]:
      (self.folder / f"ends.worker{i}").write_text("".join(f"{end}\n" for end in ends))

  def there_is_a_slice(self):
    """One that is ready."""
    (self.folder / "queued").write_text("ACTIVE\n")
    (self.folder / "node").write_text("READY\n")
    (self.folder / "slices").write_text("")

  def start(self, action, *words, **variables):
    """The script, running."""
    script = self.checkout / "launch/tpu_pod.sh"
    words = [action, "my-slice", "my-zone", *words]
    return stand_ins.start(script, *words, cwd=self.folder, env={**self.env, **variables})

  def run(self, action, *words, **variables):
    """The script, to its end."""
    script = self.checkout / "launch/tpu_pod.sh"
    words = [action, "my-slice", "my-zone", *words]
    return stand_ins.run(script, *words, cwd=self.folder, env={**self.env, **variables})

  def watch(self, **variables):
    """The verb watch, to its end."""
    return self.run("watch", *WATCHED, **variables)

  def calls(self, what):
    """The calls of gcloud that begin with compute tpus `what`."""
    path = self.folder / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if line.replace("|", " ").startswith(f"compute tpus {what} ")]

  def looks_after_start(self):
    """How often the first start has been followed by a look at what became of it."""
    ssh = self.calls("tpu-vm ssh")
    starts = [i for i, line in enumerate(ssh) if "nohup" in line]
    return len(ssh) - 1 - starts[0] if starts else 0

  def runs(self, worker=0):
    """The arguments of each run on a worker."""
    path = self.folder / f"runs.worker{worker}"
    return path.read_text().splitlines() if path.exists() else []

  def exit_code(self, worker):
    """The exit code that a worker has noted, if it has, as text."""
    path = self.folder / f"worker{worker}/cfg.exit"
    return path.read_text() if path.exists() else ""


WATCHED = ["v4-32", "configs/imagenet64.py", "/share/run", "--out=a b"]
COMMAND = "|".join(
  [
    "-m",
    "cfg.main",
    "--distributed",
    "--config=configs/imagenet64.py",
    "--workdir=/share/run",
    "--out=a b",
  ]
)


@pytest.fixture
def cloud(tmp_path):
  """No slice yet, and none when the test is over."""
  cloud = Cloud(tmp_path)
  yield cloud
  (cloud.folder / "node").unlink(missing_ok=True)


def wait_for(there, seconds=60):
  """Until `there()`."""
  end = time.monotonic() + seconds
  while not there():
    assert time.monotonic() < end, "it does not come"
    time.sleep(0.05)


def test_watch_until_it_is_done(cloud):
  """A slice is queued for; what was killed or saved is started again with the same command and
  commit, and what is done is not.
  """
  cloud.ends(137, 75, "reboot", 0, worker=0)
  cloud.ends(69, 75, 69, 0, worker=1)
  done = cloud.watch(SPOT="1", PREPARE="echo prepared >> ~/prepared")
  assert done.returncode == 0, done.stdout + done.stderr
  (create,) = cloud.calls("queued-resources create")
  assert "|--spot|" in create and "--accelerator-type=v4-32" in create
  assert "--runtime-version=tpu-ubuntu2204-base" in create and "--node-id=my-slice" in create
  assert all(cloud.runs(i) == [COMMAND] * 4 for i in range(WORKERS))
  worker = cloud.folder / "worker1"
  assert (worker / "cfg-code/cfg/first").exists()
  assert (worker / "prepared").read_text() == "prepared\n" * 4
  assert (worker / "cfg.log").read_text() == "run on worker1\n" * 4
  assert not cloud.calls("queued-resources delete")


@pytest.mark.parametrize("code", [1, 2, 70])
def test_watch_stops_where_starting_again_does_not_help(cloud, code):
  """Even if it was one worker alone that said why."""
  cloud.ends(69, worker=0)
  cloud.ends(code, worker=1)
  done = cloud.watch()
  assert done.returncode == code and f"exit code {code}" in done.stderr
  assert len(cloud.runs()) == 1


@pytest.mark.parametrize(
  "event", ["queued:SUSPENDED", "queued:FAILED", "node:PREEMPTED", "node:TERMINATED"]
)
def test_watch_makes_the_slice_again(cloud, event):
  """When it was taken away: the old request is deleted, and the run starts on empty disks."""
  cloud.ends(event, 0)
  done = cloud.watch()
  assert done.returncode == 0, done.stdout + done.stderr
  assert len(cloud.calls("queued-resources create")) == 2
  (delete,) = cloud.calls("queued-resources delete")
  assert "|--force|" in delete and "|--quiet|" in delete
  assert cloud.runs() == [COMMAND] * 2
  assert (cloud.folder / "worker0/cfg.log").read_text() == "run on worker0\n"


def test_watch_makes_the_slice_again_even_if_deleting_it_failed(cloud):
  """The answer can be lost where the deed is not."""
  cloud.ends("queued:SUSPENDED", 0)
  done = cloud.watch(LOST="1")
  assert done.returncode == 0, done.stdout + done.stderr
  assert len(cloud.calls("queued-resources create")) == 2


def test_watch_goes_on_with_its_commit(cloud):
  """Commits that come later do not change a run; a later command takes them, and nothing is left of
  the old ones.
  """
  cloud.ends("hold", 0, 0)
  process = cloud.start("watch", *WATCHED)
  wait_for(lambda: cloud.runs(1))
  cloud.commit("second")
  (cloud.folder / "queued").write_text("SUSPENDED\n")
  process.communicate(timeout=30)
  assert process.returncode == 0
  code = cloud.folder / "worker0/cfg-code/cfg"
  assert [path.name for path in code.iterdir()] == ["first"]
  assert cloud.run("start", *WATCHED[1:]).returncode == 0
  assert [path.name for path in code.iterdir()] == ["second"]


def test_stop_stops_the_watch_too(cloud):
  """The run saves, and is not started again until it is asked for."""
  cloud.ends("hold", 0)
  process = cloud.start("watch", *WATCHED)
  wait_for(lambda: cloud.runs(1))
  assert cloud.run("stop").returncode == 0
  process.communicate(timeout=30)
  assert process.returncode == 75 and len(cloud.runs()) == 1
  assert cloud.watch().returncode == 0 and len(cloud.runs()) == 2


def test_down_stops_the_watch_too(cloud):
  """What its user deletes is not made again."""
  cloud.ends("hold")
  process = cloud.start("watch", *WATCHED)
  wait_for(lambda: cloud.looks_after_start())
  assert cloud.run("down").returncode == 0
  process.communicate(timeout=30)
  assert process.returncode == 75
  assert len(cloud.calls("queued-resources create")) == 1 and not (cloud.folder / "queued").exists()


def test_watch_gives_up(cloud):
  """When a run ends five times in a row soon after its start, or cannot be started."""
  cloud.ends(*[137] * 9)
  done = cloud.watch()
  assert done.returncode == 1 and "5 times in a row" in done.stderr and len(cloud.runs()) == 5
  (cloud.folder / "ends.worker0").unlink()
  assert cloud.watch(PREPARE="false").returncode == 1 and len(cloud.runs()) == 5


def test_a_run_that_is_there_is_left_alone(cloud):
  """watch goes on watching it; start refuses."""
  cloud.there_is_a_slice()
  cloud.ends("hold", worker=0)
  cloud.ends(0, worker=1)
  assert cloud.run("start", *WATCHED[1:]).returncode == 0
  done = cloud.run("start", *WATCHED[1:])
  assert done.returncode == 1 and "cfg: running as process" in done.stdout
  process = cloud.start("watch", *WATCHED)
  time.sleep(1)
  assert process.poll() is None and len(cloud.runs()) == 1
  cloud.run("stop")
  process.communicate(timeout=30)
  assert process.returncode == 75 and len(cloud.runs()) == 1


def test_an_error_of_gcloud_is_not_a_slice_that_is_gone(cloud):
  """It is asked again."""
  cloud.there_is_a_slice()
  (cloud.folder / "queued").write_text("ERROR\n")
  done = cloud.run("up", "v4-32")
  assert done.returncode == 0 and "no network" in done.stderr
  assert not cloud.calls("queued-resources create")


def test_up_fails_if_no_slice_can_be_had(cloud):
  """A request that fails at once would fail again."""
  done = cloud.run("up", "v6e-16", MADE="FAILED")
  assert done.returncode == 1 and "describe my-slice" in done.stderr
  (create,) = cloud.calls("queued-resources create")
  assert "--runtime-version=v2-alpha-tpuv6e" in create and "--spot" not in create


def test_why_the_workers_do_not_answer(cloud):
  """Is said at first, and not with each look; a slice that cannot be reached is looked at again."""
  cloud.there_is_a_slice()
  gcloud = cloud.folder.parent / "tools/gcloud"
  whole = gcloud.read_text()
  gcloud.write_text(
    whole.replace(
      '"tpu-vm ssh")', '"tpu-vm ssh") echo "no key" >&2; echo >> "$CLOUD/looks"; exit 255'
    )
  )
  process = cloud.start("watch", *WATCHED)
  looks = cloud.folder / "looks"
  wait_for(lambda: looks.exists() and looks.read_text().count("\n") > 5)
  process.terminate()
  out, err = process.communicate(timeout=30)
  assert out.count("do not answer") > 4 and err.count("no key") == 1


def test_more_words_for_gcloud(cloud):
  """Reach what they are for."""
  flags = {"CREATE_FLAGS": "--network=mine --internal-ips", "SSH_FLAGS": "--internal-ip"}
  cloud.ends(0)
  assert cloud.watch(**flags).returncode == 0
  (create,) = cloud.calls("queued-resources create")
  assert "|--network=mine|--internal-ips|" in create
  reached = [*cloud.calls("tpu-vm ssh"), *cloud.calls("tpu-vm scp")]
  assert all("|--internal-ip|" in call for call in reached) and len(reached) > 3


def test_status(cloud):
  """The slice, each worker's process or exit code, and its log's end."""
  done = cloud.run("status")
  assert done.returncode == 0 and done.stdout == "slice: NONE\n" and not cloud.calls("tpu-vm ssh")
  cloud.there_is_a_slice()
  done = cloud.run("status")
  assert done.returncode == 0
  assert done.stdout.splitlines()[-WORKERS:] == ["cfg: nothing was started"] * WORKERS
  cloud.ends("hold", worker=0)
  cloud.ends(70, worker=1)
  assert cloud.run("start", *WATCHED[1:]).returncode == 0
  wait_for(lambda: cloud.exit_code(1))
  said = cloud.run("status").stdout
  assert "slice: READY" in said and "cfg: ended with 70" in said and "run on worker0" in said
  pid = (cloud.folder / "worker0/cfg.pid").read_text().strip()
  assert f"cfg: running as process {pid}" in said
  os.kill(int(pid), 9)
  wait_for(lambda: cloud.exit_code(0))
  assert "cfg: ended with 137" in cloud.run("status").stdout


def test_unknown_actions(cloud):
  """Are told how it is used."""
  assert cloud.run("explode").returncode == 2
