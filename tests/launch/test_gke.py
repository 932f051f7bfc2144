"""launch/gke.yaml: a JobSet that JobSet and Kubernetes accept, in which the processes find each
other, on TPUs and, with the change that it names, on GPUs.
"""

import math
import re

import pytest
import test_docs
import yaml
from jax._src import clusters
from jax._src.clusters import cloud_tpu_cluster
from stand_ins import LAUNCH

TEXT = (LAUNCH / "gke.yaml").read_text()
KINDS = ("tpu", "gpu")


def jobset(kind):
  """The object, as it stands or changed for GPUs as its first lines say."""
  text = TEXT
  if kind == "gpu":
    text = re.sub(r".*# tpu\n", "", text).replace("#gpu ", "")
  return yaml.safe_load(text)


def job(kind):
  """The Job of its one replicated job."""
  (replicated,) = jobset(kind)["spec"]["replicatedJobs"]
  assert replicated["replicas"] == 1
  return replicated["template"]["spec"]


def container(kind):
  """The container that trains."""
  (found,) = job(kind)["template"]["spec"]["containers"]
  return found


@pytest.mark.parametrize("kind", KINDS)
def test_fields(kind):
  """No field but those of the JobSet, Job and Pod that are meant, at their places."""
  top = jobset(kind)
  assert (top["apiVersion"], top["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  assert top.keys() == {"apiVersion", "kind", "metadata", "spec"}
  assert top["spec"].keys() == {"failurePolicy", "replicatedJobs"}
  counts = {"completions", "parallelism", "completionMode", "backoffLimit", "podFailurePolicy"}
  assert job(kind).keys() == counts | {"template"}
  pod = {"restartPolicy", "terminationGracePeriodSeconds", "nodeSelector", "volumes"}
  assert job(kind)["template"]["spec"].keys() == pod | {"initContainers", "containers"}
  fields = {"name", "image", "command", "args", "volumeMounts", "ports", "resources"}
  assert container(kind).keys() - {"env"} == fields
  volumes = {volume["name"] for volume in job(kind)["template"]["spec"]["volumes"]}
  for each in [container(kind), *job(kind)["template"]["spec"]["initContainers"]]:
    assert {mount["name"] for mount in each["volumeMounts"]} <= volumes


@pytest.mark.parametrize("kind", KINDS)
def test_which_ends_start_again(kind):
  """Not 1, 2 and 70; any other end of one pod starts all of them again."""
  policy = jobset(kind)["spec"]["failurePolicy"]
  assert policy["maxRestarts"] >= 20
  assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
  (rule,) = job(kind)["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob"
  exits = {"containerName": container(kind)["name"], "operator": "In", "values": [1, 2, 70]}
  assert rule["onExitCodes"] == exits
  # what a podFailurePolicy asks for; and no pod is started again alone
  assert (
    job(kind)["template"]["spec"]["restartPolicy"] == "Never" and job(kind)["backoffLimit"] == 0
  )
  assert job(kind)["template"]["spec"]["terminationGracePeriodSeconds"] >= 150


# of config_flags, which loads the config files
@pytest.mark.filterwarnings("ignore:the load_module")
@pytest.mark.parametrize("kind", KINDS)
def test_the_command_is_one_of_cfg_main(kind, monkeypatch):
  """Its flags, config and fields exist."""
  monkeypatch.chdir(LAUNCH.parent)
  command = [*container(kind)["command"], *container(kind)["args"]]
  assert command[:4] == ["python", "-m", "cfg.main", "--distributed"]
  assert not test_docs.program_problems(command)


def test_the_slice_is_whole():
  """The topology has as many chips as the pods ask for together, one pod a machine."""
  selector = job("tpu")["template"]["spec"]["nodeSelector"]
  shape = map(int, selector["cloud.google.com/gke-tpu-topology"].split("x"))
  resources = container("tpu")["resources"]
  assert resources["requests"] == resources["limits"]
  assert job("tpu")["completions"] == job("tpu")["parallelism"]
  assert resources["limits"]["google.com/tpu"] * job("tpu")["completions"] == math.prod(shape)


def host(kind, i):
  """The name that JobSet and an indexed Job give pod i."""
  name = jobset(kind)["metadata"]["name"]
  (replicated,) = jobset(kind)["spec"]["replicatedJobs"]
  return f"{name}-{replicated['name']}-0-{i}.{name}"


def test_tpu_processes_find_each_other(monkeypatch):
  """By what GKE sets for the pods of an indexed Job that ask for TPUs."""
  assert job("tpu")["completionMode"] == "Indexed"
  count = job("tpu")["completions"]
  monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
  monkeypatch.setattr(cloud_tpu_cluster.socket, "gethostbyname", lambda name: "10.0.0.1")
  monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.2")
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", ",".join(host("tpu", i) for i in range(count)))
  monkeypatch.setenv("TPU_WORKER_ID", "3")
  monkeypatch.setenv("MEGASCALE_NUM_SLICES", "")
  monkeypatch.setenv("MEGASCALE_SLICE_ID", "")
  monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "")
  found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 1)
  address = f"{host('tpu', 0)}:{cloud_tpu_cluster.coordinator_port}"
  assert found[:3] == (address, count, 3)
  ports = {port["containerPort"] for port in container("tpu")["ports"]}
  assert int(cloud_tpu_cluster.coordinator_port) in ports


def test_gpu_processes_find_each_other():
  """By the three variables: the first pod's address, how many there are, and each one's number."""
  env = {entry["name"]: entry for entry in container("gpu")["env"]}
  address = env["JAX_COORDINATOR_ADDRESS"]["value"]
  assert address == f"{host('gpu', 0)}:{container('gpu')['ports'][0]['containerPort']}"
  assert env["JAX_NUM_PROCESSES"]["value"] == str(job("gpu")["completions"])
  number = env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
  assert number == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  assert "tpu" not in str(jobset("gpu")).lower()
  assert container("gpu")["resources"]["limits"].keys() == {"nvidia.com/gpu"}


def test_what_to_edit_is_marked():
  """Every line with a name that only the user knows has the mark EDIT."""
  for line in TEXT.splitlines():
    if re.search(r"\bBUCKET\b|\bIMAGE\b", line) and "EDIT marks" not in line:
      assert line.endswith("# EDIT"), line
