"""Run `ray start` so that every node of the cluster stays on the loopback interface.

Run as a file (it imports nothing of ours). Ray refuses to put several nodes on 127.0.0.1: it replaces that
address by the machine's own, which is reachable from outside, changes with the network, and listens on all
interfaces. RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 (set by the caller and inherited by Ray's own processes) keeps
the loopback address, as Ray does by itself on a Mac; the same setting forbids a second node in `ray start`
alone, hence this file.
"""

from __future__ import annotations


def main() -> None:
    """`ray start` with the arguments of this process."""
    from ray._private import ray_constants, services
    from ray.scripts.scripts import main as ray_main

    services.get_node_ip_address = lambda *_: "127.0.0.1"
    ray_constants.ENABLE_RAY_CLUSTER = True
    ray_main()


if __name__ == "__main__":
    main()
