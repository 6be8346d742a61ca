"""A job's process on this machine, `python -P -m cluster.local_job STAGE config.yaml`: a command with its variables."""

from __future__ import annotations

from cluster import cli
from cluster.session import job_environment


def main() -> None:
    """Take over the variables of the shell that submitted this job, then run the command line."""
    try:
        job_environment.take_over()
        cli.main()
    finally:
        job_environment.remove()


if __name__ == "__main__":
    main()
