"""Tests against the Redis servers of a running lab cluster: the Molecule scenario's, or $CLUSTER's."""

import os

import pytest

NAME = os.environ.get("MOLECULE_SCENARIO_NAME") or os.environ.get("CLUSTER") or "redis"


@pytest.fixture(scope="session")
def cluster():
    """Name of the lab cluster."""
    return NAME


@pytest.fixture
def servers(cluster):
    """The servers, well before the test and well after it."""
    from tests.redis.servers import of_lab

    found = of_lab(cluster)
    found.settle()
    yield found
    found.settle()


@pytest.fixture
def evidence(cluster, request):
    """Directory for what a run leaves."""
    from tests.redis.run import CACHE

    return CACHE / cluster / request.node.name.removeprefix("test_")
