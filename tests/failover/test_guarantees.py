"""Clients hold conversations while something breaks; afterwards two checkers look for what must not have happened.

Each run leaves its evidence in ``.cache/history/<cluster>/<run>``; ``python -m tests.history table DIRECTORY`` makes the table of docs/guarantees.md from it.
"""

import os
import pathlib
import sys

import pytest

from tests.history.cluster import Cluster
from tests.history.faults import FAULTS
from tests.history.load import LoadOptions
from tests.history.run import Timing, heading, row, run

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAME = os.environ.get("MOLECULE_SCENARIO_NAME") or os.environ.get("CLUSTER") or "demo"
CONVERSATIONS, TURNS = 20, 20

#: Name of the run -> (fault, seconds it stays, what the clients do differently).
RUNS = {
    "none": ("none", 0, {}),
    "two clients in one conversation": ("none", 0, {"conversations": 20, "turns": 10, "clients": 2, "route": "replicas"}),
    "one webhook, two replicas": ("none", 0, {"twins": True}),
    "gateway killed": ("gateway killed", 5, {}),
    "gateway frozen": ("gateway frozen", 16, {"seconds": 45}),
    "database locked": ("database locked", 8, {"seconds": 30}),
    "redis primary killed": ("redis primary killed", 15, {"seconds": 45}),
    "redis away": ("redis away", 30, {"seconds": 60}),
    "gateways restarted": ("gateways restarted", 0, {"seconds": 60}),
    "hosts killed": ("hosts killed", 0, {"seconds": 60}),
    "passwords rotated": ("passwords rotated", 0, {"seconds": 120}),
    **{name: (name, 20, {"seconds": 40}) for name in FAULTS if name.startswith("provider ")},
}
#: That of `make test`: everything at once. The others are run by `make long`.
SMOKE = {"hosts killed"}


@pytest.fixture(scope="session")
def cluster():
    return Cluster.of_lab(NAME)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.smoke] if name in SMOKE else []) for name in RUNS])
def test_nothing_acknowledged_is_lost_doubled_or_reordered(cluster, name):
    fault, hold, changes = RUNS[name]
    options = LoadOptions(**{"conversations": CONVERSATIONS, "turns": TURNS, **changes})
    directory = ROOT / ".cache" / "history" / NAME / name.replace(" ", "-")
    result = run(options, FAULTS[fault], cluster=cluster, directory=directory, name=name, timing=Timing(hold=hold))
    print(f"\n{heading()}\n{row(result)}", file=sys.stderr)
    assert result["totals"]["turns"] >= 400
    assert result["ok"], result["violations"][:10] or result["unsettled"] or result["porcupine"]
