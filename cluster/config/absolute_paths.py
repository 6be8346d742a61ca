"""Which places of a config a job can reach: it has its own working directory, on a node that may be another machine.

The places are found by their types (data_pipeline.storage.places), so that a new one needs no line here.
"""

from __future__ import annotations

from cluster.config.fields import map_places
from cluster.config.run import RunConfig
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.storage.places import EMBEDDED


def _is_local(place: str) -> bool:
    return not (place.startswith(EMBEDDED) or storage.is_remote(place))


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The config with paths that mean on this machine what they mean in this working directory."""
    return map_places(config, lambda _, place: storage.absolute(place) if _is_local(place) else place)


def require_reachable(config: RunConfig) -> None:
    """Make sure that no path depends on the working directory, which a job on another machine does not share.

    Raises:
        UsageError: if one does; it names the key.
    """

    def check(name: str, place: str) -> str:
        if _is_local(place) and not storage.local_path(place).is_absolute():
            raise UsageError(
                f"{name}: {place} is a relative path, which a job on another machine cannot find; give a URI (s3://…), "
                "or an absolute path that every node has"
            )
        return place

    map_places(config, check)
