# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in the files of a Redis server that runs no more, compared with one that runs."""

from __future__ import annotations

import json
import os
import pathlib
import pwd
import shutil
import signal
import tempfile
import time

from ansible_collections.openclaw.ha.plugins.module_utils import redis_client

#: How the keys of conversations begin.
PREFIX = "oc:conv:"


class Unreadable(RuntimeError):
    """The files could not be loaded; the text tells why."""


def conversations(client):
    """All conversations of a server, as ``{name: [raw turns]}``."""
    return {key.removeprefix(PREFIX): client.lrange(key, 0, -1) for key in client.scan_iter(match=f"{PREFIX}*", count=1000)}


def only_there(old, new):
    """Turns, as stored, that are in ``old`` and not in ``new``, by conversation; compared by their ids.

    :param old: ``{name: [raw turns]}``
    :param new: name -> raw turns of the same conversation
    """
    found = {}
    for name, turns in old.items():
        known = {_id(raw) for raw in new(name)}
        missing = [raw for raw in turns if _id(raw) not in known]
        if missing:
            found[name] = missing
    return found


def _id(raw):
    try:
        return str(json.loads(raw)["id"])
    except (KeyError, TypeError, ValueError):
        return raw


class Loaded:
    """A server of its own on a copy of the files; a context manager that yields its connection.

    :param run_command: Ansible's, or what behaves like it
    """

    def __init__(self, directory, program, wait, run_command):
        self._directory, self._program, self._wait, self._run_command = pathlib.Path(directory), program, wait, run_command

    def __enter__(self):
        self._copy = pathlib.Path(tempfile.mkdtemp(prefix="openclaw-leftover-"))
        try:
            return self._start()
        except BaseException:
            self._end()
            raise

    def _start(self):
        files = self._directory / "appendonlydir"
        if not files.is_dir() and not (self._directory / "dump.rdb").is_file():
            raise Unreadable(f"{self._directory} has neither an appendonlydir nor a dump.rdb")
        if files.is_dir():
            shutil.copytree(files, self._copy / "appendonlydir")
        else:
            shutil.copy(self._directory / "dump.rdb", self._copy)
        nobody = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        for path in [self._copy, *self._copy.rglob("*")] if nobody else []:
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        socket, log = self._copy / "redis.sock", self._copy / "redis.log"
        settings = {
            "port": 0,
            "unixsocket": socket,
            "dir": self._copy,
            "appendonly": "yes" if files.is_dir() else "no",
            "save": "",
            "logfile": log,
            "daemonize": "yes",
            "pidfile": self._copy / "redis.pid",
        }
        become = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"] if nobody else []
        command = become + [str(self._program)] + [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
        rc, out, err = self._run_command(command, cwd=str(self._copy))
        if rc:
            raise Unreadable(f"{self._program} did not start: {(err or out).strip()[-300:]}")
        client = redis_client.redis.Redis(unix_socket_path=str(socket), decode_responses=True, socket_timeout=self._wait)
        deadline = time.monotonic() + self._wait
        seen = time.monotonic()
        while True:
            if self._pid():
                seen = time.monotonic()
            try:
                if not client.info("persistence")["loading"]:
                    return client
                why = "it is still loading"
            except redis_client.redis.RedisError as error:
                why = str(error)
            # It writes its number a moment after it has begun.
            if time.monotonic() >= min(deadline, seen + 3):
                said = log.read_text(errors="replace").strip().splitlines()[-3:] if log.exists() else []
                raise Unreadable(f"{self._directory} cannot be loaded: {' / '.join(said) or why}")
            time.sleep(0.05)  # between two looks, until the deadline

    def _pid(self):
        """The number of the server's process; 0 when it does not run."""
        try:
            pid = int((self._copy / "redis.pid").read_text())
        except (OSError, ValueError):
            return 0
        return pid if pathlib.Path(f"/proc/{pid}").exists() else 0

    def __exit__(self, *exception):
        self._end()

    def _end(self):
        pid = self._pid()
        if pid:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self._pid() and time.monotonic() < deadline:
            time.sleep(0.02)  # between two looks, until the deadline
        shutil.rmtree(self._copy)


def primary(nodes, access, timeout):
    """The connection to the one that says it is the primary. :raises Unreadable: when none does"""
    said = []
    for node in nodes:
        client = redis_client.connect(node, access, timeout)
        try:
            role = client.info("replication")["role"]
            if role == "master":
                return client
            said.append(f"{node['address']}:{node['port']} is a replica")
        except redis_client.redis.RedisError as error:
            said.append(f"{node['address']}:{node['port']}: {error}")
    raise Unreadable(f"None of those that are to have the conversations is a primary ({'; '.join(said)})")
