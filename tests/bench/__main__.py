# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.bench CLUSTER``: what the plugin costs a turn, and what more replicas bring, on a lab cluster that is up."""

import argparse
import json
import pathlib

from tests.history.cluster import Cluster

from . import turns

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main():
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("cluster", nargs="?", default="demo", help="a lab cluster that is up")
    parser.add_argument("--turns", type=int, default=100, help="turns of each kind in the comparison of single turns")
    parser.add_argument("--seconds", type=float, default=20, help="how long each number of replicas is loaded")
    given = parser.parse_args()
    cluster = Cluster.of_lab(given.cluster)
    result = {"turn": turns.compare(cluster, given.turns), "throughput": turns.throughput(cluster, given.seconds)}
    path = ROOT / ".cache" / "bench" / "turns.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print("\n".join(turns.table(result)))
    print(f"\n{path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
