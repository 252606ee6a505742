"""The package is installed by its role, not by pip: make it and the one that it needs importable, and start it as processes on a real Redis."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / f"roles/{name}/files") for name in ("owner", "ingress")]

from owner_rig import Cluster


@pytest.fixture(scope="session")
def redis_primary(redis_server, tmp_path_factory):
    """A Redis that all tests use that do not break it."""
    server = redis_server(tmp_path_factory.mktemp("owner") / "primary")
    assert server.start()
    return server


@pytest.fixture
def redis(redis_primary):
    """A client of it, empty."""
    client = redis_primary.client()
    client.flushall()
    return client


@pytest.fixture
def cluster(tmp_path, redis_primary):
    """``cluster(hosts, replicas, **settings)`` starts daemons and gateways: a :class:`Cluster`; all end with the test."""
    made = []

    def make(hosts=2, replicas=1, server=redis_primary, **settings):
        if server is redis_primary:
            server.client().flushall()
        made.append(Cluster(tmp_path, server.port, hosts, replicas, settings))
        return made[-1]

    yield make
    for one in made:
        one.end()
        for daemon in one.daemons:
            assert "Traceback" not in daemon.log(), daemon.log()
