"""docs/recipes/jobset.yaml, against the models of the JobSet API and leapjax's own flags."""

import argparse
from pathlib import Path

import pytest
import yaml

from leapjax.cli import decode_arguments

RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "jobset.yaml"


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load(RECIPE.read_text())


def job(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container(jobset):
    (found,) = job(jobset)["template"]["spec"]["containers"]
    return found


def known(value):
    """What the models of the API make of a JobSet: keys that they lack are left out."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="no kubeflow-trainer-api")
    return models.JobsetV1alpha2JobSet.from_dict(value).to_dict()


def test_every_key_is_one_of_the_api(jobset):
    assert known(jobset) == jobset


@pytest.mark.parametrize("key", ["spec", "job", "pod", "container"])
def test_a_wrong_key_is_noticed(jobset, key):
    changed = yaml.safe_load(RECIPE.read_text())
    at = {
        "spec": changed["spec"],
        "job": job(changed),
        "pod": job(changed)["template"]["spec"],
        "container": container(changed),
    }
    at[key]["restartPolice"] = "Never"
    assert known(changed) == jobset


def test_a_wrong_type_is_noticed(jobset):
    changed = yaml.safe_load(RECIPE.read_text())
    job(changed)["backoffLimit"] = "six"
    pydantic = pytest.importorskip("pydantic", reason="no kubeflow-trainer-api")
    with pytest.raises(pydantic.ValidationError, match="backoff"):
        known(changed)


def test_the_command_is_one_that_leapjax_takes(jobset):
    """Also with the flags that are commented out."""
    words = container(jobset)["command"]
    assert words[:2] == ["leapjax", "decode"]
    more = [x.split("# - ")[1] for x in RECIPE.read_text().splitlines() if "# - --" in x]
    assert len(more) == 3
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    decode_arguments.add_arguments(parser)
    args = parser.parse_args([*words[2:], *more])
    assert args.resume and args.output == "gs://my-bucket/answers" and args.no_compile


def test_spot_machines_are_handled(jobset):
    """A preempted pod is replaced without end, an input error ends the job, and a save has time."""
    rules = job(jobset)["podFailurePolicy"]["rules"]
    codes = {tuple(r["onExitCodes"]["values"]): r["action"] for r in rules if "onExitCodes" in r}
    assert codes == {(2,): "FailJob", (143,): "Ignore"}
    names = {r["onExitCodes"]["containerName"] for r in rules if "onExitCodes" in r}
    assert names == {container(jobset)["name"]}
    (gone,) = [r for r in rules if "onPodConditions" in r]
    assert gone["action"] == "Ignore"
    assert gone["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    pod = job(jobset)["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # or the API refuses a podFailurePolicy
    assert pod["terminationGracePeriodSeconds"] > 15  # until a process ends that is compiling
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_a_pod_has_the_chips_of_its_mesh(jobset):
    from leapjax.sharding import parse

    (mesh,) = [w.split("=", 1)[1] for w in container(jobset)["command"] if w.startswith("--mesh=")]
    chips = container(jobset)["resources"]["limits"]["google.com/tpu"]
    shape = job(jobset)["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert parse(mesh).devices == chips == eval(shape.replace("x", "*"))
    own = {one["name"]: one["value"] for one in container(jobset)["env"]}
    assert len(own["TPU_VISIBLE_CHIPS"].split(",")) == chips
