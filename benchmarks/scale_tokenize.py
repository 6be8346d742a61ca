"""What a start of tokenize costs that finds every shard of the plan made, on S3 whose requests take 30 ms each.

    python benchmarks/scale_tokenize.py SAMPLES

A shard has 100 images, so that 1.28 million are 12,800 shards. Up to MOST_SHARDS of them the server is SeaweedFS on
loopback, filled before, with a proxy in front that lets every request wait. For more shards it is one that makes up
what it lists (synthetic_tokens.py) and waits as long: `synthetic_server` is 1.

    seconds, requests, peak_mib         a start with the manifest there: all that `foldtrain tokenize` does before it
                                        says that nothing is left
    interrupted_seconds, ..._requests   the same without the manifest, as after a kill: every record is read. On the
                                        real server alone
    plan_bytes                          the pickled plan, which workers get
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scale_probe import Figures, in_child, main, probe
from synthetic_tokens import commit_of, digest_of, in_process, synthetic_tokens, tar_bytes

from cluster.drills.fault_proxy import FaultProxy
from cluster.drills.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server
from data_pipeline import storage
from data_pipeline.images.transforms import Transform
from data_pipeline.shards.manifest import TokenizerRecord
from data_pipeline.tokens.commits import Commits, read_commits, record_name
from data_pipeline.tokens.plan import SOFTWARE, TokenPlan
from data_pipeline.tokens.tokenizing import finish
from model.layout import TokenLayout

DELAY_SECONDS = 0.03
SHARD_SAMPLES = 100
MOST_SHARDS = 20_000
WRITERS = 16
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1,localhost",
}
OUTPUT = f"s3://{BUCKET}/tokens"


def make_plan(samples: int) -> TokenPlan:
    """Of images that nobody has made."""
    return TokenPlan(
        images=f"s3://{BUCKET}/images",
        output=OUTPUT,
        classes=tuple(f"class {number}" for number in range(1000)),
        source="0" * 64,
        tokenizer=TokenizerRecord(encoder="1" * 64, config={"name": "none"}),
        layout=TokenLayout((1,), (1024,)),
        views=("center",),
        transform=Transform(256),
        batch=64,
        precision="fp32",
        software=dict.fromkeys(SOFTWARE, "1.0"),
        samples=samples,
        shard_samples=SHARD_SAMPLES,
    )


def write_shards(samples: int) -> None:
    """What workers of a whole run leave, but for what is in the tars."""
    plan = make_plan(samples)

    def write(number: int) -> None:
        shard = plan.shards[number]
        storage.write_bytes(storage.join(OUTPUT, shard.name), bytes(tar_bytes(shard)))
        storage.write_bytes(storage.join(OUTPUT, record_name(shard.name)), commit_of(plan, shard))

    with ThreadPoolExecutor(WRITERS) as pool:
        for _ in pool.map(write, range(len(plan.shards))):
            pass


def write_manifest(samples: int) -> None:
    """What the driver of a whole run leaves, which knows of each shard from its worker."""
    plan = make_plan(samples)
    commits = Commits(plan)
    for shard in plan.shards:
        commits.add(shard.number, tar_bytes(shard), digest_of(shard), plan.software)
    finish(plan, commits)


def serve_proxy(target: str, ends: Any) -> None:
    """A proxy in a process of its own, until its parent says something."""
    with FaultProxy(target, seed=0, delay=DELAY_SECONDS) as proxy:
        ends.send(proxy.endpoint)
        ends.recv()


@contextmanager
def server(plan: TokenPlan, folder: Path) -> Iterator[str]:
    """A server that has all shards, far away; gives its URL."""
    real = S3Server(folder)
    if len(plan.shards) > MOST_SHARDS:
        with synthetic_tokens(plan, DELAY_SECONDS) as endpoint:
            yield endpoint
        return
    with real:
        os.environ.update(real.environment())
        in_child(write_shards, plan.samples)
        with in_process(serve_proxy, real.endpoint) as endpoint:
            yield endpoint


def measure(samples: int) -> Figures:
    """The start of an interrupted run first, whose end writes the manifest."""
    plan = make_plan(samples)
    is_real = len(plan.shards) <= MOST_SHARDS
    with tempfile.TemporaryDirectory() as folder, server(plan, Path(folder)) as endpoint:
        os.environ.update(ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint})
        storage.exists(OUTPUT)  # opens the client, and finds the credentials
        if is_real:
            with probe() as interrupted:
                commits = read_commits(plan)
            finish(plan, commits)
        else:
            interrupted = {}
            in_child(write_manifest, samples)
        with probe() as found:
            commits = read_commits(plan)
            finish(plan, commits)
        assert not len(commits.missing)
    found |= {f"interrupted_{name}": value for name, value in interrupted.items()}
    found |= {"shards": len(plan.shards), "plan_bytes": len(pickle.dumps(plan))}
    return found | {"synthetic_server": int(not is_real)}


if __name__ == "__main__":
    main(measure)
