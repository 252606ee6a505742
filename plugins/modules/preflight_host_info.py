#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module that asks a host what preflight wants to know about it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_host_info
short_description: Ask a host what must be known before a cluster is built on it
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Reads memory, distribution, addresses, Node.js, npm and the installed gateway release in one call, much faster than gathering
    all facts.
  - Changes nothing.
options:
  node_path:
    description: Directory of a given Node.js, empty for none.
    type: str
    default: ""
  gateway_version:
    description: Version of the gateway of which the host may have the release already, empty for none.
    type: str
    default: ""
  root:
    description: Directory below which the cluster's software is installed.
    type: path
    default: /opt/openclaw
  redis:
    description: Directory with the configuration of Redis and Sentinel.
    type: path
    default: /etc/redis/openclaw
attributes:
  check_mode:
    description: Runs the same in check mode.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: Ask the host
  openclaw.ha.preflight_host_info:
    gateway_version: 2026.9.6
  register: host
"""

RETURN = r"""
memory_bytes:
  description: Memory that the host may use; the limit of its container where one is set.
  type: int
  returned: always
  sample: 8342437888
distribution:
  description: Identifier of the distribution as in os-release.
  type: str
  returned: always
  sample: debian
distribution_major_version:
  description: First part of the distribution's version, empty where it has none.
  type: str
  returned: always
  sample: "12"
node_version:
  description: Version of the Node.js in O(node_path), empty where none runs.
  type: str
  returned: always
  sample: 24.19.0
npm:
  description: Path of an npm on the host, that of O(node_path) first, empty where there is none.
  type: str
  returned: always
  sample: /opt/openclaw/node/24.19.0/bin/npm
interfaces:
  description: IPv4 addresses with prefix lengths by network interface, empty where the host does not tell.
  type: dict
  returned: always
  sample: {eth0: [192.0.2.11/24]}
redis_tls:
  description: Whether Redis or Sentinel was set up with TLS on this host; null where neither was set up.
  type: bool
  returned: always
missing_release:
  description: The O(gateway_version) if its release is not installed yet, else empty.
  type: str
  returned: always
  sample: 2026.9.6
"""

import glob
import json
import os
import re
import shutil

from ansible.module_utils.basic import AnsibleModule

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory(meminfo, limits):
    """Bytes of memory, from the text of /proc/meminfo and the texts of limits such as ``max`` or ``1073741824``."""
    total = int(re.search(r"^MemTotal:\s+(\d+) kB$", meminfo, re.M)[1]) * 1024
    return min([total] + [int(limit) for limit in limits if limit.strip().isdigit()])


def distribution(os_release):
    """Pair of identifier and major version, from the text of /etc/os-release."""
    found = dict(re.findall(r'^(ID|VERSION_ID)="?([^"\n]*)"?$', os_release, re.M))
    return found.get("ID", "unknown"), found.get("VERSION_ID", "").split(".")[0]


def speaks_tls(configurations):
    """Whether servers with these configuration texts speak TLS; None when there is no text."""
    texts = [text for text in configurations if text]
    return any(re.search(r"^tls-port\b", text, re.M) for text in texts) if texts else None


def find_npm(node_path, root):
    """Path of an npm: in ``node_path``, else of the newest Node.js below ``root``, else on PATH; empty for none."""
    if node_path:
        candidates = [os.path.join(node_path, "npm")]
    else:
        installed = glob.glob(os.path.join(glob.escape(root), "node", "*", "bin", "npm"))
        installed.sort(key=lambda path: [int(number) for number in re.findall(r"\d+", path)], reverse=True)
        candidates = [*installed, shutil.which("npm") or ""]
    return next((path for path in candidates if os.access(path, os.X_OK)), "")


def read(path):
    """Text of a file, empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def interfaces(text):
    """Addresses by interface, from the JSON of ``ip -json -4 address``."""
    found = {}
    for link in json.loads(text or "[]"):
        for address in link.get("addr_info", []):
            if "local" in address:
                found.setdefault(link["ifname"], []).append(f"{address['local']}/{address['prefixlen']}")
    return found


def node_version(module, node_path):
    """Version that the node in ``node_path`` prints, empty where none runs."""
    node = os.path.join(node_path, "node")
    if not node_path or not os.access(node, os.X_OK):
        return ""
    status, output, dummy = module.run_command([node, "--version"])
    found = re.match(r"v(\d+\.\d+\.\d+)", output)
    return found[1] if status == 0 and found else ""


def main():
    module = AnsibleModule(
        argument_spec={
            "node_path": {"type": "str", "default": ""},
            "gateway_version": {"type": "str", "default": ""},
            "root": {"type": "path", "default": "/opt/openclaw"},
            "redis": {"type": "path", "default": "/etc/redis/openclaw"},
        },
        supports_check_mode=True,
    )
    node_path, version, root = (module.params[key] for key in ("node_path", "gateway_version", "root"))
    name, major = distribution(read("/etc/os-release"))
    installed = os.path.isdir(os.path.join(root, "releases", version, "node_modules", "openclaw"))
    ip = module.get_bin_path("ip")
    status, addresses, dummy = module.run_command([ip, "-json", "-4", "address"]) if ip else (1, "", "")
    module.exit_json(
        interfaces=interfaces(addresses) if status == 0 else {},
        memory_bytes=memory(read("/proc/meminfo"), [read(path) for path in CGROUP_LIMITS]),
        distribution=name,
        distribution_major_version=major,
        node_version=node_version(module, node_path),
        npm=find_npm(node_path, root),
        redis_tls=speaks_tls(read(os.path.join(module.params["redis"], name)) for name in ("settings.conf", "sentinel.conf")),
        missing_release="" if installed else version,
    )


if __name__ == "__main__":
    main()
