"""What Kubernetes would say of documents: Kubeflow Trainer's own models, JobSet's, and the schemas of core kinds."""

from collections.abc import Iterator
from typing import Any

import kubernetes_validate
from kubeflow_trainer_api import models

KUBERNETES = "1.33"
MODELS = {
    "TrainJob": models.TrainerV1alpha1TrainJob,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
    "JobSet": models.JobsetV1alpha2JobSet,
}


def job_set_spec(document: dict[str, Any]) -> dict[str, Any]:
    """JobSet's specification in a JobSet or in a runtime."""
    spec: dict[str, Any] = document["spec"]
    return spec["template"]["spec"] if document["kind"] == "TrainingRuntime" else spec


def pod_template(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (replicated_job,) = job_set_spec(documents[0])["replicatedJobs"]
    template: dict[str, Any] = replicated_job["template"]["spec"]["template"]
    return template


def validate(documents: list[dict[str, Any]]) -> None:
    """Raise an error for a field that is unknown, missing, or of another type."""
    for document in documents:
        model = MODELS[document["kind"]].from_dict(document)
        assert model is not None
        dropped = list(differences(document, model.to_dict()))
        if dropped:  # the models say nothing of what they do not know
            raise ValueError(f"{document['kind']}: {dropped}")
        if document["kind"] == "TrainJob":
            continue
        (replicated_job,) = job_set_spec(document)["replicatedJobs"]
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}, **replicated_job["template"]}
        kubernetes_validate.validate({**job, "metadata": {"name": "node"}}, KUBERNETES, strict=True)
        pod = {"apiVersion": "v1", "kind": "Pod", **pod_template(documents)}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def differences(given: Any, back: Any, path: str = "") -> Iterator[str]:
    """Paths at which two documents differ."""
    if isinstance(given, dict) and isinstance(back, dict):
        for key in given.keys() | back.keys():
            yield from differences(given.get(key), back.get(key), f"{path}.{key}")
    elif isinstance(given, list) and isinstance(back, list) and len(given) == len(back):
        for number, (one, other) in enumerate(zip(given, back, strict=True)):
            yield from differences(one, other, f"{path}[{number}]")
    elif given != back:
        yield f"{path}: {given!r} became {back!r}"


def expanded(text: str, variables: dict[str, str]) -> str:
    """Text of a command, an argument or a variable as the kubelet hands it on, by the documented rules.

    ``$(NAME)`` is the variable if there is one, else it stays; ``$$`` is ``$``; any other ``$`` stays.
    """
    result, position = [], 0
    while position < len(text):
        character, following = text[position], text[position + 1 : position + 2]
        end = text.find(")", position)
        if character == "$" and following == "$":
            result.append("$")
            position += 2
        elif character == "$" and following == "(" and end != -1:
            name = text[position + 2 : end]
            result.append(variables.get(name, f"$({name})"))
            position = end + 1
        else:
            result.append(character)
            position += 1
    return "".join(result)
