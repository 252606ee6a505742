"""The cluster that the traffic goes to: that of the Molecule scenario, or $CLUSTER, or the demo of ``make up``."""

import contextlib
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
    return ROOT / ".cache" / "traffic" / NAME


def balanced(request, cluster):
    """The engine (``request.param``), or "fast" for HAProxy with the fast profile: given to every balancer by the roles where the cluster has another."""
    from tests.traffic.engines import engine, with_engine, with_profile

    with contextlib.ExitStack() as stack:
        if request.param == "fast":
            stack.enter_context(with_profile(cluster, "fast"))
        elif engine(cluster) != request.param:
            stack.enter_context(with_engine(cluster, request.param))
        yield request.param


balanced_by = pytest.fixture(balanced, scope="module")
