"""The size of a running tokenize pool, as a file beside the tokens that its driver reads between shards.

control.json: {"version": 1, "tokenize": {"workers": N}}
"""

from __future__ import annotations

from cluster.config_loading import load_config
from data_pipeline import storage
from data_pipeline.errors import UsageError

PROGRESS = "progress.json"
"""How far tokenize has come; it writes this beside its shards."""

_FILE = "control.json"
_VERSION = 1
MOST_WORKERS = 100_000


def parse_workers(text: str) -> int:
    """A number of workers that was typed.

    Raises:
        UsageError: if it is not a whole number from 1 on.
    """
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(MOST_WORKERS))
    if not is_number or not 1 <= int(text) <= MOST_WORKERS:
        raise UsageError(f"{text} workers: give a whole number from 1 to {MOST_WORKERS}")
    return int(text)


def tokens_folder(run: str) -> str:
    """The folder of token shards that is meant by a run's URI, a config file, or that folder itself.

    Raises:
        UsageError: if the config, given or in the run, cannot be read.
    """
    if run.endswith((".yaml", ".yml")):
        return load_config(run).folder("tokens")
    if storage.exists(storage.join(run, PROGRESS)):
        return run
    config = storage.join(run, "config.yaml")
    return load_config(config).folder("tokens") if storage.exists(config) else storage.join(run, "tokens")


def require_running(uri: str) -> None:
    """Make sure that there is something to scale in a folder of token shards.

    Raises:
        UsageError: if tokenize has not begun there, or has finished.
    """
    names = storage.list_names(uri)
    if "manifest.json" in names:
        raise UsageError(f"{uri} is complete: there is no running tokenize to scale")
    if not names:
        raise UsageError(
            f"{uri} is empty: tokenize has not begun there; name the folder with --tokens if it is elsewhere"
        )


def write_scale(uri: str, workers: int) -> None:
    """Ask the tokenize run that writes to the folder `uri` to use this many workers.

    Raises:
        UsageError: if the number makes no sense.
    """
    parse_workers(str(workers))
    storage.write_json(storage.join(uri, _FILE), {"version": _VERSION, "tokenize": {"workers": workers}})


def read_scale(uri: str) -> int | None:
    """The number of workers that was last asked for in the folder `uri`; None if none was.

    Raises:
        UsageError: if the file does not say a number of workers; it names the file.
    """
    path = storage.join(uri, _FILE)
    try:
        record = storage.read_json(path)
    except FileNotFoundError:
        return None
    section = record.get("tokenize") if isinstance(record, dict) else None
    workers = section.get("workers") if isinstance(section, dict) else None
    if not isinstance(workers, int) or isinstance(workers, bool) or record.get("version") != _VERSION:
        raise UsageError(f'{path} is not {{"version": {_VERSION}, "tokenize": {{"workers": N}}}}; delete it')
    if not 1 <= workers <= MOST_WORKERS:
        raise UsageError(f"{path} asks for {workers} workers; delete it, or use `foldtrain scale`")
    return workers
