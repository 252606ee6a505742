# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write HAProxy's server states to a file, for the process that starts next: save_state.py CONFIG SOCKET|ask FILE

Before a reload the running process is asked, on its SOCKET. HAProxy believes the file more than its configuration, ports
included: a replica that moved to another port would go on being sought at the old one. So only those servers are written
whose address and port are the same in the new configuration.

Before a fresh start the agents are asked, all at once: HAProxy itself would send to a drained replica until it has heard
its agent for the first time. What cannot be asked within a second starts like all others.
"""

import contextlib
import concurrent.futures
import os
import socket
import sys


def keep(state, config):
    """The lines of ``show servers state`` that are true for the configuration too."""
    servers = {tuple(line.split()[1:3]) for line in config.splitlines() if line.split()[:1] == ["server"]}
    kept = []
    for line in state.splitlines():
        fields = line.split()
        is_server = len(fields) > 18 and not line.startswith("#")
        if fields and (not is_server or (fields[3], f"{fields[4]}:{fields[18]}") in servers):
            kept.append(line)
    return "\n".join(kept or ["1"]) + "\n"


def agents(config):
    """Of each server with an agent: its backend, name, address and port, and its agent's address and port."""
    found, backend = [], ""
    for line in config.splitlines():
        words = line.split()
        if words[:1] == ["backend"]:
            backend = words[1]
        if words[:1] == ["server"] and "agent-port" in words:
            address, port = words[2].rsplit(":", 1)
            at = words.index
            found.append((backend, words[1], address, port, words[at("agent-addr") + 1], int(words[at("agent-port") + 1])))
    return found


def is_drained(address, port):
    """Whether an agent gives its replica the weight zero."""
    try:
        with socket.create_connection((address, port), timeout=1) as connection:
            connection.settimeout(1)
            return "0%" in connection.recv(200).decode("ascii", "replace").split("#")[0].split()
    except OSError:
        return False


def first(config):
    """States for a fresh start: the drained servers, with no weight. HAProxy finds them by their names."""
    servers = agents(config)
    with concurrent.futures.ThreadPoolExecutor(max(len(servers), 1)) as pool:
        drained = pool.map(lambda server: is_drained(*server[4:]), servers)
        lines = [
            f"0 {backend} 0 {name} {address} 2 0 0 100 0 1 0 2 6 0 0 0 - {port} - 0 0 - - 0"
            for (backend, name, address, port, *_agent), is_out in zip(servers, drained, strict=True)
            if is_out
        ]
    return "\n".join(["1", *lines]) + "\n"


def ask(path, command):
    """HAProxy's answer on its stats socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(path)
        connection.sendall(f"{command}\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def main(config, source, target):
    with open(config, encoding="utf-8") as file:
        text = file.read()
    if source == "ask":
        states = first(text)
    else:
        try:
            states = keep(ask(source, "show servers state"), text)
        except OSError as error:
            print(f"no server states are kept over this reload: {error}", file=sys.stderr)
            states = keep("", text)
    try:
        with open(f"{target}.new", "w", encoding="utf-8") as file:
            file.write(states)
        os.replace(f"{target}.new", target)
    except OSError as error:  # HAProxy goes on without them, and without old ones
        print(f"no server states are kept: {error}", file=sys.stderr)
        for path in (f"{target}.new", target):
            with contextlib.suppress(OSError):
                os.unlink(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
