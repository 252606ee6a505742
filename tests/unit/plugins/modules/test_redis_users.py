"""redis_users and redis_config against a real Redis and real Sentinels on loopback, with and without TLS."""

import getpass
import os
import shutil
import subprocess

import pytest
import redis

from ansible_collections.openclaw.ha.plugins.module_utils import redis_access, redis_client
from ansible_collections.openclaw.ha.plugins.modules import redis_config, redis_users
from ansible_collections.openclaw.ha.tests.unit.plugins.modules.redis_servers import wait_for
from tests.ports import free_port

OLD = "old-secret-of-the-test"
NEW = "new-secret-of-the-test"


def certify(directory, name, authority=None, days=1):
    """A key and a certificate for 127.0.0.1, signed by an authority or, without one, by itself."""
    # Python 3.13 wants an authority to say what its key is for.
    signer = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    if authority:
        signer = ["-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-addext", "subjectAltName=IP:127.0.0.1"]
        signer += ["-addext", "basicConstraints=critical,CA:FALSE"]
    key = ["-key", f"{directory}/{name}.key"] if (directory / f"{name}.key").exists() else ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    subprocess.run(
        ["openssl", "req", "-x509", *key, "-noenc", "-days", str(days), "-subj", f"/CN={name}", *signer]
        + (["-keyout", f"{directory}/{name}.key"] if "-newkey" in key else [])
        + ["-out", f"{directory}/{name}.pem"],
        check=True,
        capture_output=True,
    )
    return directory / name


class Server:
    """One real server with the users that the module gives it; ``kind``: redis or sentinel."""

    def __init__(self, directory, kind, tls, run_module):
        self.directory, self.kind, self.run_module = directory, kind, run_module
        self.node = {"address": "127.0.0.1", "port": free_port()}
        self.file, self.remembered = directory / "users.acl", directory / "etc" / "admin"
        self.process = None
        self.tls = {}
        if tls:
            authority = certify(directory, "ca")
            certify(directory, "server", authority)
            self.tls = {"tls_ca": f"{authority}.pem", "tls_cert": f"{directory}/server.pem", "tls_key": f"{directory}/server.key"}

    def access(self, user="admin", secret=OLD):
        return {"username": user, "password": redis_access.passwords(secret, self.kind)[user], **self.tls}

    def ensure(self, secret=OLD, check=False, **changes):
        return self.run_module(
            redis_users,
            check=check,
            **{
                "kind": self.kind,
                **self.node,
                "redis_access": self.access(secret=secret),
                "passwords": redis_access.passwords(secret, self.kind),
                "file": str(self.file),
                "remembered": str(self.remembered),
                "user": getpass.getuser(),
                **changes,
            },
        )

    def start(self, *lines):
        program = f"redis-{'server' if self.kind == 'redis' else 'sentinel'}"
        assert shutil.which(program), f"{program} is needed by this test: apt-get install {program}"
        port = self.node["port"]
        where = [f"port {port}"]
        if self.tls:
            where = ["port 0", f"tls-port {port}", f"tls-ca-cert-file {self.tls['tls_ca']}", "tls-replication yes"]
            where += [f"tls-cert-file {self.tls['tls_cert']}", f"tls-key-file {self.tls['tls_key']}"]
        config = self.directory / "server.conf"
        config.write_text("\n".join([*where, "bind 127.0.0.1", f"dir {self.directory}", f"aclfile {self.file}", *lines]) + "\n")
        with open(self.directory / "log", "a", encoding="utf-8") as log:
            self.process = subprocess.Popen([program, str(config)], stdout=log, stderr=subprocess.STDOUT)
        wait_for(f"{program} on {port}", self.answers)
        return self

    def answers(self):
        """Whether it has read its users: it listens before."""
        try:
            return self.client().ping()
        except redis.AuthenticationError:
            return True
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait(timeout=10)
            self.process = None

    def client(self, user="admin", secret=OLD):
        return redis_client.connect(self.node, self.access(user, secret), timeout=5)

    def accepts(self, user="admin", secret=OLD):
        try:
            return bool(self.client(user, secret).ping())
        except redis.AuthenticationError:
            return False


@pytest.fixture
def make(tmp_path, run_module):
    servers = []

    def new(kind="redis", tls=False, start=True):
        server = Server(tmp_path, kind, tls, run_module)
        servers.append(server)
        assert server.ensure()["live"] is False  # nothing listens: the file is written
        return server.start() if start else server

    yield new
    for server in servers:
        server.stop()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", ["redis", "sentinel"])
def test_users_of_a_new_server_and_their_rotation(make, kind, tls):
    server = make(kind, tls)
    others = sorted(set(redis_access.RULES[kind]) - {"admin"})
    assert all(server.accepts(user) for user in redis_access.RULES[kind])
    assert server.ensure()["changed"] is False, "the server says its users in the way that is expected"
    with pytest.raises(redis.AuthenticationError):
        redis_client.connect(server.node, server.tls, timeout=5).ping()  # the default user

    connected = server.client("app" if kind == "redis" else "client")
    connected.ping()
    between = server.ensure(secret=NEW)
    assert between["live"] and between["users"] == {user: ["1 password added"] for user in sorted(redis_access.RULES[kind])}
    assert all(server.accepts(user, secret) for user in others for secret in (OLD, NEW))
    assert server.ensure(secret=NEW)["changed"] is False

    after = server.ensure(secret=NEW, older="remove")
    assert after["users"] == {user: ["1 password removed"] for user in sorted(redis_access.RULES[kind])}
    assert all(server.accepts(user, NEW) and not server.accepts(user, OLD) for user in redis_access.RULES[kind])
    assert connected.ping(), "who is in stays in"
    server.stop()
    server.start()
    assert server.accepts(secret=NEW) and not server.accepts(), "what was changed survives a restart"
    assert server.ensure(secret=NEW, older="remove")["changed"] is False


def test_a_restart_loads_what_scripts_and_transactions_wrote(make):
    """The server loads its append-only file as the user default, and leaves out in silence what that one may not do."""
    server = make(start=False).start("appendonly yes")
    app = server.client("app")
    app.eval("redis.call('set', 'oc:a', '1') redis.call('set', 'oc:b', '2')", 0)
    app.pipeline(transaction=True).set("oc:c", "3").set("oc:d", "4").execute()
    server.process.terminate()
    server.process.wait(timeout=10)
    server.start("appendonly yes")
    wait_for("its data", lambda: server.client().info("persistence")["loading"] == 0)
    assert server.client().dbsize() == 4


def test_no_password_is_shown_or_stored_but_the_admins(make):
    server = make()
    shown = str(server.ensure(secret=NEW))
    stored = {path: path.read_text(errors="replace") for path in server.directory.rglob("*") if path.is_file()}
    for secret in (OLD, NEW):
        for user, password in redis_access.passwords(secret, "redis").items():
            assert password not in shown
            where = [path for path, text in stored.items() if password in text]
            assert where == ([server.remembered] if (user, secret) == ("admin", NEW) else [])
    assert server.remembered.stat().st_mode & 0o777 == 0o600


def test_a_dry_run_changes_nothing(make):
    server = make()
    before = server.file.read_text(), server.remembered.read_text()
    result = server.ensure(secret=NEW, check=True)
    assert result["changed"] and "user app: 1 password added" in result["diff"]["after"]
    assert (server.file.read_text(), server.remembered.read_text()) == before
    assert not server.accepts(secret=NEW)


def test_a_stopped_server_gets_it_at_its_start(make):
    server = make(start=False)
    result = server.ensure(secret=NEW)
    assert result["changed"] and not result["live"]
    server.start()
    assert server.accepts() and server.accepts(secret=NEW)


def test_by_hand_changed_users_are_put_right(make):
    server = make()
    admin = server.client()
    admin.execute_command("ACL SETUSER", "app", "allkeys", "+flushall")
    admin.execute_command("ACL SETUSER", "stranger", "on", "nopass", "+@all")
    result = server.ensure(older="remove")
    assert set(result["users"]) == {"app", "stranger"} and result["users"]["stranger"] == ["removed"]
    assert "no longer has +flushall" in result["users"]["app"]
    assert admin.execute_command("ACL USERS") == sorted({"default", *redis_access.RULES["redis"]})
    assert server.ensure(older="remove")["changed"] is False


def test_what_was_not_saved_is_saved(make):
    server = make()
    server.file.write_text("user default off\n")
    result = server.ensure()
    assert result["changed"] and result["users"] == {}
    assert server.ensure()["changed"] is False


def test_no_way_in_is_said_with_what_to_do(make):
    server = make()
    server.remembered.unlink()
    result = server.ensure(secret=NEW)
    assert result["failed"] and "Run with the secret that was good before" in result["msg"]
    assert redis_access.passwords(NEW, "redis")["admin"] not in str(result)
    assert server.accepts()


def test_a_host_that_was_never_set_up_is_left_alone(tmp_path, run_module):
    server = Server(tmp_path, "redis", False, run_module)
    assert server.ensure(create=False)["changed"] is False
    assert not server.file.exists() and not server.remembered.exists()


def test_missing_passwords_are_named(make):
    result = make(start=False).ensure(passwords={"admin": "one-of-them"})
    assert result["failed"] and "none for app, backup, datacenter, exporter, ingress, owner, replica, sentinel" in result["msg"]


def test_a_renewed_certificate_goes_live_without_a_restart(make, run_module):
    server = make(tls=True)

    def look():
        arguments = {**server.node, "redis_access": server.access(), "certificate": server.tls["tls_cert"], "settings": {}}
        return run_module(redis_config, **arguments)

    assert look()["changed"] is False
    pid = server.process.pid
    certify(server.directory, "server", server.directory / "ca", days=2)
    assert look()["changed"] is True
    assert look()["changed"] is False
    assert server.process.pid == pid and server.process.poll() is None


def test_a_sentinel_with_an_old_certificate_asks_for_a_restart(make, run_module):
    server = make("sentinel", tls=True)
    server.stop()
    server.start("sentinel monitor openclaw 127.0.0.1 1 1")

    def look():
        arguments = {**server.node, "redis_access": server.access(), "certificate": server.tls["tls_cert"]}
        return run_module(redis_config, **arguments, sentinel="openclaw")

    assert look()["restart_needed"] is False
    certify(server.directory, "server", server.directory / "ca", days=2)
    result = look()
    assert result["restart_needed"] is True and result["changed"] is False


def test_how_a_sentinel_gets_in_is_changed_live_and_kept(make, run_module):
    server = make("sentinel")
    server.stop()
    server.start(
        "sentinel sentinel-user sentinel",
        "sentinel sentinel-pass one",
        "sentinel monitor openclaw 127.0.0.1 1 1",
        "sentinel auth-user openclaw sentinel",
        "sentinel auth-pass openclaw one",
    )
    config = server.directory / "server.conf"

    def ensure(password, check=False):
        secret = {"sentinel-pass": password, "auth-pass": password}
        arguments = {**server.node, "redis_access": server.access(), "sentinel": "openclaw", "file": str(config)}
        arguments["settings"] = {"sentinel-user": "sentinel", "auth-user": "sentinel"}
        return run_module(redis_config, check=check, **arguments, secret_settings=secret)

    assert ensure("one")["changed"] is False
    assert ensure("two-hidden", check=True)["settings"] == ["auth-pass", "sentinel-pass"]
    assert "two-hidden" not in config.read_text()
    result = ensure("two-hidden")
    assert result["settings"] == ["auth-pass", "sentinel-pass"] and "two-hidden" not in str(result)
    assert config.read_text().count("two-hidden") == 2
    assert ensure("two-hidden")["changed"] is False


def test_root_owns_what_is_remembered(make):
    server = make(start=False)
    assert server.remembered.stat().st_uid == os.geteuid()
