# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write HAProxy's server states to a file, for the process that a reload starts: save_state.py CONFIG SOCKET FILE

HAProxy believes the file more than its configuration, ports included: a replica that moved to another port would go on
being sought at the old one. So only those servers are written whose address and port are the same in the new
configuration.
"""

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


def ask(path, command):
    """HAProxy's answer on its stats socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(path)
        connection.sendall(f"{command}\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def main(config, stats_socket, target):
    with open(config, encoding="utf-8") as file:
        text = file.read()
    try:
        state = ask(stats_socket, "show servers state")
    except OSError as error:
        print(f"no server states are kept over this reload: {error}", file=sys.stderr)
        state = ""
    with open(f"{target}.new", "w", encoding="utf-8") as file:
        file.write(keep(state, text))
    os.replace(f"{target}.new", target)


if __name__ == "__main__":
    main(*sys.argv[1:])
