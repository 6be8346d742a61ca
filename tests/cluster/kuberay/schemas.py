"""What judges manifests: KubeRay's own CRDs and Kubernetes' own Pod, as strict JSON Schemas."""

from __future__ import annotations

import functools
import json
import lzma
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

_DATA = Path(__file__).parent / "data"
_PLURALS = {"RayJob": "rayjobs", "RayCluster": "rayclusters"}


def faults(manifest: dict[str, Any]) -> list[str]:
    """What the CRD of a manifest's kind finds wrong in it, unknown fields among it."""
    return _listed(_crd(manifest["kind"]), manifest)


def pod_faults(template: dict[str, Any]) -> list[str]:
    """What Kubernetes' schema of a Pod finds wrong in a pod template."""
    return _listed(_pod(), {"apiVersion": "v1", "kind": "Pod"} | template)


def _listed(validator: Draft202012Validator, document: Any) -> list[str]:
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(document)]


@functools.cache
def _crd(kind: str) -> Draft202012Validator:
    text = lzma.decompress((_DATA / f"ray.io_{_PLURALS[kind]}.yaml.xz").read_bytes())
    crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [each for each in crd["spec"]["versions"] if each["name"] == "v1"]
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["apiVersion"] = {"const": "ray.io/v1"}
    schema["properties"]["kind"] = {"const": kind}
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return Draft202012Validator(schema)


def _strict(schema: Any) -> Any:
    """A CRD's schema as `kubectl --validate=strict` reads it: what it does not name is an error."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _strict(value) for key, value in schema.items()}
    if found.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    named = isinstance(found.get("properties"), dict) and not found.get("x-kubernetes-preserve-unknown-fields")
    if named and "additionalProperties" not in found:
        found["additionalProperties"] = False
    return found


@functools.cache
def _pod() -> Draft202012Validator:
    return Draft202012Validator(json.loads(lzma.decompress((_DATA / "pod-v1.json.xz").read_bytes())))
