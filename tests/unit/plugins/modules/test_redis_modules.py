"""sentinel_info and redis_config against a real primary, a real replica and a real Sentinel on loopback."""

import shutil
import subprocess
import time

import pytest

from ansible_collections.openclaw.ha.plugins.modules import redis_config, sentinel_info
from tests.ports import free_port

PASSWORD = "correct-horse"
SENTINEL_PASSWORD = "battery-staple"


def wait_for(what, probe, seconds=20):
    deadline = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < deadline, f"{what}: not seen within {seconds} s"
        time.sleep(0.05)  # between two looks


class Servers:
    """Real servers, each with its own directory; stopped by their pid."""

    def __init__(self, directory):
        self.directory = directory
        self.processes = {}

    def start(self, name, program, port, *lines):
        assert shutil.which(program), f"{program} is needed by this test: apt-get install {program}"
        home = self.directory / f"{name}-{port}"
        home.mkdir()
        config = home / "server.conf"
        config.write_text("\n".join([f"port {port}", "bind 127.0.0.1", f"dir {home}", *lines]) + "\n")
        log = open(home / "log", "w", encoding="utf-8")
        self.processes[name] = subprocess.Popen([program, str(config)], stdout=log, stderr=subprocess.STDOUT)
        return {"host": name, "address": "127.0.0.1", "port": port}

    def stop(self, name):
        process = self.processes.pop(name)
        process.kill()
        process.wait(timeout=10)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    found = Servers(tmp_path_factory.mktemp("redis"))
    yield found
    for name in list(found.processes):
        found.stop(name)


@pytest.fixture(scope="module")
def cluster(servers):
    auth = (f"requirepass {PASSWORD}", f"masterauth {PASSWORD}", "repl-diskless-sync-delay 0")
    primary = servers.start("one", "redis-server", free_port(), *auth)
    replica = servers.start("two", "redis-server", free_port(), *auth, f"replicaof 127.0.0.1 {primary['port']}")
    sentinel = servers.start(
        "watch",
        "redis-sentinel",
        free_port(),
        f"requirepass {SENTINEL_PASSWORD}",
        f"sentinel monitor openclaw 127.0.0.1 {primary['port']} 1",
        f"sentinel auth-pass openclaw {PASSWORD}",
        "sentinel down-after-milliseconds openclaw 1000",
        # A first attempt may be given up on a busy machine; the next one comes after twice this.
        "sentinel failover-timeout openclaw 3000",
    )
    return {"redis": [primary, replica], "sentinels": [sentinel]}


@pytest.fixture
def look(run_module, cluster):
    def ask(**changes):
        arguments = {
            **cluster,
            "name": "openclaw",
            "redis_access": {"password": PASSWORD},
            "sentinel_access": {"password": SENTINEL_PASSWORD},
            "timeout": 1,
            **changes,
        }
        return run_module(sentinel_info, **arguments)

    return ask


def test_the_agreed_view(look, cluster):
    view = look(wait=20)
    assert not view["failed"], view
    assert view["state"] == "agreed" and view["changed"] is False
    assert view["primary"] == f"127.0.0.1:{cluster['redis'][0]['port']}"
    assert [node["role"] for node in view["redis"]] == ["master", "slave"]
    assert view["sentinels"][0]["quorum_ok"] is True


def test_a_wrong_password_is_a_problem_not_a_traceback(look):
    view = look(redis_access={"password": "wrong"})
    assert any("Redis on one" in problem and "invalid username-password pair" in problem for problem in view["problems"])
    assert "wrong" not in " ".join(view["problems"])


def test_nobody_answers(look):
    nobody = {"host": "gone", "address": "127.0.0.1", "port": free_port()}
    view = look(redis=[nobody], sentinels=[nobody], unanswered_ok=True)
    assert (view["state"], view["problems"]) == ("absent", [])


def test_waiting_ends_with_the_reasons(look, cluster):
    gone = {"host": "gone", "address": "127.0.0.1", "port": free_port()}
    view = look(redis=[*cluster["redis"], gone], wait=1)
    assert view["failed"]
    assert "after 1 s" in view["msg"] and "Redis on gone" in view["msg"]
    assert PASSWORD not in view["msg"]


@pytest.fixture
def configure(run_module, cluster):
    def ask(check=False, **changes):
        node = cluster["redis"][0]
        return run_module(redis_config, check=check, address=node["address"], port=node["port"], **{"redis_access": {"password": PASSWORD}, **changes})

    return ask


def test_a_setting_goes_live_once(configure):
    wanted = {"maxmemory": "300mb", "save": "900 1"}
    assert configure(check=True, settings=wanted)["settings"] == ["maxmemory", "save"]
    first = configure(settings=wanted)
    assert first["changed"] and first["diff"]["after"] == {"maxmemory": "300mb", "save": "900 1"}
    assert configure(settings=wanted)["changed"] is False


def test_secret_settings_are_not_shown(configure):
    result = configure(check=True, secret_settings={"masterauth": "another-secret"})
    assert result["changed"] is True
    assert "another-secret" not in str(result) and PASSWORD not in str(result)


def test_a_refused_setting_is_named(configure):
    result = configure(settings={"maxmemory-policy": "sometimes"})
    assert result["failed"] and "refuses maxmemory-policy" in result["msg"]


def test_a_wrong_password_ends_at_once(configure):
    started = time.monotonic()
    result = configure(settings={"maxmemory": "1gb"}, redis_access={"password": "wrong"}, wait=30)
    assert result["failed"] and "invalid username-password pair" in result["msg"]
    assert time.monotonic() - started < 10


def test_nobody_there_is_told_after_the_wait(run_module):
    result = run_module(redis_config, address="127.0.0.1", port=free_port(), settings={}, wait=0.5)
    assert result["failed"] and "does not answer" in result["msg"]


def test_sentinel_settings_go_live_once(run_module, cluster):
    node = cluster["sentinels"][0]

    def ask():
        return run_module(
            redis_config,
            address=node["address"],
            port=node["port"],
            redis_access={"password": SENTINEL_PASSWORD},
            sentinel="openclaw",
            settings={"down-after-milliseconds": "1500", "quorum": "1"},
        )

    assert ask()["settings"] == ["down-after-milliseconds"]
    assert ask()["changed"] is False


def test_after_a_failover_the_new_primary_is_seen(look, servers, cluster):
    look(wait=20)  # until the Sentinel knows the replica: it cannot promote what it does not know
    servers.stop("one")
    new = f"127.0.0.1:{cluster['redis'][1]['port']}"
    wait_for("the failover", lambda: look(unanswered_ok=True)["primary"] == new, seconds=90)
    assert any("Redis on one" in problem for problem in look()["problems"])
