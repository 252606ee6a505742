"""What a client makes of the server's answers, and clients against a real server on loopback."""

import dataclasses
import subprocess
import time

import pytest
import redis

from tests.redis.checker import check
from tests.redis.record import OK, REFUSED, UNKNOWN, Record
from tests.redis.writer import Load, LoadOptions, judge
from tests.ports import free_port


@pytest.mark.parametrize(
    "replies, wait, outcome",
    [
        ([1], 0, OK),
        ([1, 1], 1, OK),
        ([1, 2], 1, OK),
        ([1, 0], 1, UNKNOWN),
        ([1, 1], 2, UNKNOWN),
        ([redis.exceptions.ReadOnlyError("You can't write against a read only replica."), 0], 1, REFUSED),
        ([redis.ResponseError("NOREPLICAS Not enough good replicas to write."), 1], 1, REFUSED),
        ([redis.ResponseError("MISCONF Errors writing to the AOF file")], 0, REFUSED),
        ([1, redis.ResponseError("ERR WAIT cannot be used with replica instances.")], 1, UNKNOWN),
        ([redis.ConnectionError("gone")], 0, UNKNOWN),
    ],
)
def test_only_a_confirmed_write_is_acknowledged(replies, wait, outcome):
    assert judge(replies, wait)[0] == outcome


@dataclasses.dataclass
class OneServer:
    """Stands where :class:`tests.redis.servers.Servers` stands: one Redis, which is always the primary."""

    node: dict

    def primary(self):
        return self.node

    def client(self, node, role, timeout):
        return redis.Redis(port=node["port"], socket_timeout=timeout, decode_responses=True)


@pytest.fixture
def server(tmp_path):
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port, decode_responses=True)
    deadline = time.monotonic() + 10
    while True:
        try:
            client.ping()
            break
        except redis.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.05)  # between two looks
    yield OneServer({"address": "127.0.0.1", "port": port}), client
    process.kill()
    process.wait()


def run(server, client, options, until):
    load = Load(server, options, "oc:written")
    deadline = time.monotonic() + 10
    while not until(load):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # between two looks
    writes = load.stop()
    stored = tuple(client.lrange("oc:written", 0, -1))
    return check(Record(writes, stored, load.began, load.ended, load.began, load.ended)), load


def test_a_healthy_server_keeps_everything(server):
    servers, client = server
    found, load = run(servers, client, LoadOptions(clients=2, wait=0), lambda load: load.acknowledged_since(load.began) >= 30)
    assert not any(found["violations"].values())
    assert found["acknowledged"] == found["writes"] >= 30
    assert not load.running


def test_data_that_vanishes_is_seen(server):
    servers, client = server
    vanished = []

    def until(load):
        if not vanished and load.acknowledged_since(load.began) >= 10:
            vanished.append(client.delete("oc:written"))
        return load.acknowledged_since(load.began) >= 30

    found, _load = run(servers, client, LoadOptions(clients=2, wait=0), until)
    assert len(found["violations"]["lost"]) >= 10


def test_without_a_replica_nothing_is_confirmed(server):
    servers, client = server
    options = LoadOptions(clients=1, wait=1, wait_ms=20)
    found, _load = run(servers, client, options, lambda load: len(load._writes) >= 3)
    assert found["acknowledged"] == 0
    assert found["unknown"] == found["unknown_stored"] == found["writes"]


def test_a_load_ends_by_itself(server):
    servers, client = server
    _found, load = run(servers, client, LoadOptions(clients=1, wait=0, seconds=0.3), lambda load: not load.running)
    assert load.ended - load.began < 5
