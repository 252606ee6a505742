"""The package is installed by its role, not by pip: make it importable, and start it as processes on a real Redis."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "roles/ingress/files"))

from ingress_rig import SECRETS, WORDS, Ingress, Replica


@pytest.fixture(scope="session")
def redis_primary(redis_server, tmp_path_factory):
    """A Redis that all tests use that do not break it."""
    server = redis_server(tmp_path_factory.mktemp("ingress") / "primary")
    assert server.start()
    return server


@pytest.fixture
def redis(redis_primary):
    """A client of it, empty."""
    client = redis_primary.client()
    client.flushall()
    return client


@pytest.fixture
def replicas(redis):
    """``replicas(count, mode)`` starts gateways; all end with the test."""
    started = []

    def make(count=2, mode="commit"):
        made = [Replica(f"r{len(started) + number + 1}", redis, mode) for number in range(count)]
        started.extend(made)
        return made

    yield make
    for one in started:
        one.die()


@pytest.fixture
def ingress(tmp_path, redis_primary):
    """``ingress(replicas, count, **settings)`` starts that many ingresses, and returns one, or a list. None of their logs may tell what it must not."""
    started = []

    def make(replicas=(), count=1, server=redis_primary, **settings):
        made = [Ingress(tmp_path, f"ingress{len(started) + number + 1}", f"127.0.0.1:{server.port}", replicas, settings) for number in range(count)]
        started.extend(made)
        for one in made:
            one.start()
        for one in made:
            one.ready()
        return made if count > 1 else made[0]

    yield make
    for one in started:
        one.stop()
        log = one.log()
        assert not [text for text in (*SECRETS, WORDS) if text in log]
        assert "Traceback" not in log, log
