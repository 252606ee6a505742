"""Lets a plain ``pytest tests/unit`` import the checkout as ``ansible_collections.openclaw.ha`` (ansible-test does so by itself)."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
if ROOT.parent.name != "openclaw" and (ROOT / ".collections").is_dir():
    sys.path.insert(0, str(ROOT / ".collections"))


class RedisServer:
    """One real redis-server on loopback, with its own directory; stopped by its pid."""

    def __init__(self, directory, *settings):
        from tests.ports import free_port  # here and below: ansible-test imports this file with the tools of each Python alone

        self.port = free_port()
        self.directory, self.settings, self.process = pathlib.Path(directory), settings, None
        self.log = self.directory.parent / f"{self.directory.name}.log"

    def start(self, *settings):
        """Start it and wait until it has loaded its data; returns False when it ended instead."""
        import shutil
        import subprocess

        assert shutil.which("redis-server"), "redis-server is needed by this test: apt-get install redis-server"
        self.directory.mkdir(exist_ok=True)
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.directory}",
            "appendonly yes",
            'save ""',
            *self.settings,
            *settings,
        ]
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                ["redis-server", "-"], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        self.process.stdin.write("\n".join(lines).encode() + b"\n")
        self.process.stdin.close()
        return self.until(lambda: self.process.poll() is not None or self.answers()) and self.process.poll() is None

    def answers(self):
        import redis

        try:
            return self.client().ping()
        except redis.AuthenticationError:
            return True
        except (redis.ConnectionError, redis.BusyLoadingError):
            return False
        except redis.ResponseError:  # a full disk: it answers
            return True

    def client(self):
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return redis.Redis(port=self.port, decode_responses=True, retry=Retry(NoBackoff(), 0))

    def stop(self, kill=False):
        import os
        import signal

        if self.process and self.process.poll() is None:
            # With a kill its child goes too, which may be in the middle of a rewrite.
            os.killpg(self.process.pid, signal.SIGKILL if kill else signal.SIGTERM)
        if self.process:
            self.process.wait(timeout=30)

    @staticmethod
    def until(condition, seconds=30):
        import time

        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not seen within {seconds} s"
            time.sleep(0.02)  # between two looks
        return True


@pytest.fixture(scope="session")
def redis_server():
    """``redis_server(directory, *settings)`` makes a :class:`RedisServer`; all are stopped at the end."""
    made = []

    def make(directory, *settings):
        made.append(RedisServer(directory, *settings))
        return made[-1]

    yield make
    for server in made:
        server.stop(kill=True)


def _written(server, first, last):
    client = server.client()
    for number in range(first, last):
        client.set(f"key:{number}", f"value {number}")


@pytest.fixture(scope="session")
def aof_data(tmp_path_factory, redis_server):
    """A data directory as a real server leaves it: 100 keys in the base (number 2), 100 more in the incremental file."""
    directory = tmp_path_factory.mktemp("aof") / "data"
    server = redis_server(directory)
    assert server.start()
    _written(server, 0, 100)
    client = server.client()
    client.bgrewriteaof()
    server.until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
    _written(server, 100, 200)
    server.stop()
    return directory


@pytest.fixture(scope="session")
def aof_data_two_increments(tmp_path_factory, redis_server):
    """A data directory after kill -9 in the middle of a rewrite: base 1, incremental files 1 (100 keys) and 2 (100 more)."""
    directory = tmp_path_factory.mktemp("aof") / "data"
    server = redis_server(directory, "rdb-key-save-delay 1000000", "appendfsync always")
    assert server.start()
    _written(server, 0, 100)
    client = server.client()
    client.bgrewriteaof()
    server.until(lambda: client.info("persistence")["aof_rewrite_in_progress"])
    _written(server, 100, 200)
    server.stop(kill=True)
    return directory
