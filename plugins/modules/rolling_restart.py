#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rolling_restart
short_description: Decide whether a gateway replica may be changed now, write that down first, and undo it
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Runs on the replica's host. With O(state=taken) it asks the agents for their verdicts on all replicas and says whether this one is to be
    taken, and why; it waits for peers that are not well for as long as O(patience), and then fails with their names.
  - Before a replica is touched, what it is to be changed from is copied beside it (the record). A run that finds a record goes on
    where the run before has ended, and RV(step) is V(resume).
  - O(state=back) puts the files of the record back and starts the unit with them, where anything was changed since. O(state=done) forgets the record.
  - Draining, changing, checking and putting back are tasks of their own; see C(roles/gateway/tasks/roll.yml).
options:
  replica:
    description: The replica, with C(id), C(address) and C(verdict_port), as in the topology.
    type: dict
    required: true
  unit:
    description: The replica's systemd unit.
    type: str
    required: true
  state:
    description: What is to be done, see above.
    type: str
    choices: [taken, back, done]
    default: taken
  record:
    description: Directory of the record. It is made, for root only; the one above it must exist.
    type: path
    required: true
  behind:
    description: Whether the replica has to be changed to become what it should be.
    type: bool
    default: false
  live:
    description: Whether it takes that over while it runs.
    type: bool
    default: false
  peers:
    description: The other replicas of its datacenter, each with C(id), C(address) and C(verdict_port).
    type: list
    elements: dict
    default: []
  files:
    description: Files that say what the replica runs, to be kept in the record. Those that do not exist are remembered as missing.
    type: list
    elements: path
    default: []
  max_unavailable:
    description: Replicas of a datacenter that may be out at once.
    type: int
    default: 1
  patience:
    description: Seconds to wait for peers to get well.
    type: float
    default: 60
  interval:
    description: Seconds between two looks at the peers.
    type: float
    default: 1
attributes:
  check_mode:
    description: Says what would be done now, without waiting.
    support: full
  diff_mode:
    description: The files are no secret of this module's, but it does not show them.
    support: none
"""

EXAMPLES = r"""
- name: Ask whether it may be taken
  openclaw.ha.rolling_restart:
    replica: "{{ replica }}"
    unit: openclaw-gateway@1.service
    record: /var/lib/openclaw/rolling/1
    behind: "{{ would is changed }}"
    peers: "{{ peers }}"
    files: [/etc/openclaw/gateway/1/openclaw.json, /etc/openclaw/gateway/1/replica.env]
  register: rolling
"""

RETURN = r"""
step:
  description: With O(state=taken) one of V(skip), V(start), V(take), V(live), V(resume), V(close), and in check mode V(wait).
  type: str
  returned: O(state=taken)
why:
  description: One clause.
  type: str
  returned: O(state=taken)
waited:
  description: Seconds that peers were waited for.
  type: float
  returned: O(state=taken)
possible:
  description: Whether there was something to go back to. Without it, nothing was done.
  type: bool
  returned: O(state=back)
"""

import concurrent.futures
import datetime
import json
import os
import shutil
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.openclaw.ha.plugins.module_utils import health, systemd
from ansible_collections.openclaw.ha.plugins.module_utils.rolling import GO, Limits, Mine, Peer, next_step


class Record:
    """The files of a replica as they were, and when a run began to change it.

    ``record.json`` is written last, so a record that can be read is whole.
    """

    def __init__(self, directory):
        self.directory = directory
        self.path = os.path.join(directory, "record.json")

    def read(self):
        """What is known, or None where no run has begun."""
        try:
            with open(self.path, encoding="utf-8") as stream:
                return json.load(stream)
        except (FileNotFoundError, ValueError):
            return None

    def write(self, files):
        shutil.rmtree(self.directory, ignore_errors=True)
        os.mkdir(self.directory, 0o700)
        kept = {}
        for number, path in enumerate(files):
            kept[path] = None
            if os.path.lexists(path):
                kept[path] = os.path.join(self.directory, str(number))
                copy(path, kept[path])
        began = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        with open(f"{self.path}.new", "w", encoding="utf-8") as stream:
            json.dump({"began": began, "files": kept}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(f"{self.path}.new", self.path)

    @staticmethod
    def is_current(files):
        """Whether nothing has been changed since."""
        return all(content(path) == (None if kept is None else content(kept)) for path, kept in files.items())

    def restore(self, files):
        """Put all files back; those that did not exist are removed."""
        for path, kept in files.items():
            if kept is None:
                if os.path.lexists(path):
                    os.unlink(path)
                continue
            os.makedirs(os.path.dirname(path), exist_ok=True)
            copy(kept, f"{path}.back")
            os.replace(f"{path}.back", path)

    def forget(self):
        existed = os.path.lexists(self.directory)
        if existed:
            # First what makes it a record.
            if os.path.lexists(self.path):
                os.unlink(self.path)
            shutil.rmtree(self.directory)
        return existed


def content(path):
    """Bytes of a file, None where there is none."""
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def copy(source, target):
    """A file with its mode, its times and its owner."""
    shutil.copy2(source, target)
    seen = os.stat(source)
    os.chown(target, seen.st_uid, seen.st_gid)


def look(replica):
    """What a replica's agent says of it, as a Peer."""
    seen = health.look({**replica, "port": replica["verdict_port"]}, health.VERDICT)
    switch = seen.verdict.get("drain")
    return Peer(replica["id"], str(seen.verdict.get("status") or ""), str(switch.get("reason") or "") if isinstance(switch, dict) else None)


def decide(params, units, record, waits):
    """Plan until it is clear what to do. Returns (step, seconds waited)."""
    limits = Limits(params["max_unavailable"], params["patience"] if waits else 0.0)
    began = time.monotonic()
    everyone = [params["replica"], *params["peers"]]
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(everyone)) as pool:
        while True:
            own, *peers = pool.map(look, everyone)
            runs = units.show(params["unit"]).get("ActiveState") in ("active", "activating", "reloading", "deactivating")
            waited = time.monotonic() - began
            step = next_step(Mine(params["behind"], runs, own.reason, record.read(), params["live"]), peers, limits, waited)
            if step.action in ("take", "live") and not own.status:
                return "no verdict of its own agent", waited
            if step.action != "wait" or not waits:
                return step, waited
            time.sleep(params["interval"])  # between two looks; the planner's patience ends it


def go_back(params, units, record):
    """Returns whether there was something to go back to, and whether anything had to be done for it."""
    known = record.read()
    if known is None or not any(known["files"].values()):
        return False, False
    if record.is_current(known["files"]) and units.show(params["unit"]).get("ActiveState") == "active":
        return True, False
    units.do("stop", "--", params["unit"])
    record.restore(known["files"])
    units.do("daemon-reload")
    units.do("reset-failed", "--", params["unit"])
    units.do("start", "--", params["unit"])
    return True, True


def main():
    module = AnsibleModule(
        argument_spec={
            "replica": {"type": "dict", "required": True},
            "unit": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["taken", "back", "done"], "default": "taken"},
            "record": {"type": "path", "required": True},
            "behind": {"type": "bool", "default": False},
            "live": {"type": "bool", "default": False},
            "peers": {"type": "list", "elements": "dict", "default": []},
            "files": {"type": "list", "elements": "path", "default": []},
            "max_unavailable": {"type": "int", "default": 1},
            "patience": {"type": "float", "default": 60},
            "interval": {"type": "float", "default": 1},
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["max_unavailable"] < 1:
        module.fail_json(msg=f"max_unavailable is {params['max_unavailable']}; it must be at least 1.")
    name, record, units = params["replica"]["id"], Record(params["record"]), systemd.Units(module.run_command)
    try:
        if params["state"] == "done":
            there = os.path.lexists(record.directory)
            module.exit_json(changed=there if module.check_mode else record.forget())
        if params["state"] == "back":
            known = record.read() is not None
            possible, changed = (known, known) if module.check_mode else go_back(params, units, record)
            module.exit_json(changed=changed, possible=possible)
        step, waited = decide(params, units, record, not module.check_mode)
        if isinstance(step, str):
            module.fail_json(msg=f"{name}: {step}; it cannot be drained without: see systemctl status openclaw-agent. Nothing was changed.")
        if step.action == "stop" and not module.check_mode:
            module.fail_json(
                msg=f"{name} is left as it is: {step.why}. Other replicas have to be well before it may be taken out. Mend that, then run this again: "
                "it goes on from here."
            )
        if step.action in GO and step.action != "resume" and not module.check_mode:
            os.makedirs(os.path.dirname(record.directory), mode=0o700, exist_ok=True)
            record.write(params["files"])
        if step.action == "close" and not module.check_mode:
            record.forget()
    except OSError as error:
        module.fail_json(msg=f"{name}: {error.strerror or error} ({error.filename}).")
    except systemd.SystemdError as error:
        module.fail_json(msg=f"{name}: {error}")
    action = "wait" if step.action == "stop" else step.action
    module.exit_json(changed=step.action in (*GO, "close"), step=action, why=step.why, waited=round(waited, 1))


if __name__ == "__main__":
    main()
