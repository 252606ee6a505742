# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis data: a dump of the running server, and a server of its own that reads a dump, on a socket that nobody else reaches."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time

from . import plan

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError:  # a host without Redis
    redis = None

#: Seconds between two looks at a server.
_PAUSE = 0.05
#: Elements of a value that are read at a time.
_BATCH = 500
#: Share of the live server's memory that a second one with the same data needs, and bytes that it needs anyway.
_MEMORY, _MEMORY_LEAST = 1.1, 64_000_000
SNAPSHOT, MANIFEST = "dump.rdb", "manifest.json"


def client(settings, address=None, port=None):
    """A connection to the site's Redis as the user of the backup; by default to this host's own server."""
    tls = {}
    if settings["tls_ca"]:
        tls = {"ssl": True, "ssl_ca_certs": settings["tls_ca"], "ssl_certfile": settings["tls_cert"], "ssl_keyfile": settings["tls_key"]}
        tls["ssl_check_hostname"] = True
    return redis.Redis(
        host=address or settings["address"],
        port=port or settings["port"],
        username=settings["username"] or None,
        password=settings["password"] or None,
        socket_timeout=10,
        socket_connect_timeout=5,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
        **tls,
        **_unnamed(),
    )


def _unnamed():
    """Keeps newer versions of the library from telling the server its own name and version: the user may not send that."""
    known = inspect.signature(redis.Redis.__init__).parameters
    return {"driver_info": None} if "driver_info" in known else {"lib_name": None, "lib_version": None} if "lib_name" in known else {}


def ask(settings):
    """INFO of this host's own server. :raises Problem: when it does not answer"""
    try:
        return client(settings).info()
    except redis.RedisError as error:
        raise plan.Problem(f"Redis at {settings['address']}:{settings['port']} does not answer: {error}", "redis") from None


def elected(settings, host):
    """Who saves Redis: ``(host, why, INFO of this host's server)``."""
    info = ask(settings)
    if info["role"] == "master":
        return (*plan.elect(settings["nodes"], host, f"{settings['address']}:{settings['port']}", plan.online_replicas(info)), info)
    address, port = info["master_host"], info["master_port"]
    try:
        online = plan.online_replicas(client(settings, address, port).info("replication"))
    except redis.RedisError:
        online = None
    return (*plan.elect(settings["nodes"], host, f"{address}:{port}", online), info)


def wait(what, condition, seconds):
    """Wait until a condition holds; what it gave. :raises Problem: at the deadline"""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() >= deadline:
            raise plan.Problem(f"{what}: not seen within {seconds:g} s", "redis")
        time.sleep(_PAUSE)


def dump(settings, directory):
    """Have this host's server write its data down, and copy that; path of the copy. :raises Problem: when it does not"""
    server, within = client(settings), settings["load_within"]
    try:
        found = {**server.config_get("dir"), **server.config_get("dbfilename"), **server.config_get("databases")}
        info = server.info()
        source = os.path.join(found["dir"], found["dbfilename"])
        plan.room(2 * info["used_memory"], shutil.disk_usage(directory).free, directory)
        wait("the end of the save under way", lambda: not server.info("persistence")["rdb_bgsave_in_progress"], within)
        before = server.info("persistence")["rdb_saves"]
        # A rewrite of the append-only file may run; the save then begins after it.
        server.execute_command("BGSAVE", "SCHEDULE")

        def saved():
            now = server.info("persistence")
            if now["rdb_last_bgsave_status"] != "ok" and not now["rdb_bgsave_in_progress"]:
                raise plan.Problem(f"BGSAVE of Redis failed: {now['rdb_last_bgsave_status']}; its log says why (often no space in {found['dir']})", "redis")
            return now["rdb_saves"] > before and not now["rdb_bgsave_in_progress"]

        wait("the end of BGSAVE", saved, within)
    except redis.RedisError as error:
        raise plan.Problem(f"Redis at {settings['address']}:{settings['port']} does not save its data: {error}", "redis") from None
    target = os.path.join(directory, SNAPSHOT)
    try:
        # A later save puts another file in its place and leaves the one that is open here alone.
        shutil.copyfile(source, target)
    except OSError as error:
        raise plan.Problem(f"{source} could not be copied: {error.strerror}", "disk_full" if error.errno == 28 else "failed") from None
    give(target, settings["user"])
    return target, int(found["databases"])


def give(path, user):
    if os.geteuid() == 0:
        account = pwd.getpwnam(user)
        os.chown(path, account.pw_uid, account.pw_gid)


def _account(user):
    """How a process gives up root for a user, as arguments of Popen."""
    if os.geteuid() != 0 or user == "root":
        return {}
    account = pwd.getpwnam(user)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _check_rdb(path, user):
    done = subprocess.run(
        ["redis-check-rdb", path], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False, **_account(user)
    )
    return done.returncode, done.stdout + done.stderr


def verify(path, user):
    """redis-check-rdb. :raises Problem: when it finds something"""
    code, text = _check_rdb(path, user)
    if code:
        raise plan.Problem(f"redis-check-rdb refuses {os.path.basename(path)}: {plan.last_line(text)}", "damaged")


def keys_in(path, user):
    """Number of keys in a snapshot; None when it cannot be read."""
    code, text = _check_rdb(path, user)
    return plan.keys_read(text) if code == 0 else None


def digest_of(path):
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


class Scratch:
    """A Redis server of its own on the data in a directory. It listens on a socket in there alone, writes nothing, and expires nothing."""

    def __init__(self, directory, settings, databases):
        self.directory = directory
        self._settings = settings
        self._databases = databases
        self._process = None
        # A path to a socket must be short, whatever the directory's is.
        self._home = tempfile.mkdtemp(prefix="openclaw-backup-")
        self.socket = os.path.join(self._home, "redis")

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self):
        give(self._home, self._settings["user"])
        names = {name: self._settings["settings"][name] for name in ("appenddirname", "appendfilename")}
        lines = [
            "port 0",
            f'unixsocket "{self.socket}"',
            "unixsocketperm 700",
            f'dir "{self.directory}"',
            f"dbfilename {SNAPSHOT}",
            f"databases {self._databases}",
            'save ""',
            "appendonly no",
            # As a replica (of nobody) it drops no key whose time is over, so that everything in the file can be counted.
            "replicaof 127.0.0.1 0",
            *(f'{name} "{value}"' for name, value in names.items()),
        ]
        with open(os.path.join(self._home, "log"), "w+", encoding="utf-8", errors="replace") as log:
            self._process = subprocess.Popen(
                ["redis-server", "-"], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, **_account(self._settings["user"])
            )
        self._process.stdin.write("\n".join(lines).encode() + b"\n")
        self._process.stdin.close()
        wait("the data to be loaded", self._is_ready, self._settings["load_within"])

    def client(self):
        return redis.Redis(unix_socket_path=self.socket, socket_timeout=60, retry=Retry(NoBackoff(), 0), **_unnamed())

    def _is_ready(self):
        if self._process.poll() is not None:
            with open(os.path.join(self._home, "log"), encoding="utf-8", errors="replace") as log:
                raise plan.Problem(f"a Redis server does not load the data: {plan.last_line(log.read())}", "damaged")
        try:
            return self.client().ping()
        except redis.RedisError:
            return False

    def make_append_only(self):
        """Turn what was loaded into append-only files, as a server finds them that starts with ``appendonly yes``."""
        one = self.client()
        one.execute_command("REPLICAOF", "NO", "ONE")
        one.config_set("appendonly", "yes")

        def written():
            now = one.info("persistence")
            if now["aof_last_bgrewrite_status"] != "ok":
                raise plan.Problem(f"the append-only files could not be written in {self.directory}; see its free space", "disk_full")
            return not (now["aof_rewrite_in_progress"] or now["aof_rewrite_scheduled"])

        wait("the append-only files to be written", written, self._settings["load_within"])

    def __exit__(self, *_raised):
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)


def available_memory():
    """Bytes that a new process may have; None where the kernel does not say."""
    with open("/proc/meminfo", encoding="utf-8") as file:
        return next((int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")), None)


def check_memory(needed, found=available_memory):
    """Refuse to load data that does not fit beside what runs. :raises Problem: when it does not"""
    free = found()
    if free is not None:
        plan.room(int(needed * _MEMORY) + _MEMORY_LEAST, free, "memory for a second Redis server with the same data")


def read(server):
    """What a manifest says of data: number of keys, and every conversation with its length, digest and end."""
    one = server.client()
    keys = plan.keys_of(one.info("keyspace"))
    conversations = {}
    for name in one.scan_iter(match=f"{plan.CONVERSATIONS}*", count=_BATCH):
        kind = one.type(name).decode()
        length, digest = _content(one, name, kind) if kind != "none" else (0, "")
        ends = one.execute_command("PEXPIRETIME", name)
        if ends == -2:
            continue  # its time was over before it could be read
        conversations[name.decode(errors="backslashreplace")] = {
            "type": kind,
            "length": length,
            "digest": digest,
            "expires_at": ends if ends >= 0 else None,
        }
    return {"keys": keys, "conversations": conversations}


def _content(one, name, kind):
    """Length and digest of a value, the same in every version of Redis."""
    if kind == "list":
        length = one.llen(name)
        parts = (item for start in range(0, length, _BATCH) for item in one.lrange(name, start, start + _BATCH - 1))
    elif kind == "string":
        length, parts = one.strlen(name), [one.get(name)]
    elif kind == "hash":
        length = one.hlen(name)
        parts = [part for pair in sorted(one.hgetall(name).items()) for part in pair]
    elif kind == "set":
        length = one.scard(name)
        parts = sorted(one.smembers(name))
    elif kind == "zset":
        length = one.zcard(name)
        parts = [part for member, score in one.zrange(name, 0, -1, withscores=True) for part in (member, repr(score).encode())]
    elif kind == "stream":
        length = one.xlen(name)
        parts = [part for entry, fields in one.xrange(name) for part in (entry, *(word for pair in fields.items() for word in pair))]
    else:
        raise plan.Problem(f"a conversation is of the type {kind}, which this program cannot compare", "failed")
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return length, found.hexdigest()


def make_manifest(directory, settings, databases, about):
    """Write what the dump in a directory holds beside it, read from that very dump; the manifest."""
    path = os.path.join(directory, SNAPSHOT)
    verify(path, settings["user"])
    with Scratch(directory, settings, databases) as server:
        found = read(server)
    manifest = {"format": 1, **about, "databases": databases, "sha256": digest_of(path), "bytes": os.path.getsize(path), **found}
    with open(os.path.join(directory, MANIFEST), "w", encoding="utf-8") as file:
        json.dump(manifest, file, sort_keys=True)
    return manifest


def read_manifest(directory):
    """The manifest beside a restored dump, which must be the very dump that it was made from. :raises Problem: when it is not"""
    try:
        with open(os.path.join(directory, MANIFEST), encoding="utf-8") as file:
            manifest = plan.check_manifest(json.load(file))
        digest = digest_of(os.path.join(directory, SNAPSHOT))
    except FileNotFoundError as error:
        raise plan.Problem(f"the snapshot has no {os.path.basename(error.filename)}", "damaged") from None
    except ValueError:
        raise plan.Problem("its manifest is no JSON", "damaged") from None
    if digest != manifest["sha256"]:
        raise plan.Problem(f"{SNAPSHOT} is not the one that its manifest was made from", "damaged")
    return manifest


@contextlib.contextmanager
def proven(directory, settings):
    """Compare the dump in a directory with its manifest; gives ``(server, manifest, report)`` while the server runs."""
    manifest = read_manifest(directory)
    verify(os.path.join(directory, SNAPSHOT), settings["user"])
    check_memory(2 * manifest["bytes"])
    with Scratch(directory, settings, manifest["databases"]) as server:
        found = read(server)
        # Not before the look, during which a conversation's time may be over.
        yield server, manifest, plan.compare(manifest, found, time.time() * 1000)
