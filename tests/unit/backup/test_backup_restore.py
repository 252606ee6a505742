"""The steps of a restore on one host, with a real restic and a real Redis, and the start-up guard of the role redis."""

from __future__ import annotations

import getpass
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from backup_rig import CONVERSATIONS, ROOT, packs
from openclaw_backup import actions, plan, restore


def stopped(_unit):
    return False


def conversations(server):
    client = server.client()
    return {key: client.lrange(key, 0, -1) for key in client.scan_iter("oc:conv:*")}


@pytest.fixture
def guard(host):
    """The start-up guard of the role redis on this host's files: ``(may Redis start, what it said)``."""
    home = host.directory / "guard"
    home.mkdir()
    shutil.copy(ROOT / "roles/redis/files/start_guard.py", home)
    shutil.copy(ROOT / "plugins/module_utils/aof.py", home)
    (host.directory / "etc/settings.conf").write_text(f'appendonly yes\ndir "{host.directory}/data"\n')

    def run(action):
        files = [host.directory / "etc/redis.conf", host.directory / "etc/settings.conf"]
        done = subprocess.run([sys.executable, "-B", home / "start_guard.py", action, getpass.getuser(), *files], capture_output=True, text=True, check=False)
        return done.returncode == 0, done.stderr

    return run


def test_a_whole_restore_over_other_data(host, guard):
    assert guard("record")[0]
    host.make()
    host.server.client().flushall()
    host.server.client().rpush("oc:conv:api:later", "written after the backup")
    staged = restore.stage(host.config, "latest")
    assert staged["equal"] and staged["conversations"] == len(CONVERSATIONS) and staged["made_by"] == "node1"
    manifest = restore.manifest_of(host.config)
    host.server.stop()
    swapped = restore.swap(host.config, "20260101T000000", running=stopped)
    assert (host.directory / "etc/redis.conf").read_text() == "# Redis owns it\nrequirepass something\n"
    # The guard takes what was restored for what it is, and not for data that was lost.
    assert guard("check") == (True, "")
    assert host.server.start()
    assert conversations(host.server) == CONVERSATIONS
    assert restore.compare(host.config, manifest)["equal"]
    # Nothing is lost: what was there is a data directory beside it.
    assert pathlib.Path(swapped["aside"]).name == "before-restore-20260101T000000"
    host.server.stop()
    shutil.rmtree(host.directory / "data/appendonlydir")
    shutil.copytree(f"{swapped['aside']}/appendonlydir", host.directory / "data/appendonlydir")
    assert host.server.start()
    assert conversations(host.server) == {"oc:conv:api:later": ["written after the backup"]}


def test_a_replica_is_emptied_and_follows(host):
    host.server.stop()
    found = restore.swap(host.config, "s", ("192.0.2.9", 6379), running=stopped)
    assert found["moved"] == ["appendonlydir"] and not (host.directory / "data/appendonlydir").exists()
    assert (host.directory / "etc/redis.conf").read_text().endswith("replicaof 192.0.2.9 6379\n")
    # Once more, after a run that was interrupted: what was moved aside stays there.
    assert restore.swap(host.config, "s", ("192.0.2.9", 6379), running=stopped)["moved"] == []


def test_a_server_that_runs_is_not_touched(host):
    before = sorted(os.listdir(host.directory / "data"))
    with pytest.raises(plan.Problem, match="runs; stop it first"):
        restore.swap(host.config, "s", running=lambda unit: True)
    assert sorted(os.listdir(host.directory / "data")) == before


def test_nothing_staged(host):
    with pytest.raises(plan.Problem, match="run stage first"):
        restore.swap(host.config, "s", running=stopped)
    with pytest.raises(plan.Problem, match="run stage first"):
        restore.manifest_of(host.config)
    assert "appendonlydir" in os.listdir(host.directory / "data")


def test_only_proven(host):
    host.make()
    before = sorted(os.listdir(host.directory / "data"))
    assert restore.stage(host.config, "latest", discard=True)["equal"]
    assert sorted(os.listdir(host.directory / "data")) == before


def damage(host):
    for pack in packs(host.config["repository"]["location"]):
        pack.chmod(0o600)
        pack.write_bytes(bytes(byte ^ 255 for byte in pack.read_bytes()))
    shutil.rmtree(pathlib.Path(host.config["state_directory"], "cache"))


REFUSED = {
    "wrong password": (lambda host: host.password_file.write_text("x"), "latest", "its password is another one; set backup_password"),
    "damaged": (damage, "latest", "is damaged"),
    "no repository": (lambda host: shutil.rmtree(host.config["repository"]["location"]), "latest", "there is no repository"),
    "no such snapshot": (lambda host: None, "0123abcd", "found no snapshot '0123abcd'"),
    "another site": (lambda host: host.config.update(site="elsewhere"), "latest", "Redis of elsewhere: it has no snapshot of that kind"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_one_sentence_before_anything_is_changed(case, host):
    host.make()
    change, wanted, words = REFUSED[case]
    change(host)
    before = sorted(os.listdir(host.directory / "data"))
    code, out, err = host.command("stage", wanted)
    assert code == 1 and out == "" and words in err and err.startswith("node1: ") and len(err.splitlines()) == 1, err
    assert sorted(os.listdir(host.directory / "data")) == before
    assert conversations(host.server) == CONVERSATIONS


def test_a_backup_of_the_new_and_empty_cluster_is_not_taken_for_the_newest(host):
    host.server.client().flushall()
    snapshot = host.make()["parts"][0]["snapshot"]
    with pytest.raises(plan.Problem, match="holds no conversation at all; name the one that is meant"):
        restore.stage(host.config, "latest")
    assert restore.stage(host.config, snapshot)["keys"] == 0


def test_whether_it_holds_data(host):
    running = restore.holds(host.config, running=lambda unit: True)
    assert running == {"set_up": True, "running": True, "keys": 6, "bytes": running["bytes"], "data": True}
    host.server.client().flushall()
    assert not restore.holds(host.config, running=lambda unit: True)["data"]
    host.server.stop()
    # Not running, its files count, and those hold what was there.
    assert restore.holds(host.config, running=stopped)["data"]
    shutil.rmtree(host.directory / "data/appendonlydir")
    assert not restore.holds(host.config, running=stopped)["data"]
    # A snapshot of one short conversation is hardly longer than an empty one; one that cannot be read may hold anything.
    for commands, data in ((["FLUSHALL"], False), (["RPUSH", "oc:conv:a", "x"], True)):
        assert host.server.start("appendonly no")
        host.server.client().execute_command(*commands)
        host.server.client().save()
        host.server.stop()
        assert restore.holds(host.config, running=stopped)["data"] is data
    (host.directory / "data/dump.rdb").write_bytes(b"REDIS0010 and no more")
    assert restore.holds(host.config, running=stopped)["data"]
    (host.directory / "data/dump.rdb").unlink()
    # systemd may be about to start one that cannot start.
    assert restore.holds(host.config, running=lambda unit: True)["keys"] is None
    (host.directory / "etc/redis.conf").unlink()
    assert not restore.holds(host.config, running=stopped)["set_up"]


def test_the_comparison_finds_what_was_written_meanwhile(host):
    host.make()
    restore.stage(host.config, "latest")
    code, manifest, _err = host.command("manifest")
    assert code == 0
    assert host.command("compare", stdin=manifest)[0] == 0
    host.server.client().rpush("oc:conv:api:user0", "more")
    code, out, _err = host.command("compare", stdin=manifest)
    assert code == 1 and json.loads(out)["differs"] == ["oc:conv:api:user0: length differs (2 instead of 1)"]
    assert host.command("compare", stdin="nothing")[0] == 2


def test_waiting_has_an_end(host):
    restore.ready(host.config, 5)
    with pytest.raises(plan.Problem, match="as a replica of 192.0.2.9:6379: not seen within 0.2 s"):
        restore.synced(host.config, "192.0.2.9:6379", 0.2)
    host.server.stop()
    with pytest.raises(plan.Problem, match="to answer: not seen"):
        restore.ready(host.config, 0.2)


def test_the_gateways_files_go_back_and_what_was_there_is_kept(host):
    home = host.gateway()
    host.make()
    (home / "etc/1/openclaw.json").write_text("changed")
    shutil.rmtree(home / "lib/1/2026.9.6")
    dry = restore.gateway(host.config, "latest", "s", dry=True)
    assert dry["replaced"] == [f"{home}/etc/1/openclaw.json"] and dry["made"] == [f"{home}/lib/1/2026.9.6/workspace/notes.md"]
    assert (home / "etc/1/openclaw.json").read_text() == "changed" and not (home / "lib/1/2026.9.6").exists()
    done = restore.gateway(host.config, "latest", "s")
    assert (home / "etc/1/openclaw.json").read_text() == "{}" and (home / "lib/1/2026.9.6/workspace/notes.md").read_text() == "notes"
    assert pathlib.Path(f"{done['aside']}{home}/etc/1/openclaw.json").read_text() == "changed"
    assert (home / "etc/1/secrets.env").read_text() == "TOKEN=hidden"
    again = restore.gateway(host.config, "latest", "t")
    assert again["replaced"] == again["made"] == [] and again["aside"] == ""


def test_commands_for_what_is_not_on_the_host(bare):
    actions.init(bare.config)
    assert "no gateway on this host" in bare.command("gateway", "latest", "--stamp", "s")[2]
    bare.config["redis"] = None
    assert "no Redis on this host" in bare.command("holds")[2]


def test_two_servers_one_gets_the_data_and_the_other_follows(host, redis_server, tmp_path):
    """The steps of restore.yml in their order, where the two had drifted apart."""
    host.make()
    host.server.client().flushall()
    replica = redis_server(tmp_path / "replica", *host.server.settings)
    assert replica.start()
    replica.client().rpush("oc:conv:api:stray", "only here")
    (tmp_path / "etc2").mkdir()
    (tmp_path / "etc2/redis.conf").write_text("# Redis owns it\n")
    there = {"data_directory": str(replica.directory), "etc_directory": str(tmp_path / "etc2"), "port": replica.port}
    second = {**host.config, "host": "node2", "redis": {**host.config["redis"], **there}}
    restore.stage(host.config, "latest")
    manifest = restore.manifest_of(host.config)
    for server in (host.server, replica):
        server.stop()
    restore.swap(host.config, "s", running=stopped)
    kept = restore.swap(second, "s", ("127.0.0.1", host.server.port), running=stopped)
    assert host.server.start()
    restore.ready(host.config, 30)
    follow = (tmp_path / "etc2/redis.conf").read_text().splitlines()[-1]
    assert replica.start(follow)
    restore.synced(second, f"127.0.0.1:{host.server.port}", 30)
    for one in (host.config, second):
        report = restore.compare(one, manifest)
        assert report["equal"] and report["conversations"] == len(CONVERSATIONS), report
    assert conversations(replica) == CONVERSATIONS
    assert any(b"only here" in path.read_bytes() for path in pathlib.Path(kept["aside"]).rglob("*") if path.is_file())
    replica.stop()
