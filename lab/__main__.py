"""``python -m lab COMMAND [CLUSTER]``: the lab's command line."""

import argparse
import os
import sys

from . import ollama
from .cluster import ROOT, Cluster
from .demo import bench, status, topology, up, write_env
from .shell import LabError, say


def main():
    """Run one command; a fault that a person must act on is one message and exit code 1."""
    parser = argparse.ArgumentParser(prog="lab", description="Test hosts for openclaw.ha: containers with systemd on this machine.")
    parser.add_argument("command", choices=("up", "status", "create", "playbook", "bench", "ollama", "destroy"))
    parser.add_argument("cluster", nargs="?", default="demo", help="a name from lab/clusters.json (default: demo)")
    arguments, rest = parser.parse_known_args()
    try:
        if arguments.command == "ollama":
            ollama.ensure()
            return 0
        cluster = Cluster(arguments.cluster)
        if arguments.command == "up":
            up(cluster)
        elif arguments.command == "status":
            status(cluster, as_json="--json" in rest)
        elif arguments.command == "create":
            cluster.create()
            write_env(cluster, topology(cluster))
        elif arguments.command == "bench":
            bench(cluster)
        elif arguments.command == "playbook":
            command = [str(ROOT / ".venv/bin/ansible-playbook"), *cluster.inventories, *rest]
            os.chdir(ROOT)
            os.execv(command[0], command)
        else:
            cluster.destroy()
            say(f"cluster {arguments.cluster} is gone")
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
