"""One host with Redis and the backup's program, in a directory of its own."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

from openclaw_backup import actions, config

from ansible_collections.openclaw.ha.plugins.module_utils.redis_access import RULES

ROOT = pathlib.Path(__file__).resolve().parents[3]
PASSWORD, USER_PASSWORD, KEY = "repository pass/word", "the-backup-users-password", "an-access-key-that-is-secret"
CONVERSATIONS = {f"oc:conv:api:user{number}": [f'{{"turn":{turn}}}' for turn in range(number * 3 + 1)] for number in range(4)}


class Host:
    """``config`` is what the program reads; ``server`` the Redis server, whose user ``backup`` is the collection's."""

    def __init__(self, directory, redis_server):
        self.directory = directory
        self.password_file = directory / "password"
        self.password_file.write_text(PASSWORD)
        (directory / "state").mkdir()
        (directory / "etc").mkdir()
        (directory / "etc/redis.conf").write_text("# Redis owns it\nreplicaof 192.0.2.1 6379\nrequirepass something\n")
        digest = hashlib.sha256(USER_PASSWORD.encode()).hexdigest()
        self.server = redis_server(directory / "data", "appendonly yes", f"user backup on #{digest} resetchannels {RULES['redis']['backup']}")
        node = {"host": "node1", "address": "127.0.0.1", "port": self.server.port}
        self.config = {
            "host": "node1",
            "site": "main",
            "state_directory": str(directory / "state"),
            "repository": {"location": str(directory / "repository"), "password_file": str(self.password_file), "environment": {"AWS_SECRET_ACCESS_KEY": KEY}},
            "offsite": None,
            "lock_wait": 1,
            "answer_within": 20,
            "keep": {"last": 2, "daily": 0, "weekly": 0, "monthly": 0},
            "check_parts": 2,
            "max_age": 14,
            "restore_max_age": 50,
            "redis": {
                **{name: node[name] for name in ("address", "port")},
                "nodes": [node],
                "username": "backup",
                "password": USER_PASSWORD,
                "tls_ca": None,
                "tls_cert": None,
                "tls_key": None,
                "user": "root",
                "unit": "openclaw-no-such-unit.service",
                "data_directory": str(directory / "data"),
                "etc_directory": str(directory / "etc"),
                "settings": {"appenddirname": "appendonlydir", "appendfilename": "appendonly.aof", "dbfilename": "dump.rdb"},
                "load_within": 30,
            },
            "gateway": None,
        }

    def ready(self):
        assert self.server.start()
        self.fill()
        assert actions.init(self.config) == ["backup_repository"]
        return self

    def fill(self):
        client = self.server.client()
        for key, turns in CONVERSATIONS.items():
            client.rpush(key, *turns)
        client.pexpire("oc:conv:api:user3", 3_600_000)
        client.set("oc:lock:api:user1", "1", px=3_600_000)
        client.hset("oc:session:api:user1", mapping={"a": "1", "b": "2"})

    def make(self):
        record = actions.run(self.config, "make")
        assert record["ok"], record["problems"]
        return record

    def repository(self):
        return actions.repositories(self.config)[0]

    def offsite(self):
        """Add a second repository with another password."""
        other = self.directory / "other-password"
        other.write_text("another password")
        self.config["offsite"] = {"location": str(self.directory / "offsite"), "password_file": str(other), "environment": {}}
        return actions.repositories(self.config)[1]

    def gateway(self):
        """Give the host a gateway's files."""
        for name, text in {"etc/1/openclaw.json": "{}", "etc/1/secrets.env": "TOKEN=hidden", "lib/1/2026.9.6/workspace/notes.md": "notes"}.items():
            path = self.directory / "gateway" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        home = self.directory / "gateway"
        self.config["gateway"] = {"paths": [f"{home}/etc", f"{home}/lib/*/*/workspace"], "exclude": ["secrets.env"], "user": "root"}
        return home

    def write_config(self):
        path = self.directory / "config.json"
        path.write_text(json.dumps(config.check(self.config)))
        return path

    def command(self, *words, stdin="", environment=None):
        """The program as a process of its own: ``(exit status, stdout, stderr)``."""
        done = subprocess.run(
            [sys.executable, "-B", "-m", "openclaw_backup", "--config", str(self.write_config()), *words],
            env={**os.environ, "PYTHONPATH": str(ROOT / "roles/backup/files"), **(environment or {})},
            capture_output=True,
            text=True,
            input=stdin,
            timeout=120,
            check=False,
        )
        for secret in (PASSWORD, USER_PASSWORD, KEY):
            assert secret not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    def scratch_leftovers(self):
        """What a run has left in its directory beside its records."""
        stays = {"cache", "lock", "records", "metrics.json", "backup_repository.id", "backup_offsite_repository.id"}
        return sorted(set(os.listdir(self.config["state_directory"])) - stays)

    def stop(self):
        self.server.stop(kill=True)


def packs(location):
    """The files of a repository that hold data."""
    return sorted(path for path in pathlib.Path(location, "data").rglob("*") if path.is_file())
