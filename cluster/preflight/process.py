"""What the first node of a target runs for the doctor: `python -P -m cluster.preflight.process RUN ID NODES`.

The config is read from the run's folder, and what was found is put beside it, for the command that waits for it. What
the shell of that command has of credentials comes as it does to any job (cluster/session/job_environment.py).
"""

from __future__ import annotations

import sys

from cluster.preflight.on_target import CONFIG, FOUND, folder_of
from cluster.session import job_environment
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError


def main(run: str, identifier: str, nodes: str) -> int:
    """Examine the nodes, and say what was found. Returns the exit code."""
    from cluster.config.loading import load_config
    from cluster.preflight.examining import examine
    from cluster.preflight.findings import errors

    folder = folder_of(run, identifier)
    try:
        examined = examine(load_config(storage.join(folder, CONFIG), []), nodes=int(nodes))
    except FoldtrainError as error:
        storage.write_json(storage.join(folder, FOUND), {"error": str(error)})
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    storage.write_json(storage.join(folder, FOUND), examined.to_json())
    return 1 if errors(examined.findings) else 0


if __name__ == "__main__":
    try:
        job_environment.take_over()
        sys.exit(main(*sys.argv[1:]))
    finally:
        job_environment.remove()
