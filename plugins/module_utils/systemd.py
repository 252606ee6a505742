# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A thin client of systemctl and journalctl: what modules need to know of a unit and do to it."""

from __future__ import annotations

import datetime
import threading

PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "MainPID",
    "Result",
    "ExecMainStatus",
    "NeedDaemonReload",
    "InvocationID",
)


class SystemdError(RuntimeError):
    """A systemctl command failed; the text holds its own words."""


def parse_show(text):
    """Turn ``key=value`` lines of ``systemctl show`` into a dict."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def parse_timestamp(text):
    """Seconds since 1970 of a time such as ``Fri 2026-11-20 20:13:12.123456 UTC``; None when there is none."""
    try:
        moment = datetime.datetime.strptime(text.partition(" ")[2], "%Y-%m-%d %H:%M:%S.%f UTC")
    except ValueError:
        return None
    return moment.replace(tzinfo=datetime.timezone.utc).timestamp()


class Units:
    """Commands on units of this host, through the module's ``run_command`` (one at a time: it is no thread-safe)."""

    def __init__(self, run_command):
        self._run_command = run_command
        self._lock = threading.Lock()

    def _run(self, *words):
        with self._lock:
            return self._run_command(list(words))

    def properties(self, unit, *names):
        """Properties of a unit by their names; empty where systemd cannot be asked."""
        rc, out, err = self._run("systemctl", "show", "--property", ",".join(names), "--", unit)
        return parse_show(out) if rc == 0 else {}

    def show(self, unit):
        """Those that say whether a unit runs and what it needs."""
        return self.properties(unit, *PROPERTIES)

    def start_and_files(self, unit):
        """When the unit's process was started (seconds since 1970, None when it does not run) and the files that define the unit."""
        wanted = "--property=ExecMainStartTimestamp,FragmentPath,DropInPaths"
        rc, out, err = self._run("systemctl", "show", "--timestamp=us+utc", wanted, "--", unit)
        found = parse_show(out) if rc == 0 else {}
        files = [path for path in [found.get("FragmentPath", ""), *found.get("DropInPaths", "").split()] if path]
        return parse_timestamp(found.get("ExecMainStartTimestamp", "")), files

    def journal(self, unit, lines):
        """The last lines that a unit's latest start wrote, or why there are none.

        Earlier starts stay out: a gateway that answered people has their replies in its journal.
        """
        start = self.show(unit).get("InvocationID")
        which = [f"_SYSTEMD_INVOCATION_ID={start}", "+", f"INVOCATION_ID={start}"] if start else ["-u", unit]
        rc, out, err = self._run("journalctl", *which, "-n", str(lines), "--no-pager", "-o", "cat")
        return (out if rc == 0 else err).strip() or "(empty)"

    def do(self, *words):
        """Run a systemctl verb; raises :class:`SystemdError` with systemd's own text."""
        rc, out, err = self._run("systemctl", *words)
        if rc != 0:
            raise SystemdError(f"systemctl {' '.join(words)}: {(err or out).strip() or f'exit status {rc}'}")
