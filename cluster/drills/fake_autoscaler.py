"""Ray's own autoscaler with nodes that are raylets on this machine (fake_nodes.py).

Ray gives them ids of its own, `fff...f00001` and on; the head of such a cluster has `fff...f00000`.
"""

from __future__ import annotations

from typing import Any

OBJECT_STORE_BYTES = 80 * 2**20
ENVIRONMENT = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
"""Variables of the head."""
SESSIONS = "sessions"
"""Key of the provider's config: the folder of Ray's sessions."""
_IDS = "f" * 51
_IDLE_MINUTES = 0.25
"""Longer than a training takes to start again: its node is idle meanwhile."""


def node_id(number: int) -> str:
    """Ray's id of a node that the autoscaler adds, from 1 on; 0 is the head."""
    return f"{_IDS}{number:05d}"


def is_added(node: str) -> bool:
    """Whether the autoscaler has added a node, by Ray's id of it."""
    return node.startswith(_IDS) and node != node_id(0)


def autoscaling(address: str, most: int, sessions: str) -> dict[str, Any]:
    """The config of an autoscaler that adds nodes of one CPU, with all the keys that Ray looks for.

    Args:
        address: of the head.
        most: nodes that it may add.
        sessions: the folder of Ray's sessions.
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
            "type": "external",
            "module": "cluster.drills.fake_nodes.LoopbackNodes",
            SESSIONS: sessions,
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
