# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Newer Debian packages: those that a host has, put together again from its own files under a higher version, in a source of the host's own.

Programs, maintainer scripts and dependencies are the real ones. Redis shows another build, as that of another package would.
"""

from __future__ import annotations

import contextlib

from tests.history.faults import execute

SUFFIX = "+lab1"

#: Runs on a host. Arguments: the suffix, and the packages' names; those that the host has not are left out.
MAKE = r"""
import gzip, hashlib, os, pathlib, re, shutil, subprocess, sys
suffix, *names = sys.argv[1:]
source = pathlib.Path("/srv/lab-packages")
shutil.rmtree(source, ignore_errors=True)
source.mkdir(parents=True)
index = ""
for name in names:
    asked = subprocess.run(["dpkg-query", "--status", name], capture_output=True, text=True)
    if asked.returncode or "install ok installed" not in asked.stdout:
        continue
    control = re.sub(r"^(Status|Conffiles):.*\n( .*\n)*", "", asked.stdout, flags=re.M)
    version = re.search(r"^Version: (.*)$", control, re.M)[1]
    # Those of one source want each other's version.
    control = control.replace(version, version + suffix)
    tree = source / name
    for path in map(pathlib.Path, subprocess.run(["dpkg-query", "--listfiles", name], capture_output=True, text=True, check=True).stdout.split("\n")):
        target = tree / path.relative_to("/") if path.is_absolute() else None
        if target and path.is_dir():  # also where a link leads there: /lib is one
            target.mkdir(parents=True, exist_ok=True)
        elif target and os.path.lexists(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target, follow_symlinks=False)
    info = tree / "DEBIAN"
    info.mkdir(mode=0o755)
    (info / "control").write_text(control)
    for kind in ("preinst", "postinst", "prerm", "postrm", "triggers"):
        script = pathlib.Path(f"/var/lib/dpkg/info/{name}.{kind}")
        if script.exists():
            shutil.copy2(script, info / kind)
    conffiles = pathlib.Path(f"/var/lib/dpkg/info/{name}.conffiles")
    if conffiles.exists():
        kept = [line for line in conffiles.read_text().splitlines() if (tree / line.lstrip("/")).exists()]
        (info / "conffiles").write_text("".join(f"{line}\n" for line in kept))
    redis = tree / "usr/bin/redis-check-rdb"
    if redis.exists() and not redis.is_symlink():
        number = re.search(r"([\d.]+)-", version.split(":")[-1])[1].encode()
        program = redis.read_bytes()
        # What its build is told by: the version, and when it was built.
        changed = re.sub(rb"(%s)(\d{9})(\d)" % re.escape(number), lambda found: found[1] + found[2] + b"%d" % ((int(found[3]) + 1) % 10), program)
        assert changed != program, "nothing in this program tells its build"
        redis.write_bytes(changed)
    package = source / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, package], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    data = package.read_bytes()
    index += control.rstrip() + f"\nFilename: ./{package.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n"
(source / "Packages").write_text(index)
# Nothing is asked of the network meanwhile.
os.rename("/etc/apt/sources.list", "/srv/lab-packages/sources.list")
pathlib.Path("/etc/apt/sources.list.d/lab.list").write_text(f"deb [trusted=yes] file:{source} ./\n")
"""

AWAY = "rm -f /etc/apt/sources.list.d/lab.list; mv /srv/lab-packages/sources.list /etc/apt/sources.list; rm -rf /srv/lab-packages"


@contextlib.contextmanager
def newer(cluster, *names):
    """Offers newer packages to all hosts that have them, and stops offering them. What was installed stays."""
    try:
        for host in cluster.topology["hosts"]:
            execute(cluster, host, "python3", "-c", MAKE, SUFFIX, *names)
        yield
    finally:
        for host in cluster.topology["hosts"]:
            execute(cluster, host, "sh", "-c", AWAY)


def versions(cluster, *names):
    """host -> {package: version} of those that are installed."""
    found = {}
    for host in cluster.topology["hosts"]:
        lines = execute(cluster, host, "dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Abbrev} ${Version}\\n").splitlines()
        rows = [line.split() for line in lines]
        found[host] = {name: number for name, state, number in rows if name in names and state == "ii"}
    return found


def stale(cluster):
    """Processes of all hosts whose program was replaced since they were started: (host, program)."""
    look = "for one in /proc/[0-9]*; do readlink $one/exe; done 2>/dev/null | sed -n 's/ (deleted)$//p' | sort -u"
    return {(host, path) for host in cluster.topology["hosts"] for path in execute(cluster, host, "sh", "-c", look).splitlines()}
