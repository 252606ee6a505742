# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases that install and are bad in one way: the real one under another number, with a few lines before its own in the launcher.

The role finds them installed, because their package.json says so, as it finds a real release.
"""

from __future__ import annotations

import contextlib

from tests.history.faults import execute

HOME = "/opt/openclaw/releases"

#: Way of being bad -> (version, what runs before "gateway run").
BAD = {
    # It goes on for ever and never listens.
    "never ready": ("2026.9.91", "setInterval(() => {}, 1000); await new Promise(() => {});"),
    # It gets ready, but every provider is somewhere where nobody listens.
    "fails every turn": (
        "2026.9.92",
        """
        const { readFileSync, writeFileSync } = await import("node:fs");
        const text = readFileSync(process.env.OPENCLAW_CONFIG_PATH, "utf8");
        const config = JSON.parse(text);
        for (const provider of Object.values(config.models.providers)) provider.baseUrl = "http://127.0.0.1:9/v1";
        const path = `${process.env.OPENCLAW_STATE_DIR}/bad.json`;
        writeFileSync(path, JSON.stringify(config));
        process.env.OPENCLAW_CONFIG_PATH = path;
        """,
    ),
    # It gets ready and answers, and from then on it holds 15 MB more each second.
    "leaks": (
        "2026.9.93",
        """
        const { readFileSync } = await import("node:fs");
        const { port } = JSON.parse(readFileSync(process.env.OPENCLAW_CONFIG_PATH, "utf8")).gateway;
        const held = [];
        const ready = () => fetch(`http://127.0.0.1:${port}/startupz`).then((answer) => answer.ok, () => false);
        setInterval(async () => (held.length || (await ready())) && held.push(Buffer.alloc(7.5e6, 1)), 500);
        """,
    ),
}

#: Runs on a host. Arguments: the good release, the bad one, its version, the lines. The files are links to those of the good one but for three.
MAKE = """
import json, os, pathlib, shutil, subprocess, sys
good, bad, version, lines = sys.argv[1:]
shutil.rmtree(bad, ignore_errors=True)
subprocess.run(["cp", "--archive", "--link", good, bad], check=True)
package = pathlib.Path(bad, "node_modules/openclaw")
manifest, built = (json.loads((package / path).read_text()) for path in ("package.json", "dist/build-info.json"))
launcher = (package / "openclaw.mjs").read_text().split("\\n")
first = 1 if launcher[0].startswith("#!") else 0
launcher.insert(first, 'if (process.argv.includes("run")) { ' + lines + ' }')
files = {
    "package.json": json.dumps(manifest | {"version": version}),
    "dist/build-info.json": json.dumps(built | {"version": version}),
    "openclaw.mjs": "\\n".join(launcher),
}
for path, text in files.items():
    (package / path).unlink()
    (package / path).write_text(text)
"""


@contextlib.contextmanager
def bad_release(cluster, how, good):
    """Puts a bad release onto all gateway hosts, and takes it away. :returns: its version"""
    version, lines = BAD[how]
    hosts = sorted({replica["host"] for replica in cluster.topology["replicas"]})
    try:
        for host in hosts:
            execute(cluster, host, "python3", "-c", MAKE, f"{HOME}/{good}", f"{HOME}/{version}", version, lines)
        yield version
    finally:
        for host in hosts:
            execute(cluster, host, "sh", "-c", f"rm -rf {HOME}/{version} /var/lib/openclaw/*/{version}")
