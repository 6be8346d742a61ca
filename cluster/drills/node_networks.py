"""A network for each node of a cluster on this machine, which can be cut and healed: Linux network namespaces.

The namespaces hang on a bridge, at which this machine has an address, too. Whatever listens there is reached from all
of them, and nothing beyond this machine is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Self

from data_pipeline.errors import FoldtrainError

LINE = "net0"
"""Name of a node's interface, in its namespace."""
_HERE = 254


class NodeNetworks:
    """A bridge, and a namespace for each node. To be used in a `with` statement, after which nothing of it is left."""

    def __init__(self) -> None:
        self._tag = f"fd{os.getpid() % 10_000_000}"
        self._subnet = f"10.77.{os.getpid() % 250}"
        self.nodes: list[int] = []
        """That have one."""

    @property
    def bridge(self) -> str:
        """The interface of this machine to all of them."""
        return f"{self._tag}b"

    @property
    def here(self) -> str:
        """The address of this machine on the bridge."""
        return self.address(_HERE)

    def namespace(self, node: int) -> str:
        """The network of a node, by its name."""
        return f"{self._tag}n{node}"

    def address(self, node: int) -> str:
        """Of a node."""
        return f"{self._subnet}.{node}"

    def __enter__(self) -> Self:
        try:
            self._ip("link", "add", self.bridge, "type", "bridge")
            self._ip("addr", "add", f"{self.here}/24", "dev", self.bridge)
            self._ip("link", "set", self.bridge, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            self._ip("link", "del", self._outer(node), check=False)
            self._ip("netns", "del", self.namespace(node), check=False)
        self._ip("link", "del", self.bridge, check=False)

    def add(self, node: int) -> None:
        """A network for a node, from 1 on.

        Raises:
            FoldtrainError: if this kernel or container does not allow it.
        """
        assert 0 < node < _HERE, node
        own = self.namespace(node)
        self.nodes.append(node)
        self._ip("netns", "add", own)
        self._ip("link", "add", self._outer(node), "type", "veth", "peer", "name", LINE, "netns", own)
        self._ip("link", "set", self._outer(node), "master", self.bridge, "up")
        self._ip("-n", own, "addr", "add", f"{self.address(node)}/24", "dev", LINE)
        self._ip("-n", own, "link", "set", "lo", "up")
        self._ip("-n", own, "link", "set", LINE, "up")

    def cut(self, node: int) -> None:
        """From now on nothing reaches a node, and it reaches nothing. Nobody is told."""
        self._ip("link", "set", self._outer(node), "down")

    def heal(self, node: int) -> None:
        """Everything reaches it again."""
        self._ip("link", "set", self._outer(node), "up")

    def _outer(self, node: int) -> str:
        return f"{self._tag}v{node}"

    @staticmethod
    def _ip(*words: str, check: bool = True) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if check and done.returncode:
            raise FoldtrainError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def missing() -> str:
    """Why there can be no such networks here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the command ip (Debian: iproute2)"
    try:
        with NodeNetworks() as tried:
            tried.add(1)
    except FoldtrainError as error:
        return f"this kernel or container has no network namespaces ({error})"
    return ""
