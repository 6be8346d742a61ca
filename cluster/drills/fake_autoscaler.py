"""Ray's own autoscaler with its provider of fake nodes: each is a raylet on this machine, and its agents.

Ray gives the nodes of this provider ids of its own, `fff...f00001` and on; the head has `fff...f00000`. They are on the
address by which this machine reaches others, where it has one; the head's is of no matter to them.
"""

from __future__ import annotations

from typing import Any

OBJECT_STORE_BYTES = 80 * 2**20
ENVIRONMENT = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
"""Variables of the head."""
_IDS = "f" * 51
_HEAD = "00000"
_IDLE_MINUTES = 0.25
"""Longer than a training takes to start again: its node is idle meanwhile."""


def is_added(node: str) -> bool:
    """Whether the autoscaler has added a node, by Ray's id of it."""
    return node.startswith(_IDS) and not node.endswith(_HEAD)


def autoscaling(address: str, most: int) -> dict[str, Any]:
    """The config of an autoscaler that adds nodes of one CPU, with all the keys that Ray looks for.

    Args:
        address: of the head.
        most: nodes that it may add.
    """
    lists = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
    more = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    worker = {"CPU": 1, "object_store_memory": OBJECT_STORE_BYTES}
    return {
        "cluster_name": "drill",
        "max_workers": most,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": _IDLE_MINUTES,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
        "auth": {"ssh_user": "nobody"},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in (*lists, *more)},
    }
