"""Backups, checks and restore tests with a real restic and a real Redis."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import threading

import pytest
from backup_rig import CONVERSATIONS, KEY, PASSWORD, USER_PASSWORD, packs
from openclaw_backup import actions, data, plan, records
from openclaw_backup.restic import Repository


def test_a_backup_and_its_proof(host):
    record = host.make()
    (part,) = record["parts"]
    assert part["what"] == "redis" and part["conversations"] == len(CONVERSATIONS) and part["keys"] == len(CONVERSATIONS) + 2
    assert part["bytes"] > 100 and len(part["snapshot"]) == 8 and record["good_at"] == record["ended"]
    proof = actions.run(host.config, "prove")
    assert proof["ok"], proof["problems"]
    assert proof["parts"][0]["equal"] and proof["parts"][0]["conversations"] == len(CONVERSATIONS) and proof["snapshot"] == part["snapshot"]
    assert host.scratch_leftovers() == []
    metrics = json.loads(pathlib.Path(host.config["state_directory"], "metrics.json").read_text())
    assert metrics["make"]["ok"] == metrics["prove"]["ok"] == 1 and metrics["prove"]["failures"] == 0
    assert "user1" not in json.dumps(metrics)


def test_the_manifest_is_of_the_very_dump(host):
    with actions.workplace(host.config, "here") as directory:
        _path, databases = data.dump(host.config["redis"], directory)
        host.server.client().rpush("oc:conv:api:user0", "written after the dump")
        manifest = data.make_manifest(directory, host.config["redis"], databases, {})
    assert {key: one["length"] for key, one in manifest["conversations"].items()} == {key: len(turns) for key, turns in CONVERSATIONS.items()}
    assert manifest["conversations"]["oc:conv:api:user3"]["expires_at"] and manifest["conversations"]["oc:conv:api:user0"]["expires_at"] is None


def changed_manifest(host, change):
    """A backup whose manifest says something else than its dump holds."""
    with actions.workplace(host.config, "redis") as directory:
        _path, databases = data.dump(host.config["redis"], directory)
        manifest = data.make_manifest(directory, host.config["redis"], databases, {"host": "node1"})
        change(manifest)
        pathlib.Path(directory, data.MANIFEST).write_text(json.dumps(manifest))
        host.repository().backup([directory], actions.tags(host.config, "redis"), "node1")


CHANGES = {
    "content": (lambda one: one["conversations"]["oc:conv:api:user1"].update(digest="0" * 64), "oc:conv:api:user1: content differs"),
    "length": (lambda one: one["conversations"]["oc:conv:api:user1"].update(length=99), "length differs (4 instead of 99)"),
    "missing": (lambda one: one["conversations"].update({"oc:conv:gone": one["conversations"]["oc:conv:api:user1"]}), "oc:conv:gone: is missing"),
    "unknown": (lambda one: one["conversations"].pop("oc:conv:api:user2"), "is not in the manifest"),
    "keys": (lambda one: one.update(keys=1000), "6 keys instead of 1000"),
    "another dump": (lambda one: one.update(sha256="0" * 64), "is not the one that its manifest was made from"),
    "no manifest": (lambda one: one.pop("conversations"), "no sound conversations"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_the_restore_test_finds_a_difference(case, host):
    change, words = CHANGES[case]
    changed_manifest(host, change)
    proof = actions.run(host.config, "prove")
    assert not proof["ok"] and words in proof["problems"][0] and proof["failures"] == 1 and proof["good_at"] is None
    assert host.scratch_leftovers() == []


def test_what_has_expired_since_is_no_difference(host):
    # Longer than the backup takes, which has to see it alive.
    host.server.client().pexpire("oc:conv:api:user3", 10000)
    host.make()
    host.server.until(lambda: not host.server.client().exists("oc:conv:api:user3"))
    proof = actions.run(host.config, "prove")
    assert proof["ok"] and proof["parts"][0]["expired"] == 1 and proof["parts"][0]["conversations"] == 3 and proof["parts"][0]["keys"] == 6


def test_a_failure_is_recorded_and_the_good_one_remembered(host):
    good = host.make()
    shutil.rmtree(host.config["repository"]["location"])
    for count in (1, 2):
        record = actions.run(host.config, "make")
        assert not record["ok"] and record["failures"] == count
        assert record["good_at"] == good["good_at"] and record["good"] == good["parts"]
        assert "backup_repository" in record["problems"][0] and "there is no repository" in record["problems"][0]
    assert json.loads(pathlib.Path(host.config["state_directory"], "metrics.json").read_text())["make"]["failures"] == 2


def test_a_repository_that_went_away_is_never_made_anew(host):
    shutil.rmtree(host.config["repository"]["location"])
    with pytest.raises(plan.Problem, match="there is no repository; see that it is mounted"):
        actions.init(host.config)
    assert not os.path.exists(host.config["repository"]["location"])


def test_another_repository_in_its_place_is_refused(host):
    shutil.rmtree(host.config["repository"]["location"])
    host.repository().make()
    record = actions.run(host.config, "make")
    assert "it is another repository" in record["problems"][0] and host.repository().snapshots() == []


def test_a_wrong_password(host):
    host.password_file.write_text("not this one")
    record = actions.run(host.config, "make")
    assert record["problems"] == [
        f"backup_repository {host.config['repository']['location']}: its password is another one; set backup_password to the one that it was made with."
    ]


def test_a_damaged_pack_is_found_by_check_proof_and_restore(host):
    host.make()
    for pack in packs(host.config["repository"]["location"]):
        pack.chmod(0o600)
        content = pack.read_bytes()
        pack.write_bytes(content[:10] + bytes(byte ^ 255 for byte in content[10:200]) + content[200:])
    found = [actions.run(host.config, "check") for _part in range(2)]
    assert any(not record["ok"] for record in found) and all("it is damaged" in problem for record in found for problem in record["problems"])
    shutil.rmtree(pathlib.Path(host.config["state_directory"], "cache"))
    proof = actions.run(host.config, "prove")
    assert not proof["ok"] and "cannot be read" in proof["problems"][0] and host.scratch_leftovers() == []


def test_each_check_reads_the_next_part(host):
    host.make()
    assert [actions.run(host.config, "check")["part"] for _run in range(3)] == [1, 2, 1]


def test_no_snapshot_yet(host):
    proof = actions.run(host.config, "prove")
    assert "it has no snapshot of that kind" in proof["problems"][0]


def test_retention(host):
    for number in range(4):
        host.server.client().rpush("oc:conv:api:user0", f"more {number}")
        host.make()
    kept = host.repository().snapshots()
    assert len(kept) == 2
    assert actions.run(host.config, "prove")["parts"][0]["conversations"] == len(CONVERSATIONS)


def test_off_site(host):
    offsite = host.offsite()
    actions.init(host.config)
    host.make()
    host.make()
    assert {one["time"] for one in offsite.snapshots()} == {one["time"] for one in host.repository().snapshots()} and len(offsite.snapshots()) == 2
    shutil.rmtree(host.config["repository"]["location"])
    host.config["repository"] = host.config["offsite"]
    host.config["offsite"] = None
    pathlib.Path(host.config["state_directory"], "backup_repository.id").unlink()
    assert actions.run(host.config, "prove")["ok"]


def test_off_site_that_is_away_fails_the_run_but_not_the_backup(host):
    host.offsite()
    actions.init(host.config)
    shutil.rmtree(host.config["offsite"]["location"])
    record = actions.run(host.config, "make")
    assert record["parts"][0]["what"] == "redis" and record["problems"][0].startswith("off-site: backup_offsite_repository")
    assert len(host.repository().snapshots()) == 1


def test_the_gateways_without_their_secrets(host):
    home = host.gateway()
    record = host.make()
    assert [part["what"] for part in record["parts"]] == ["redis", "gateway"]
    target = host.directory / "look"
    host.repository().restore(host.repository().snapshots("gateway")[0]["id"], str(target))
    found = sorted(str(path.relative_to(f"{target}{home}")) for path in target.rglob("*") if path.is_file())
    assert found == ["etc/1/openclaw.json", "lib/1/2026.9.6/workspace/notes.md"]


def test_a_gateway_without_files_is_a_problem(host):
    home = host.gateway()
    shutil.rmtree(home / "lib")
    record = actions.run(host.config, "make")
    assert "there is nothing at" in record["problems"][0] and [part["what"] for part in record["parts"]] == ["redis"]


def test_redis_away_is_recorded_and_the_gateway_saved(host):
    host.gateway()
    host.server.stop()
    record = actions.run(host.config, "make")
    assert "does not answer" in record["problems"][0] and [part["what"] for part in record["parts"]] == ["gateway"]


def test_an_unreachable_repository(bare):
    bare.config["repository"]["location"] = "rest:http://user:hidden-password@127.0.0.1:1/"
    bare.config["answer_within"] = 2
    record = actions.run(bare.config, "make")
    assert "it cannot be reached" in record["problems"][0] and "hidden-password" not in json.dumps(record)


def test_a_full_disk(host, tmp_path):
    """Redis is told to write where there is hardly any room."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=True)
    try:
        shutil.copytree(host.config["repository"]["location"], small / "repository")
        host.config["repository"]["location"] = str(small / "repository")
        host.server.client().set("big", os.urandom(200_000))
        record = actions.run(host.config, "make")
        assert not record["ok"] and "no space is left" in record["problems"][0]
    finally:
        subprocess.run(["umount", small], check=True)


def test_no_room_is_said_before_anything_is_written(host, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    record = actions.run(host.config, "make")
    assert "are needed and 0.0 MB are free" in record["problems"][0]


def test_a_locked_repository_is_waited_for(host):
    lock = threading.Event()
    seen = []

    def program(repository, words, seconds, extra):
        if words[0] == "backup" and not lock.is_set():
            seen.append(words)
            lock.set()
            return 1, "", "Fatal: unable to create lock in backend: repository is already locked exclusively by PID 1"
        return original(repository, words, seconds, extra)

    original = Repository._once
    Repository._once = program
    try:
        host.config["lock_wait"] = 30
        host.make()
        host.config["lock_wait"] = 0
        lock.clear()
        record = actions.run(host.config, "make")
        assert "it stayed locked" in record["problems"][0]
    finally:
        Repository._once = original
    assert len(seen) == 2


def test_a_stale_lock_is_removed(host):
    """The lock of a process on this host that is gone."""
    repository = host.repository()
    process = subprocess.Popen(
        ["restic", "backup", "--stdin", "--quiet"], env=repository.environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    locks = pathlib.Path(host.config["repository"]["location"], "locks")
    # restic writes it under another name first.
    host.server.until(lambda: [name for name in os.listdir(locks) if "-tmp-" not in name])
    process.kill()
    process.communicate()
    assert os.listdir(locks)
    host.make()  # its retention needs the repository for itself
    assert not os.listdir(locks)


def test_two_runs_on_one_host(host):
    with actions.alone(host.config):
        record = actions.run(host.config, "make")
    assert "another run of openclaw-backup on this host" in record["problems"][0]


def test_an_unforeseen_error_leaves_its_record(host, monkeypatch):
    monkeypatch.setattr(data, "dump", lambda *_arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        actions.run(host.config, "make")
    assert not records.read(host.config["state_directory"])["make"]["ok"]


def test_secrets_are_in_no_argument_no_output_and_no_file_of_the_state(host):
    seen = []

    def watch():
        while not done.is_set():
            for entry in os.listdir("/proc"):
                if entry.isdigit():
                    try:
                        seen.append(pathlib.Path("/proc", entry, "cmdline").read_bytes())
                    except OSError:
                        continue

    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        code, out, err = host.command("make")
        assert code == 0, err
        assert host.command("prove")[0] == 0
        assert host.command("status")[0] == 0
    finally:
        done.set()
        watcher.join()
    lines = b"\n".join(seen)
    assert b"restic\0backup" in lines and b"redis-server" in lines, "the watcher saw nothing"
    for secret in (PASSWORD, USER_PASSWORD, KEY):
        assert secret.encode() not in lines
    for path in pathlib.Path(host.config["state_directory"]).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in (PASSWORD, USER_PASSWORD, KEY)), path
    assert json.loads(out)["ok"]
    state = pathlib.Path(host.config["state_directory"])
    assert (state / "records/make.json").stat().st_mode & 0o077 == 0 and (state / "metrics.json").stat().st_mode & 0o777 == 0o644


def test_what_would_be_done(host):
    code, out, _err = host.command("make", "--dry")
    assert code == 0 and json.loads(out)["would"] == ["Redis: 6 keys would be saved here: it is the primary, and no replica is online."]
    assert host.repository().snapshots() == []


def test_of_two_servers_the_replica_saves(host, redis_server, tmp_path):
    replica = redis_server(tmp_path / "replica", f"replicaof 127.0.0.1 {host.server.port}", *host.server.settings[1:])
    assert replica.start()
    replica.until(lambda: replica.client().info("replication")["master_link_status"] == "up")
    node = {"host": "node2", "address": "127.0.0.1", "port": replica.port}
    # As the role announces itself in an inventory: by address and port.
    host.config["redis"]["nodes"].append(node)
    record = actions.run(host.config, "make")
    assert record["ok"] and record["skipped"].startswith("node2 saves Redis") and record["good_at"] is None
    host.config |= {"host": "node2", "redis": {**host.config["redis"], "port": replica.port}}
    record = host.make()
    assert record["parts"][0]["role"] == "slave" and record["parts"][0]["conversations"] == len(CONVERSATIONS)
    assert actions.run(host.config, "prove")["ok"]
    replica.stop()
