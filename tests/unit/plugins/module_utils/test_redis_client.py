"""Connections to Redis, without a server."""

import inspect
import types

import pytest
from ansible_collections.openclaw.ha.plugins.module_utils import redis_client


@pytest.mark.parametrize(
    ("knows", "given"),
    [
        (("driver_info", "lib_name", "lib_version"), {"driver_info": None}),
        (("lib_name", "lib_version"), {"lib_name": None, "lib_version": None}),
        ((), {}),
    ],
)
def test_no_version_of_the_library_tells_the_server_its_name(monkeypatch, knows, given):
    """Users may not send CLIENT SETINFO; each try would stand in the server's ACL LOG, where attacks are looked for."""
    made = {}

    class Redis:
        def __init__(self, **options):
            made.update(options)

        __init__.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in knows])

    monkeypatch.setattr(redis_client, "redis", types.SimpleNamespace(Redis=Redis))
    monkeypatch.setattr(redis_client, "Retry", lambda *_arguments: None, raising=False)
    monkeypatch.setattr(redis_client, "NoBackoff", lambda: None, raising=False)
    redis_client.connect({"address": "127.0.0.1", "port": 1}, {}, 1)
    assert {name: made[name] for name in made if name in ("driver_info", "lib_name", "lib_version")} == given
