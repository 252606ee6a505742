# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""restic, as a command: passwords and locations go through files and the environment, never through arguments."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

from . import plan

#: Seconds between two tries while somebody else works on the repository.
_PAUSE = 2


class Repository:
    """One repository. ``name`` is the variable that it comes from."""

    def __init__(self, settings, name, cache, lock_wait, answer_within, program="restic"):
        self.name = name
        self.settings = settings
        self.program = program
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("RESTIC_", "AWS_"))},
            **{key: str(value) for key, value in settings["environment"].items()},
            "RESTIC_REPOSITORY": settings["location"],
            "RESTIC_PASSWORD_FILE": settings["password_file"],
            "RESTIC_CACHE_DIR": cache,
            "RESTIC_PROGRESS_FPS": "0",
        }
        self._lock_wait = lock_wait
        self._answer_within = answer_within

    @property
    def location(self):
        """Where it is, fit to be shown."""
        return plan.redact(self.settings["location"], self.secrets())

    def secrets(self):
        """What must not be shown."""
        found = [str(value) for key, value in self.settings["environment"].items() if any(word in key.upper() for word in ("KEY", "SECRET", "PASS", "TOKEN"))]
        try:
            with open(self.settings["password_file"], encoding="utf-8") as file:
                found.append(file.read().strip("\n"))
        except OSError:
            pass
        return found

    def problem(self, kind, text=""):
        """The sentence about what went wrong, as an exception."""
        return plan.Problem(plan.redact(plan.sentence(kind, self.name, self.location, text), self.secrets()), kind)

    def _once(self, words, seconds, extra):
        """``(code, stdout, stderr)``; 124 when it took too long."""
        try:
            process = subprocess.Popen(
                [self.program, *words],
                env={**self.environment, **extra},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except FileNotFoundError:
            raise plan.Problem(f"{self.program} is not installed on this host; run site.yml", "config") from None
        try:
            out, err = process.communicate(timeout=seconds)
            return process.returncode, out, err
        except subprocess.TimeoutExpired:
            # With those that it has started: an ssh of a repository that does not answer outlives it otherwise.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return 124, "", f"Fatal: no answer within {seconds:g} s"

    def run(self, *words, allowed=(0,), seconds=None, extra=None):
        """What restic printed. Waits while the repository is locked by somebody else. :raises Problem: when restic fails"""
        deadline = time.monotonic() + self._lock_wait
        while True:
            code, out, err = self._once(words, seconds, extra or {})
            kind = "unreachable" if code == 124 else plan.kind_of(code, err + out)
            if code in allowed:
                return code, out, plan.redact(err, self.secrets())
            if kind != "locked" or time.monotonic() >= deadline:
                raise self.problem(kind, err or out)
            time.sleep(_PAUSE)  # between two tries, until the deadline

    def open(self):
        """The ID of the repository, after proof that it is there and the password is right; stale locks are removed."""
        _code, out, _err = self.run("cat", "config", "--no-lock", "--quiet", seconds=self._answer_within)
        identity = json.loads(out)["id"]
        # Only those of processes that are gone: restic renews the lock of one that runs every five minutes.
        self.run("unlock", "--quiet", seconds=self._answer_within)
        return identity

    def make(self):
        """Make the repository when there is none; whether it was made."""
        try:
            self.open()
            return False
        except plan.Problem as problem:
            if problem.kind != "missing_repository":
                raise
        self.run("init", "--quiet", seconds=self._answer_within)
        return True

    def snapshots(self, *tags, host=None):
        """Snapshots that have all of these tags."""
        which = [f"--tag={','.join(tags)}"] if tags else []
        _code, out, _err = self.run("snapshots", "--json", *which, *([f"--host={host}"] if host else []))
        return json.loads(out) or []

    def backup(self, paths, tags, host, exclude=()):
        """Save paths; the summary that restic gives, and a sentence when it could not read all of them."""
        words = ["backup", "--json", f"--host={host}", f"--tag={','.join(tags)}", *(f"--exclude={one}" for one in exclude), "--", *paths]
        code, out, err = self.run(*words, allowed=(0, 3))
        summary = next(one for one in map(json.loads, reversed(out.splitlines())) if one.get("message_type") == "summary")
        return summary, plan.last_line(err) if code == 3 else ""

    def restore(self, snapshot, target):
        """Put a snapshot's files below a directory, each compared with what the snapshot says."""
        self.run("restore", snapshot, f"--target={target}", "--verify", "--quiet")

    def forget(self, keep, tags, group_by):
        """Retention; what is no longer needed leaves the repository."""
        self.run("forget", f"--tag={','.join(tags)}", f"--group-by={group_by}", "--prune", "--quiet", *plan.keep_options(keep))

    def check(self, part, parts):
        """Check the structure, and one part of the data."""
        self.run("check", f"--read-data-subset={part}/{parts}", "--quiet")

    def copy_from(self, other, tags):
        """Copy another repository's snapshots that are not here yet."""
        extra = {
            **{key: str(value) for key, value in {**other.settings["environment"], **self.settings["environment"]}.items()},
            "RESTIC_FROM_REPOSITORY": other.settings["location"],
            "RESTIC_FROM_PASSWORD_FILE": other.settings["password_file"],
        }
        self.run("copy", f"--tag={','.join(tags)}", "--quiet", extra=extra)
