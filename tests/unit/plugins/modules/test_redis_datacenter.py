"""redis_datacenter, redis_leftover and the service of the role datacenter, against two datacenters of real Redis servers and Sentinels."""

import contextlib
import importlib.util
import json
import pathlib
import socket
import sys

import pytest

from ansible_collections.openclaw.ha.plugins.module_utils import datacenter
from ansible_collections.openclaw.ha.plugins.module_utils.redis_view import where
from ansible_collections.openclaw.ha.plugins.modules import redis_datacenter, redis_leftover, sentinel_info
from ansible_collections.openclaw.ha.tests.unit.plugins.modules.redis_servers import NAME, Cluster, wait_for

ROLE = pathlib.Path(__file__).resolve().parents[4] / "roles/datacenter/files/openclaw_datacenter.py"
SETTINGS = {"down-after-milliseconds": 3000, "failover-timeout": 10000}


class Two:
    """``main``, which is live, and ``west``, its standby."""

    def __init__(self, directory):
        (directory / "main").mkdir()
        (directory / "west").mkdir()
        self.directory = directory
        self.main = Cluster(directory / "main")
        wait_for("replicas", lambda: self.main.client(self.main.redis[0]).info("replication")["connected_slaves"] == 2)
        self.west = Cluster(directory / "west", replicas=1, upstream=self.main.redis[1])
        wait_for("links of the standby", lambda: all(self.west.client(node).info("replication")["master_link_status"] == "up" for node in self.west.redis))

    @property
    def sites(self):
        return {"main": {"redis": self.main.redis}, "west": {"redis": self.west.redis}}

    def arguments(self, name):
        return {**getattr(self, name).arguments, "datacenter": name, "sites": self.sites, "remembered": str(self.directory / f"{name}.json")}

    def stop(self):
        self.main.stop()
        self.west.stop()


@pytest.fixture
def two(tmp_path):
    found = Two(tmp_path)
    yield found
    found.stop()


@pytest.fixture
def ask(run_module, two):
    def run(name="west", check=False, **changes):
        return run_module(redis_datacenter, check=check, **{**two.arguments(name), **changes})

    return run


@pytest.fixture
def claimed(ask):
    assert ask("main", state="claimed")["changed"]


def test_only_the_first_datacenter_may_claim_and_once(ask):
    found = ask("west")
    assert found["role"] == "none" and "run site.yml --limit main" in found["problem"]
    refused = ask("west", state="claimed")
    assert refused["failed"] and "is not the first datacenter" in refused["msg"]
    assert ask("main")["role"] == "active" and ask("main")["claim"] is None
    assert ask("main", check=True, state="claimed")["changed"] and ask("main")["claim"] is None
    assert ask("main", state="claimed")["changed"]
    assert not ask("main", state="claimed")["changed"]
    wait_for("the claim there", lambda: ask("west")["role"] == "standby")


@pytest.mark.usefixtures("claimed")
def test_a_standby_is_told_whom_to_follow(ask, two):
    found = wait_for("the claim there, and nothing behind", lambda: (found := ask("west"))["role"] == "standby" and found["behind"] == 0 and found)
    assert found["upstream"] == where(two.main.redis[1]) and not found["problem"]
    for node in two.main.redis[1:]:
        two.main.kill(node["host"])
    found = ask("west")
    assert found["upstream"] is None and "there is nobody to follow" in found["problem"] and found["behind"] is None


@pytest.mark.usefixtures("claimed")
def test_the_other_modules_know_a_standby(run_module, two):
    elsewhere = [where(node) for node in two.main.redis]
    view = run_module(sentinel_info, **two.west.arguments, elsewhere=elsewhere, standby=True)
    assert view["state"] == "standby" and view["problems"] == [] and view["primary"] is None
    # Not said to be one, it is a cluster without a primary.
    assert run_module(sentinel_info, **two.west.arguments)["state"] == "disagreed"
    strange = run_module(sentinel_info, **two.west.arguments, elsewhere=["192.0.2.1:6379"], standby=True)
    assert strange["state"] == "disagreed" and "which is in no other datacenter" in strange["problems"][0]


@pytest.mark.usefixtures("claimed")
def test_a_planned_move_takes_everything_along(ask, two):
    wait_for("the claim there", lambda: ask("west")["role"] == "standby")
    writer = two.main.client(two.main.redis[0])
    for number in range(200):
        writer.set(f"key:{number}", number)
    found = ask(state="caught_up", pause=20)
    assert [one["step"] for one in found["steps"]] == ["pause", "equal"] and found["behind"] == 0
    # Who writes now waits.
    with pytest.raises(Exception, match="[Tt]imeout"):
        two.main.client(two.main.redis[0], timeout=0.5).set("late", 1)
    for host in list(two.main.processes):
        two.main.kill(host)
    dry = ask(check=True, state="promoted", epoch=2, monitor_settings=SETTINGS)
    assert dry["changed"] and [one["step"] for one in dry["steps"]] == ["promote"] and two.west.client(two.west.redis[0]).role()[0] == "slave"
    found = ask(state="promoted", epoch=2, monitor_settings=SETTINGS, monitor_password="what-nobody-sees")
    assert not found["failed"], found["msg"]
    assert isinstance(found["offset"], int) and "what-nobody-sees" not in json.dumps({**found, "invocation": None})
    assert found["role"] == "active" and found["claim"] == {"datacenter": "west", "epoch": 2} and found["offset"] > 0
    primary = two.west.client(two.west.at(found["primary"]))
    assert primary.mget([f"key:{number}" for number in range(200)]) == [str(number) for number in range(200)]
    assert primary.get("late") is None
    for sentinel in two.west.sentinels:
        assert two.west.client(sentinel).execute_command("SENTINEL", "CKQUORUM", NAME).startswith("OK")
    assert all(two.west.client(node).config_get("replica-priority")["replica-priority"] == "100" for node in two.west.redis)
    again = ask(state="promoted", epoch=2, monitor_settings=SETTINGS)
    assert not again["changed"] and again["primary"] == found["primary"]
    older = ask(state="promoted", epoch=1, monitor_settings=SETTINGS)
    assert older["failed"] and "knows of epoch 2" in older["msg"] and "Nothing was changed" in older["msg"]


@pytest.mark.usefixtures("claimed")
def test_a_datacenter_that_is_gone_does_not_keep_each_step_waiting(ask, two):
    wait_for("the claim there", lambda: ask("west")["role"] == "standby")
    for host in list(two.main.processes):
        two.main.kill(host)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nodes = [{"host": "gone1", "address": "127.0.0.1", "port": silent.getsockname()[1]}]
        found = ask(state="promoted", epoch=2, monitor_settings=SETTINGS, sites={"main": {"redis": nodes}, "west": two.sites["west"]}, timeout=0.5)
        assert not found["failed"], found["msg"]
        # Who asked is in its queue; nobody was answered.
        silent.setblocking(False)
        asked = []
        with contextlib.suppress(BlockingIOError):
            while True:
                asked.append(silent.accept()[0])
        for one in asked:
            one.close()
    # Before the first step and after the last one.
    assert len(found["steps"]) >= 5 and 1 <= len(asked) <= 4, (found["steps"], len(asked))


@pytest.mark.usefixtures("claimed")
def test_writes_go_on_where_the_standby_does_not_catch_up(ask, two):
    wait_for("the claim there", lambda: ask("west")["role"] == "standby")
    # It follows nobody any more, and so lacks what is written now.
    for node in two.west.redis:
        two.west.client(node).execute_command("REPLICAOF", "127.0.0.1", 1)
    two.main.client(two.main.redis[0]).set("more", 1)
    refused = ask(state="caught_up", pause=20, wait=2)
    assert refused["failed"] and "has not caught up with main" in refused["msg"] and "Writes go on there" in refused["msg"]
    assert two.main.client(two.main.redis[0], timeout=1).set("more", 2)
    assert ask("main", state="caught_up")["failed"]


def service(two, name, tmp_path):
    """The service's own module and the configuration of one of its hosts."""
    sys.modules["datacenter"] = datacenter
    spec = importlib.util.spec_from_file_location("openclaw_datacenter", ROLE)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    state, run = tmp_path / f"state-{name}", tmp_path / f"run-{name}"
    state.mkdir()
    run.mkdir()
    password = tmp_path / "password"
    password.write_text("\n")
    host = program.Host(
        datacenter=name,
        sites={site: found["redis"] for site, found in two.sites.items()},
        local=where(getattr(two, name).redis[0]),
        access={"username": None, "password_file": str(password)},
        timeout=1.0,
        state=state,
        run=run,
    )
    return program, host, program.Servers(host)


@pytest.fixture
def systemctl(program, monkeypatch, tmp_path):
    """What the service asks of systemd, instead of systemd."""
    said = tmp_path / "systemctl.log"
    path = program("systemctl", f"import sys\nopen({str(said)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n")
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    return lambda: said.read_text().splitlines() if said.exists() else []


@pytest.mark.usefixtures("claimed")
def test_the_service_follows_a_failover_of_the_active_one(two, tmp_path, systemctl):
    program, host, servers = service(two, "west", tmp_path)
    seen = wait_for("the claim", lambda: (seen := program.look(host, servers))["state"] == "standby" and seen)
    assert seen["contact"]["offset"] >= seen["contact"]["own"] and host.remembered() == ("main", 1)
    # Whom it follows becomes the primary.
    leader = two.main.redis[1]
    two.main.client(leader).execute_command("REPLICAOF", "NO", "ONE")
    for node in (two.main.redis[0], two.main.redis[2]):
        two.main.client(node).execute_command("REPLICAOF", "127.0.0.1", leader["port"])

    def follows_a_replica():
        program.look(host, servers)
        info = two.west.client(two.west.redis[0]).info("replication")
        return info["master_port"] in (two.main.redis[0]["port"], two.main.redis[2]["port"]) and info["master_link_status"] == "up"

    wait_for("another one to follow", follows_a_replica)
    assert systemctl() == [] and not host.fence.exists()
    # With everybody gone it stays as it is, and says since when.
    for one in list(two.main.processes):
        two.main.kill(one)
    last = program.look(host, servers, {"seen": "then", "offset": 5, "own": 5})
    assert last["state"] == "standby" and "nobody there can be followed" in last["why"] and last["contact"]["seen"] == "then"


@pytest.mark.usefixtures("claimed")
def test_the_service_fences_a_datacenter_that_was_replaced_and_no_other(ask, two, tmp_path, systemctl):
    program, host, servers = service(two, "main", tmp_path)
    assert program.look(host, servers)["state"] == "active" and host.remembered() == ("main", 1)
    wait_for("the claim there", lambda: ask("west")["role"] == "standby")
    # As if main were cut off: west takes over, and then they see each other again.
    for node in two.west.redis:
        two.west.client(node).execute_command("REPLICAOF", "127.0.0.1", 1)
    assert not ask(state="promoted", epoch=2, monitor_settings=SETTINGS)["failed"]
    seen = program.look(host, servers)
    assert seen["state"] == "fenced" and "west has the conversations since epoch 2" in json.loads(host.fence.read_text())["reason"]
    assert systemctl() == ["kill --signal=SIGKILL openclaw-gateway@*.service", f"stop {' '.join(program.UNITS)}"]
    # It stays so, and asks nobody any more.
    assert program.look(host, servers)["reason"] == seen.get("reason", program.look(host, servers)["reason"])
    program2, west, theirs = service(two, "west", tmp_path)
    assert program2.look(west, theirs)["state"] == "active" and not west.fence.exists()


def test_the_command_line(two, tmp_path, systemctl, monkeypatch, capsys):
    program, host, _servers = service(two, "west", tmp_path)
    config = tmp_path / "config.json"
    document = {"datacenter": "west", "sites": host.sites, "local": host.local, "access": host.access, "timeout": 1.0, "state": str(host.state)}
    config.write_text(json.dumps({**document, "run": str(host.run), "inputs": {}}))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["openclaw-datacenter", "--config", str(config), *words])
        program.main()
        return json.loads(capsys.readouterr().out)

    with pytest.raises(SystemExit, match="Nothing was seen yet"):
        call("status")
    assert call("claim", "--datacenter", "west", "--epoch", "2") == {"changed": True}
    assert call("claim", "--datacenter", "west", "--epoch", "2") == {"changed": False}
    with pytest.raises(SystemExit, match="epoch 1 is older"):
        call("claim", "--datacenter", "west", "--epoch", "1")
    assert call("fence", "--reason", "a test") == {"changed": True} and call("fence", "--reason", "again") == {"changed": False}
    assert json.loads(host.fence.read_text())["reason"] == "a test" and len(systemctl()) == 4
    with pytest.raises(SystemExit, match="This host is fenced"):
        call("claim", "--datacenter", "west", "--epoch", "3")
    assert call("release") == {"changed": True} and call("release") == {"changed": False}
    assert not host.fence.exists() and host.remembered() is None


def turn(number):
    return json.dumps({"id": f"turn-{number}", "messages": []})


def test_turns_that_only_the_old_files_have_are_counted(run_module, two, tmp_path):
    old, new = two.main, two.west
    then = old.client(old.redis[0])
    for number in range(3):
        then.rpush("oc:conv:web:one", turn(number))
    then.rpush("oc:conv:web:two", turn("x"))
    wait_for("what it has", lambda: new.client(new.redis[0]).llen("oc:conv:web:two") == 1)
    new.client(new.redis[0]).execute_command("REPLICAOF", "NO", "ONE")
    then.rpush("oc:conv:web:one", turn(3))
    then.rpush("oc:conv:web:three", turn("y"))
    # While it flushes its file, Redis answers before it has written.
    wait_for("all of it in the file", lambda: then.info("persistence")["aof_buffer_length"] == 0)
    old.kill("node1")
    arguments = {"directory": str(old.directory / "node1"), "redis": new.redis, "report": str(tmp_path / "turns.json")}
    found = run_module(redis_leftover, **arguments)
    assert {name: found[name] for name in ("turns", "conversations", "compared", "changed")} == {"turns": 2, "conversations": 2, "compared": 6, "changed": True}
    told = json.loads((tmp_path / "turns.json").read_text())
    assert [one["id"] for one in told["web:one"]] == ["turn-3"] and list(told) == ["web:one", "web:three"]
    assert (tmp_path / "turns.json").stat().st_mode & 0o777 == 0o600
    assert not run_module(redis_leftover, **arguments)["changed"]
    refused = run_module(redis_leftover, **{**arguments, "directory": str(tmp_path)})
    assert refused["failed"] and "has neither an appendonlydir nor a dump.rdb" in refused["msg"]
    manifest = next((old.directory / "node1/appendonlydir").glob("*.base.rdb"))
    manifest.write_bytes(b"not this")
    refused = run_module(redis_leftover, **arguments)
    assert refused["failed"] and "cannot be loaded" in refused["msg"]
