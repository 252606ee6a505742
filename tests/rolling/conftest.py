"""The cluster that is changed: that of the Molecule scenario, or $CLUSTER, or the demo of ``make up``."""

import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAME = os.environ.get("MOLECULE_SCENARIO_NAME") or os.environ.get("CLUSTER") or "demo"


@pytest.fixture(scope="session")
def cluster():
    from tests.history.cluster import Cluster
    from tests.traffic.faults import way_in

    return way_in(Cluster.of_lab(NAME))


@pytest.fixture(scope="session")
def evidence_directory():
    return ROOT / ".cache" / "rolling" / NAME
