"""The program of the role backup, made importable, with a real repository and a real Redis on loopback."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "roles/backup/files"))

from backup_rig import Host


@pytest.fixture
def host(tmp_path, redis_server):
    """A Redis server with some conversations, and the backup's configuration on its host; the repository is made."""
    one = Host(tmp_path, redis_server)
    yield one.ready()
    one.stop()


@pytest.fixture
def bare(tmp_path, redis_server):
    """The same, without a Redis that runs and without a repository."""
    one = Host(tmp_path, redis_server)
    yield one
    one.stop()
