#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: balancer_server
short_description: Drain replicas on a balancer, or give them requests again
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Says on the balancer of this host which replicas get new requests, and proves that a drained one has nothing left - no session, in two looks
    in a row, processes included that a reload has left behind and that finish what they have.
  - For HAProxy through its admin socket. For nginx by its list of drained replicas, of which it has no other notion, and a reload.
  - Knows nothing of the agent's switch, which is independent of this one; the playbook C(drain.yml) uses both.
options:
  replicas:
    description: Ids of the replicas; none only looks.
    type: list
    elements: str
    required: true
  state:
    description:
      - V(drained) gets no new requests and finishes what it has.
      - V(maintenance) is drained first, and then not even checked by HAProxy. For nginx it is the same as V(drained).
      - V(ready) gets requests as soon as the balancer's checks find it well.
    type: str
    choices: [drained, ready, maintenance]
    default: drained
  engine:
    description: The program that balances.
    type: str
    choices: [haproxy, nginx]
    default: haproxy
  deadline:
    description:
      - Seconds to wait for the last session to end, or for a ready replica to get requests.
      - V(0) does not wait; there must be no session then, while a ready replica may get its requests later.
    type: float
    default: 330
  cut:
    description: Whether to cut what is left after the deadline, instead of failing. Not with nginx, which cannot cut the sessions of one replica.
    type: bool
    default: false
  interval:
    description: Seconds between two looks.
    type: float
    default: 0.2
  socket:
    description: HAProxy's admin socket.
    type: path
    default: /run/haproxy/admin.sock
  servers:
    description: All replicas of the balancer's datacenter, for nginx's list, each with C(id), C(address) and C(port), as in the topology.
    type: list
    elements: dict
  directory:
    description: Where nginx's files C(drained) and C(upstream.conf) are.
    type: path
    default: /etc/nginx/openclaw
  config:
    description: nginx's configuration.
    type: path
    default: /etc/nginx/nginx.conf
  pid_file:
    description: File with the number of nginx's master process.
    type: path
    default: /run/nginx.pid
attributes:
  check_mode:
    description: Looks once and says what would be changed.
    support: full
  diff_mode:
    description: Shows the states before and after.
    support: full
"""

EXAMPLES = r"""
- name: Take a replica out, for at most a minute
  openclaw.ha.balancer_server:
    replicas: [node1-1]
    state: drained
    deadline: 60
    cut: true

- name: Give it requests again
  openclaw.ha.balancer_server:
    replicas: [node1-1]
    state: ready

- name: Drain it where nginx balances
  openclaw.ha.balancer_server:
    replicas: [node1-1]
    engine: nginx
    servers: "{{ topology_cluster.replicas }}"
"""

RETURN = r"""
replicas:
  description: >-
    For each of O(replicas) C(id), C(before) and C(after) (states), C(sessions_before) and C(sessions_after), C(cut) (sessions that were cut) and
    C(seconds) that it took. For nginx, C(sessions_before) counts idle connections that it keeps for later requests.
  type: list
  elements: dict
  returned: always
running:
  description: Whether the balancer runs. One that does not has no sessions either.
  type: bool
  returned: when it cannot be asked
servers:
  description: >-
    All replicas of the balancer as they were at the end, each with C(id), C(state), C(status) (the balancer's word), C(takes) (whether it gets new
    requests; null for nginx, which knows only after trying), C(sessions), and C(requests) and C(errors) since the last reload (null for nginx).
  type: list
  elements: dict
  returned: always
"""

import os
import socket
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.openclaw.ha.plugins.module_utils import nginx_upstream
from ansible_collections.openclaw.ha.plugins.module_utils.balancer_server import (
    BACKEND,
    PROOF,
    WORDS,
    Server,
    established,
    next_step,
    pid,
    servers,
    states,
    unknown,
)
from ansible_collections.openclaw.ha.plugins.module_utils.processes import EXACT, children, named, parent, started, text_of

#: Seconds for one answer on HAProxy's socket, and for nginx to have taken a reload.
ANSWER = 5
RELOAD = 15


class BalancerError(RuntimeError):
    """The balancer cannot be asked or does not do as it is told; the text says why and what to do."""


class NotRunning(BalancerError):
    """It does not run, so it has no sessions either."""


def inodes(process):
    """Inodes of the sockets that a process has open."""
    directory, found = f"/proc/{process}/fd", set()
    try:
        for name in os.listdir(directory):
            target = os.readlink(f"{directory}/{name}")
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:
        # It has ended, and what it had is closed.
        pass
    return found


class Haproxy:
    """HAProxy on its admin socket."""

    can_cut = True

    def __init__(self, path):
        self.path = path

    def ask(self, command):
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(ANSWER)
                connection.connect(self.path)
                connection.sendall(f"{command}\n".encode())
                return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        except FileNotFoundError:
            raise NotRunning(f"{self.path}: there is no such socket; HAProxy does not run here, or has its admin socket elsewhere.") from None
        except ConnectionRefusedError:
            raise NotRunning(f"{self.path}: nobody listens; HAProxy does not run: see systemctl status haproxy.") from None
        except OSError as error:
            raise BalancerError(f"{self.path}: HAProxy does not answer ({error.strerror or error}).") from None

    def look(self):
        state = self.ask(f"show servers state {BACKEND}")
        if not states(state):
            raise BalancerError(f"{self.path}: HAProxy has no servers in a backend {BACKEND} ({state.strip() or 'no answer'}).")
        own = pid(self.ask("show info"))
        # What a reload leaves behind has the same master.
        older = [process for process in named("haproxy") if process != own and parent(process) == parent(own)]
        held = set().union(*(inodes(process) for process in older))
        table = text_of("/proc/net/tcp")
        return servers(self.ask("show stat"), state, lambda address, port: len(established(table, address, port) & held))

    def _tell(self, command):
        answer = self.ask(command).strip()
        if answer:
            raise BalancerError(f"HAProxy refused `{command}`: {answer}")

    def apply(self, names, state):
        for name in names:
            self._tell(f"set server {BACKEND}/{name} state {WORDS[state]}")

    def cut(self, name):
        self._tell(f"shutdown sessions server {BACKEND}/{name}")


class Nginx:
    """nginx by its list of drained replicas."""

    can_cut = False

    def __init__(self, module):
        parameters = module.params
        self._run_command = module.run_command
        self.replicas, self.config, self.pid_file = parameters["servers"], parameters["config"], parameters["pid_file"]
        self.drained_file = os.path.join(parameters["directory"], "drained")
        self.upstream_file = os.path.join(parameters["directory"], "upstream.conf")
        if not os.path.isdir(parameters["directory"]):
            raise NotRunning(f"{parameters['directory']}: there is no such directory; the role balancer makes it with balancer_engine nginx.")

    def master(self):
        number = text_of(self.pid_file).strip()
        if not number.isdigit() or not os.path.isdir(f"/proc/{number}"):
            raise NotRunning(f"{self.pid_file}: no nginx runs with this number; see systemctl status nginx.")
        return int(number)

    def workers(self):
        """Numbers of the master's workers; True for those that take new requests."""
        return {process: "shutting down" not in text_of(f"/proc/{process}/cmdline") for process in children(self.master())}

    def drained(self):
        return nginx_upstream.ids(text_of(self.drained_file))

    def look(self):
        drained = self.drained()
        # Workers that shut down close what is idle: what they have open is in use. Those that go on have nothing to do with a drained replica.
        held = set().union(*(inodes(process) for process in self.workers()))
        table = text_of("/proc/net/tcp")
        found = {}
        for replica in self.replicas:
            name = replica["id"]
            sessions = len(established(table, replica["address"], replica["port"]) & held)
            state = "drained" if name in drained else "ready"
            found[name] = Server(state=state, status="down" if name in drained else "listed", takes=False if name in drained else None, sessions=sessions)
        return found

    def apply(self, names, state):
        kept = [name for name in self.drained() if name not in names]
        drained = kept + (list(names) if state != "ready" else [])
        before = {path: text_of(path, None) for path in (self.drained_file, self.upstream_file)}
        self.write(self.drained_file, "".join(f"{name}\n" for name in drained))
        self.write(self.upstream_file, nginx_upstream.render(self.replicas, drained))
        code, output, error = self._run_command(["nginx", "-t", "-q", "-c", self.config])
        if code != 0:
            for path, text in before.items():
                if text is None:
                    os.unlink(path)
                else:
                    self.write(path, text)
            raise BalancerError(f"nginx would not take the list, so the old one is back: {(error or output).strip()}")
        self.reload()

    @staticmethod
    def write(path, text):
        with open(f"{path}.new", "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(f"{path}.new", 0o644)
        os.replace(f"{path}.new", path)

    def is_stale(self):
        """Whether the list was written after the workers were started: a run was interrupted before its reload."""
        newest = max((started(process) or 0 for process, active in self.workers().items() if active), default=0)
        return os.path.exists(self.upstream_file) and os.stat(self.upstream_file).st_mtime > newest + EXACT

    def reload(self):
        before = set(self.workers())
        code, output, error = self._run_command(["nginx", "-c", self.config, "-s", "reload"])
        if code != 0:
            raise BalancerError(f"nginx could not be reloaded: {(error or output).strip()}")
        deadline = time.monotonic() + RELOAD
        while True:
            now = self.workers()
            if any(active for process, active in now.items() if process not in before) and not any(now.get(process) for process in before):
                return
            if time.monotonic() > deadline:
                raise BalancerError(f"nginx has not taken the reload within {RELOAD} s; see journalctl -u nginx.")
            time.sleep(0.05)  # between two looks, until the deadline above

    def cut(self, name):
        raise BalancerError(f"nginx cannot cut the sessions of {name} alone.")


def settle(engine, names, wanted, deadline, cut, interval):
    """Bring replicas to a state; returns results by id, and sentences about those that did not get there."""
    began = time.monotonic()
    first = engine.look()
    results = {name: {"id": name, "before": first[name].state, "sessions_before": first[name].sessions, "cut": 0} for name in names}
    pending, idle, cut_at, failures, view = list(names), dict.fromkeys(names, 0), {}, [], first
    while pending:
        waited, steps = time.monotonic() - began, {}
        for name in pending:
            idle[name] = idle[name] + 1 if view[name].sessions == 0 and view[name].state != "ready" else 0
            steps[name] = next_step(name, view[name], wanted, waited, deadline, cut, idle[name], cut_at.get(name))
        for state in WORDS:
            chosen = [name for name, step in steps.items() if step.action == "set" and step.state == state]
            if chosen:
                engine.apply(chosen, state)
                idle.update((name, PROOF if state == "maintenance" else 0) for name in chosen)
        for name, step in steps.items():
            if step.action == "cut":
                results[name]["cut"] = view[name].sessions - view[name].older
                engine.cut(name)
                cut_at[name] = waited
            if step.action == "fail":
                failures.append(step.text)
            if step.action in ("done", "fail"):
                pending.remove(name)
                results[name].update(after=view[name].state, sessions_after=view[name].sessions, seconds=round(waited, 2))
        if pending:
            time.sleep(interval)  # between two looks; next_step ends each replica at its deadline
            view = engine.look()
    return list(results.values()), failures


def main():
    module = AnsibleModule(
        argument_spec={
            "replicas": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": list(WORDS), "default": "drained"},
            "engine": {"type": "str", "choices": ["haproxy", "nginx"], "default": "haproxy"},
            "deadline": {"type": "float", "default": 330},
            "cut": {"type": "bool", "default": False},
            "interval": {"type": "float", "default": 0.2},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
            "servers": {"type": "list", "elements": "dict"},
            "directory": {"type": "path", "default": "/etc/nginx/openclaw"},
            "config": {"type": "path", "default": "/etc/nginx/nginx.conf"},
            "pid_file": {"type": "path", "default": "/run/nginx.pid"},
        },
        required_if=[("engine", "nginx", ["servers"])],
        supports_check_mode=True,
    )
    parameters = module.params
    names, wanted = list(dict.fromkeys(parameters["replicas"])), parameters["state"]
    nginx = parameters["engine"] == "nginx"
    if nginx and parameters["cut"]:
        module.fail_json(msg="nginx cannot cut the sessions of one replica: leave cut out and wait longer, or stop the replica, which ends them.")
    if nginx and wanted == "maintenance":
        wanted = "drained"
    if nginx and not all({"id", "address", "port"} <= set(server) for server in parameters["servers"]):
        module.fail_json(msg="servers: each needs id, address and port, as the replicas of the topology have them.")
    for name, least in (("deadline", 0), ("interval", 0.05)):
        if parameters[name] < least:
            module.fail_json(msg=f"{name} is {parameters[name]:g}; it must be at least {least}.")
    try:
        engine = Nginx(module) if nginx else Haproxy(parameters["socket"])
        before = engine.look()
        strangers = unknown(names, list(before))
        if strangers:
            module.fail_json(msg=strangers)
        failures = []
        stale = nginx and bool(names) and engine.is_stale()
        if module.check_mode or not names:
            results = [
                {"id": name, "before": before[name].state, "after": wanted, "sessions_before": before[name].sessions, "sessions_after": before[name].sessions}
                | {"cut": 0, "seconds": 0}
                for name in names
            ]
        else:
            if stale:
                engine.reload()
            results, failures = settle(engine, names, wanted, parameters["deadline"], parameters["cut"], parameters["interval"])
        after = engine.look()
    except BalancerError as error:
        module.fail_json(msg=str(error), running=not isinstance(error, NotRunning))
    except PermissionError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}: this module needs root.")
    answer = {
        "changed": stale or any(one["before"] != one["after"] or one["cut"] for one in results),
        "replicas": results,
        "servers": [
            {"id": name, "state": one.state, "status": one.status, "takes": one.takes, "sessions": one.sessions, "requests": one.requests, "errors": one.errors}
            for name, one in after.items()
        ],
        "diff": {side: "".join(f"{one['id']}: {one[side]}\n" for one in results) for side in ("before", "after")},
    }
    if failures:
        module.fail_json(msg=" ".join(failures), **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
