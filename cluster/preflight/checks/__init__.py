"""The checks, in the order in which they run: what costs nothing first. A new one is a file here, and a line."""

from cluster.preflight.checks import (
    clocks,
    conditional_put,
    devices,
    disk,
    limits,
    links,
    matmul,
    names,
    ports,
    storage,
    versions,
)
from cluster.preflight.checks.check import Check

CHECKS: tuple[Check, ...] = (
    versions.CHECK,
    devices.CHECK,
    clocks.CHECK,
    disk.CHECK,
    limits.CHECK,
    storage.CHECK,
    conditional_put.CHECK,
    ports.CHECK,
    matmul.CHECK,
    names.CHECK,
    links.CHECK,
)
"""Each by its file in this folder."""
