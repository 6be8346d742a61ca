"""Which paths of a config a job can reach: it has its own working directory, on a node that may be another machine."""

from __future__ import annotations

from collections.abc import Callable

from cluster.config import RunConfig
from data_pipeline import storage
from data_pipeline.errors import UsageError

_SOURCE_PATHS = ("images", "labels", "path")


def _map_paths(config: RunConfig, change: Callable[[str, str], str]) -> RunConfig:
    """The config with `change(dotted name, path)` in place of each path; embedded files are left alone."""
    source = config.data.source
    paths = {name: getattr(source, name) for name in _SOURCE_PATHS if hasattr(source, name)}
    changed = {
        name: change(f"data.source.{name}", path) for name, path in paths.items() if not path.startswith("embedded:")
    }
    images, tokens = config.data.images, config.tokens.output
    data = {"source": source.model_copy(update=changed), "images": images and change("data.images", images)}
    return config.model_copy(
        update={
            "run": change("run", config.run),
            "data": config.data.model_copy(update=data),
            "tokens": config.tokens.model_copy(update={"output": tokens and change("tokens.output", tokens)}),
        }
    )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The config with paths that mean on this machine what they mean in this working directory."""
    return _map_paths(config, lambda _, path: storage.absolute(path))


def require_reachable(config: RunConfig) -> None:
    """Make sure that no path depends on the working directory, which a job on another machine does not share.

    Raises:
        UsageError: if one does; it names the key.
    """

    def check(name: str, path: str) -> str:
        if not storage.is_remote(path) and not storage.local_path(path).is_absolute():
            raise UsageError(
                f"{name}: {path} is a relative path, which a job on another machine cannot find; give a URI (s3://…), "
                "or an absolute path that every node has"
            )
        return path

    _map_paths(config, check)
