"""What a drill sees and does at its S3 server: the objects as they are, and the weather on the way to them."""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote, urlsplit

from cluster.drills.fault_proxy import Fault
from cluster.drills.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

Stamp = tuple[str, str]
"""ETag and time of the last write of an object. It changes when the object is written again."""

_THREADS = 8
_FAULTS = (Fault.SLOW_DOWN, Fault.SLOW_DOWN, Fault.CUT_REQUEST, Fault.CUT_RESPONSE)


class Bucket:
    """The bucket of a server, without any proxy.

    Args:
        server: which runs.
    """

    def __init__(self, server: S3Server) -> None:
        from botocore.config import Config
        from botocore.session import get_session

        self.name = server.bucket
        self._client: Any = get_session().create_client(
            "s3",
            endpoint_url=server.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(proxies={}, s3={"addressing_style": "path"}, max_pool_connections=_THREADS),
        )

    def uri(self, *parts: str) -> str:
        """Of a folder."""
        return "/".join((f"s3://{self.name}", *parts))

    def stamps(self, folder: str) -> dict[str, Stamp]:
        """The objects below a folder, by relative name."""
        return {name: (entry["ETag"], entry["LastModified"].isoformat()) for name, entry in self._list(folder)}

    def digests(self, folder: str) -> dict[str, str]:
        """sha256 of the objects below a folder, by relative name."""

        def digest(name: str) -> str:
            return hashlib.sha256(self.read(f"{folder}/{name}")).hexdigest()

        names = [name for name, _ in self._list(folder)]
        with ThreadPoolExecutor(_THREADS) as pool:
            return dict(zip(names, pool.map(digest, names), strict=True))

    def read(self, key: str) -> bytes:
        """An object."""
        body: bytes = self._client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return body

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""
        self._client.put_object(Bucket=self.name, Key=key, Body=data)

    def _list(self, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=f"{folder}/")
        for page in pages:
            for entry in page.get("Contents", ()):
                yield entry["Key"].removeprefix(f"{folder}/"), entry


class Weather:
    """The rule of a fault proxy: fair, but for storms that last a while. It counts what is written, too.

    Args:
        seed: of the faults.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._share, self._until = 0.0, 0.0
        self.puts: Counter[str] = Counter()
        """Tries to write an object, by its path with the bucket."""

    def storm(self, share: float, seconds: float) -> None:
        """From now on, and for so long, this share of the requests fails: half by a 503, half by a cut connection."""
        self._share, self._until = share, time.monotonic() + seconds

    def __call__(self, method: str, path: str, _headers: dict[str, str]) -> Fault | None:
        """What is done to a request."""
        if method == "PUT":
            self.puts[unquote(urlsplit(path).path).lstrip("/")] += 1
        if time.monotonic() >= self._until or self._random.random() >= self._share:
            return None
        return self._random.choice(_FAULTS)
