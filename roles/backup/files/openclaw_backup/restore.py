# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a restore on one host. Redis and the Sentinels are stopped and started by the playbook, in between.

What was there is moved aside, never overwritten, so that each step can be taken back by hand.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import pwd
import shutil
import subprocess
import time

from . import actions, data, plan

#: Beside the data of Redis, so that what is ready is put in its place by renaming.
STAGED, ASIDE = "openclaw-restore", "before-restore-"
#: What the start-up guard remembers of the old files; it does not hold for the new ones.
GUARD_RECORD = "data-seen.json"


def is_running(unit):
    """Whether systemd runs a unit, or is about to."""
    done = subprocess.run(["systemctl", "is-active", "--", unit], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return done.stdout.strip() not in ("inactive", "failed", "unknown")


def _files(settings):
    """Paths of the files with data."""
    home, names = settings["data_directory"], settings["settings"]
    folder, snapshot = os.path.join(home, names["appenddirname"]), os.path.join(home, names["dbfilename"])
    found = [snapshot] if os.path.exists(snapshot) else []
    with contextlib.suppress(FileNotFoundError):
        found += [entry.path for entry in os.scandir(folder) if entry.is_file()]
    return found


def holds(config, running=is_running):
    """What is there now: whether Redis was set up, runs, and holds data. Of one that does not answer, its files tell."""
    settings = config["redis"]
    files = _files(settings)
    found = {
        "set_up": os.path.exists(os.path.join(settings["etc_directory"], "redis.conf")),
        "running": running(settings["unit"]),
        "keys": None,
        "bytes": sum(map(os.path.getsize, files)),
    }
    if found["running"]:
        with contextlib.suppress(plan.Problem):
            info = data.ask(settings)
            # While it loads, it does not tell.
            found["keys"] = None if info.get("loading") else plan.keys_of(info)
    if found["keys"] is not None:
        return {**found, "data": found["keys"] > 0}
    counts = {path: data.keys_in(path, settings["user"]) if path.endswith(".rdb") else os.path.getsize(path) for path in files}
    return {**found, "data": plan.holds_data(counts)}


def stage(config, wanted, site=None, discard=False):
    """Fetch a snapshot of Redis, prove that it is what was saved, and make append-only files of it; what it is.

    :param discard: only prove it, and leave nothing
    """
    settings = config["redis"]
    repository = actions.repositories(config)[0]
    repository.open()
    home = settings["data_directory"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(actions.alone(config))
        snapshot, directory = stack.enter_context(actions.fetched(config, repository, wanted, f"{STAGED}.new", site, home))
        found = {"snapshot": snapshot["id"][:8], "time": snapshot["time"]}
        try:
            # The files, the append-only ones made of them, and what Redis itself will write.
            plan.room(3 * os.path.getsize(os.path.join(directory, data.SNAPSHOT)), shutil.disk_usage(home).free, home)
            with data.proven(directory, settings) as (server, manifest, report):
                if not report["equal"]:
                    raise plan.Problem(f"what is in it differs from its manifest: {'; '.join(report['differs'])}", "damaged")
                if wanted == "latest" and not manifest["conversations"]:
                    # A cluster that was set up anew, and saved before it was restored.
                    raise plan.Problem("it is the newest and holds no conversation at all; name the one that is meant by its ID", "empty")
                if not discard:
                    server.make_append_only()
        except FileNotFoundError as error:
            raise plan.Problem(f"snapshot {found['snapshot']} has no {os.path.basename(error.filename)}; choose another one", "damaged") from None
        except plan.Problem as problem:
            when = found["time"][:16]
            raise plan.Problem(f"snapshot {found['snapshot']} of {when}: {problem}; see 'openclaw-backup list' for others", problem.kind) from None
        if not discard:
            target = os.path.join(home, STAGED)
            shutil.rmtree(target, ignore_errors=True)
            os.makedirs(target, mode=0o700)
            data.give(target, settings["user"])
            for name in (settings["settings"]["appenddirname"], data.SNAPSHOT, data.MANIFEST):
                os.rename(os.path.join(directory, name), os.path.join(target, name))
    return {**found, "bytes": manifest["bytes"], "made_by": manifest["host"], **report}


def swap(config, stamp, follow=None, running=is_running):
    """Put the staged data in the place of what is there (a primary), or take away what is there (a replica that follows another).

    :param stamp: name of this restore; what was there is moved to a directory that ends with it
    :param follow: ``(address, port)`` of the primary, None for the primary itself
    """
    settings = config["redis"]
    home, etc, names = settings["data_directory"], settings["etc_directory"], settings["settings"]
    if running(settings["unit"]):
        raise plan.Problem(f"{settings['unit']} runs; stop it first, or it writes into what is moved away", "running")
    staged = os.path.join(home, STAGED)
    if follow is None and not os.path.isdir(staged):
        raise plan.Problem(f"there is nothing at {staged}; run stage first", "nothing")
    aside = os.path.join(home, f"{ASIDE}{stamp}")
    os.makedirs(aside, mode=0o700, exist_ok=True)
    data.give(aside, settings["user"])
    moved = []
    for name in (names["appenddirname"], names["dbfilename"]):
        if os.path.exists(os.path.join(home, name)) and not os.path.exists(os.path.join(aside, name)):
            os.rename(os.path.join(home, name), os.path.join(aside, name))
            moved.append(name)
    if os.path.exists(os.path.join(etc, GUARD_RECORD)):
        shutil.move(os.path.join(etc, GUARD_RECORD), os.path.join(aside, GUARD_RECORD))
    conf = os.path.join(etc, "redis.conf")
    shutil.copy2(conf, os.path.join(aside, "redis.conf"))
    if follow is None:
        os.rename(os.path.join(staged, names["appenddirname"]), os.path.join(home, names["appenddirname"]))
        os.rename(os.path.join(staged, data.SNAPSHOT), os.path.join(home, names["dbfilename"]))
    _rewrite(conf, follow)
    return {"aside": aside, "moved": moved}


def _rewrite(path, follow):
    """Say in the file that Redis owns whom it follows; owner and mode stay."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    status = os.stat(path)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), status.st_mode & 0o7777)
        os.fchown(file.fileno(), status.st_uid, status.st_gid)
        file.write(plan.redis_conf(text, follow))
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


def compare(config, manifest):
    """Have this host's server write its data down, and compare that with a manifest; the report."""
    with actions.alone(config), actions.workplace(config, "compare") as directory:
        _path, databases = data.dump(config["redis"], directory)
        data.verify(os.path.join(directory, data.SNAPSHOT), config["redis"]["user"])
        with data.Scratch(directory, config["redis"], databases) as server:
            found = data.read(server)
    return plan.compare(plan.check_manifest(manifest), found, time.time() * 1000, exact=False)


def synced(config, primary, seconds):
    """Wait until this host's server follows the primary with its link up. :raises Problem: at the deadline"""
    address, _colon, port = primary.rpartition(":")

    def follows():
        try:
            info = data.client(config["redis"]).info("replication")
        except data.redis.RedisError:
            return False
        return info["role"] == "slave" and info["master_host"] == address and str(info["master_port"]) == port and info["master_link_status"] == "up"

    data.wait(f"Redis at {config['redis']['address']} as a replica of {primary}", follows, seconds)


def ready(config, seconds):
    """Wait until this host's server has loaded its data. :raises Problem: at the deadline"""

    def answers():
        try:
            return data.client(config["redis"]).ping()
        except data.redis.RedisError:
            return False

    data.wait(f"Redis at {config['redis']['address']}:{config['redis']['port']} to answer", answers, seconds)


def manifest_of(config):
    """The manifest of what was staged here. :raises Problem: when there is none"""
    path = os.path.join(config["redis"]["data_directory"], STAGED, data.MANIFEST)
    try:
        with open(path, encoding="utf-8") as file:
            return plan.check_manifest(json.load(file))
    except (OSError, ValueError):
        raise plan.Problem(f"there is no manifest at {path}; run stage first", "nothing") from None


def gateway(config, wanted, stamp, dry=False):
    """Put configuration and workspaces of this host's gateways back to where they were; what differs. What is replaced is kept."""
    repository = actions.repositories(config)[0]
    repository.open()
    try:
        snapshot = plan.choose(repository.snapshots(*actions.tags(config, "gateway"), host=config["host"]), wanted)
    except plan.Problem as problem:
        raise plan.Problem(f"{repository.name} {repository.location}, gateway of {config['host']}: {problem}", problem.kind) from None
    aside = os.path.join(config["state_directory"], f"{ASIDE}{stamp}")
    replaced, made = [], []
    with actions.alone(config), actions.workplace(config, "gateway", for_redis=False) as directory:
        repository.restore(snapshot["id"], directory)
        for folder, _folders, files in os.walk(directory):
            for file in sorted(files):
                source = os.path.join(folder, file)
                target = "/" + os.path.relpath(source, directory)
                if os.path.lexists(target) and _same(source, target):
                    continue
                if os.path.lexists(target):
                    replaced.append(target)
                    if not dry:
                        os.makedirs(os.path.dirname(aside + target), mode=0o700, exist_ok=True)
                        shutil.copy2(target, aside + target, follow_symlinks=False)
                else:
                    made.append(target)
                if not dry:
                    _place(source, target, directory, config["gateway"]["user"])
    return {"snapshot": snapshot["id"][:8], "time": snapshot["time"], "replaced": sorted(replaced), "made": sorted(made), "aside": aside if replaced else ""}


def _same(source, target):
    if os.path.islink(source) or os.path.islink(target):
        return os.path.islink(source) and os.path.islink(target) and os.readlink(source) == os.readlink(target)
    return filecmp.cmp(source, target, shallow=False)


def _own(path, status, user):
    """Root's stays root's; what belonged to the gateways' user belongs to it again, whatever its number is on this host."""
    if os.geteuid() == 0:
        account = pwd.getpwnam(user)
        os.chown(path, account.pw_uid if status.st_uid else 0, account.pw_gid if status.st_gid else 0, follow_symlinks=False)


def _place(source, target, root, user):
    """Copy a restored file to its place, with the directories above it as they were."""
    missing, folder = [], os.path.dirname(target)
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for folder in reversed(missing):
        status = os.stat(root + folder)
        os.mkdir(folder)
        os.chmod(folder, status.st_mode & 0o7777)
        _own(folder, status, user)
    status = os.lstat(source)
    temporary = f"{target}.openclaw-restore"
    shutil.copy2(source, temporary, follow_symlinks=False)
    _own(temporary, status, user)
    os.replace(temporary, target)
