"""A full disk under a real redis-server, and what redis_aof_check says of it."""

from __future__ import annotations

import subprocess

import pytest
import redis

from ansible_collections.openclaw.ha.plugins.module_utils import aof


def run(words, seconds=None):
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "openclaw-test", str(path)], check=True)
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def verdict(server):
    return aof.worst(aof.judge_server(server.client().info("persistence")) + aof.examine(aof.look(server.directory, run=run), run=run))


@pytest.mark.parametrize("end", ["space returns", "killed while full"])
def test_a_full_disk_refuses_writes_and_loses_nothing(end, small_disk, redis_server):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 1_000_000)
    server = redis_server(small_disk / "data")
    assert server.start() and verdict(server)["verdict"] == "ok"
    client, acknowledged = server.client(), 0
    with pytest.raises(redis.ResponseError, match="MISCONF Errors writing to the AOF file"):
        while acknowledged < 10000:
            client.set(f"key:{acknowledged}", "x" * 1000)
            acknowledged += 1
    found = verdict(server)
    assert found["verdict"] == "write_failed" and "refuses writes" in found["sentence"] and aof.ADVICE["write_failed"]
    assert client.get("key:0") == "x" * 1000  # reads go on

    ballast.unlink()
    if end == "killed while full":
        server.stop(kill=True)
    else:
        server.until(lambda: _set(client, "after"))
        assert verdict(server)["verdict"] == "ok"
        assert client.dbsize() == acknowledged + 1
        server.stop()
    assert server.start()
    # With everysec Redis notices by a failed write whose command it has just answered. It stays in memory (and on the
    # replicas) and is written when there is space: lost only with a kill -9 before that.
    sure = acknowledged - (1 if end == "killed while full" else 0)
    assert server.client().exists(*(f"key:{number}" for number in range(sure))) == sure
    assert verdict(server)["verdict"] == "ok"
    server.stop()


def _set(client, key):
    try:
        return client.set(key, "x")
    except redis.ResponseError as refusal:
        assert str(refusal).startswith("MISCONF"), refusal
        return False


def test_with_appendfsync_always_a_full_disk_ends_the_server(small_disk, redis_server):
    (small_disk / "ballast").write_bytes(b"x" * 1_000_000)
    server = redis_server(small_disk / "data", "appendfsync always")
    assert server.start()
    client, acknowledged = server.client(), 0
    with pytest.raises(redis.ConnectionError):
        while acknowledged < 10000:
            client.set(f"key:{acknowledged}", "x" * 1000)
            acknowledged += 1
    server.process.wait(timeout=10)
    assert "Can't recover from AOF write error" in server.log.read_text()
    (small_disk / "ballast").unlink()
    assert server.start()
    assert server.client().dbsize() == acknowledged
    server.stop()
