"""Programs that the tests of the balancer run."""

import shutil

import balancer_rig
import pytest


def _program(name):
    program = shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        pytest.fail(f"{name} is not installed, and these tests ask it what it makes of the configuration: run lab/bootstrap")
    return program


@pytest.fixture(scope="session")
def haproxy_program():
    return _program("haproxy")


@pytest.fixture(scope="session")
def nginx_program():
    return _program("nginx")


def _starter(kind, program, directory):
    """A function that starts balancers of a kind with so many replicas, and their end."""
    started = []

    def start(count=3, **variables):
        backends = [balancer_rig.Backend(f"r{number}") for number in range(1, count + 1)]
        started.append(kind(program, directory, backends, **variables))
        return started[-1].ready()

    yield start
    for running in started:
        running.close()


@pytest.fixture
def balancer(haproxy_program, tmp_path):
    """Starts an HAProxy."""
    yield from _starter(balancer_rig.HAProxy, haproxy_program, tmp_path)


@pytest.fixture
def nginx(nginx_program, tmp_path):
    """Starts an nginx."""
    yield from _starter(balancer_rig.Nginx, nginx_program, tmp_path)


@pytest.fixture(params=["haproxy", "nginx"])
def engine_name(request):
    return request.param


@pytest.fixture
def engine(engine_name, tmp_path):
    """Starts either."""
    kind = {"haproxy": balancer_rig.HAProxy, "nginx": balancer_rig.Nginx}[engine_name]
    yield from _starter(kind, _program(engine_name), tmp_path)
