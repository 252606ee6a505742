# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the timers run: make a backup, check the repository, prove that a backup can be restored."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
import time

from . import data, plan, records
from .restic import Repository


def repositories(config):
    """The repository, and the off-site one or None."""
    cache = os.path.join(config["state_directory"], "cache")
    waits = (config["lock_wait"], config["answer_within"])
    first = Repository(config["repository"], "backup_repository", cache, *waits)
    second = Repository(config["offsite"], "backup_offsite_repository", cache, *waits) if config["offsite"] else None
    return first, second


def opened(config, repository):
    """Open a repository, which must be the one that this host has seen before. :raises Problem: when it is not"""
    identity = repository.open()
    path = _marker(config, repository)
    with contextlib.suppress(FileNotFoundError):
        with open(path, encoding="utf-8") as file:
            seen = file.read().strip()
        if seen != identity:
            raise plan.Problem(
                f"{repository.name} {repository.location}: it is another repository (found {identity[:8]}, and {seen[:8]} was here before); see that the"
                f" right one is mounted, or remove {path} when it was changed on purpose",
                "other_repository",
            )
    with open(path, "w", encoding="utf-8") as file:
        file.write(identity + "\n")
    return repository


def _marker(config, repository):
    return os.path.join(config["state_directory"], f"{repository.name}.id")


def init(config):
    """Make the repositories that do not exist yet; names of the variables of those that were made."""
    made = []
    for repository in filter(None, repositories(config)):
        if os.path.exists(_marker(config, repository)):
            # Once it was there, a place without one is a disk that is not mounted.
            opened(config, repository)
        elif repository.make():
            made.append(repository.name)
        opened(config, repository)
    return made


@contextlib.contextmanager
def alone(config):
    """One action on a host at a time; a second one waits."""
    deadline = time.monotonic() + config["lock_wait"]
    with open(os.path.join(config["state_directory"], "lock"), "w", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise plan.Problem(f"another run of openclaw-backup on this host did not end within {config['lock_wait']:g} s", "locked") from None
                time.sleep(0.2)  # between two tries, until the deadline
        yield


@contextlib.contextmanager
def workplace(config, name, parent=None, for_redis=True):
    """An empty directory that is gone afterwards, root's, or of the user who runs Redis."""
    path = os.path.join(parent or config["state_directory"], name)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path, mode=0o700)
    if for_redis:
        data.give(path, config["redis"]["user"])
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run(config, action):
    """Run one of the actions and write down what came of it; its record."""
    began = time.time()
    result = {"host": config["host"], "site": config["site"], "parts": [], "problems": []}
    try:
        with alone(config):
            {"make": _make, "check": _check, "prove": _prove}[action](config, result)
    except plan.Problem as problem:
        result["problems"].append(f"{problem}.".replace("..", "."))
    except OSError as error:
        result["problems"].append(f"{error.filename or config['state_directory']}: {error.strerror}.")
    except Exception as error:  # whatever it is, a run that failed must leave its record
        result["problems"].append(f"{action} ended with {type(error).__name__}; see journalctl -u openclaw-backup-{action}.service.")
        records.write(config["state_directory"], action, result, began)
        raise
    return records.write(config["state_directory"], action, result, began)


def tags(config, what, site=None):
    """The tags of a kind of snapshot."""
    return (what, f"site={site or config['site']}")


def outlook(config):
    """What a backup would save on this host, without saving it: sentences."""
    told = []
    if config["redis"]:
        who, why, info = data.elected(config["redis"], config["host"])
        keys = plan.keys_of(info)
        told.append(f"Redis: {f'{keys} keys would be saved here' if who == config['host'] else f'{who} saves it'}: {why}.")
    if config["gateway"]:
        told.append(f"gateway: {', '.join(found_paths(config['gateway']))}")
    return told


def found_paths(settings):
    """What there is of a gateway to save. :raises Problem: when a pattern leads to nothing"""
    found = []
    for pattern in settings["paths"]:
        here = sorted(glob.glob(pattern))
        if not here:
            raise plan.Problem(f"there is nothing at {pattern}, which belongs to every gateway host; run site.yml", "nothing")
        found += here
    return found


@contextlib.contextmanager
def _attempt(result, what):
    """Let the other parts of a run go on when one fails."""
    try:
        yield
    except plan.Problem as problem:
        result["problems"].append(f"{what}: {problem}.".replace("..", "."))


def _make(config, result):
    first, second = repositories(config)
    opened(config, first)
    maintains = False
    if config["redis"]:
        with _attempt(result, "Redis"):
            who, result["why"], info = data.elected(config["redis"], config["host"])
            maintains = who == config["host"]
            if maintains:
                result["parts"].append(_save_redis(config, first, info))
            elif not config["gateway"]:
                result["skipped"] = f"{who} saves Redis: {result['why']}"
    if config["gateway"]:
        with _attempt(result, "gateway"):
            result["parts"].append(_save_gateway(config, first, result))
    if not maintains or result["problems"]:
        return
    for repository in filter(None, (first, second)):
        with _attempt(result, "off-site" if repository is second else "retention"):
            if repository is second:
                opened(config, second)
                for what in ("redis", "gateway"):
                    second.copy_from(first, tags(config, what))
            repository.forget(config["keep"], tags(config, "redis"), "tags")
            repository.forget(config["keep"], tags(config, "gateway"), "host,tags")


def _part(what, summary, began, **more):
    return {
        "what": what,
        "snapshot": summary["snapshot_id"][:8],
        "bytes": summary["total_bytes_processed"],
        "added": summary["data_added"],
        "seconds": round(time.time() - began, 1),
        **more,
    }


def _save_redis(config, repository, info):
    began = time.time()
    with workplace(config, "redis") as directory:
        _path, databases = data.dump(config["redis"], directory)
        data.check_memory(info["used_memory"])
        about = {"host": config["host"], "site": config["site"], "made_at": time.time(), "redis_version": info["redis_version"], "role": info["role"]}
        manifest = data.make_manifest(directory, config["redis"], databases, about)
        summary, problem = repository.backup([directory], tags(config, "redis"), config["host"])
        if problem:
            raise plan.Problem(problem)
        return _part("redis", summary, began, keys=manifest["keys"], conversations=len(manifest["conversations"]), role=info["role"])


def _save_gateway(config, repository, result):
    began = time.time()
    paths = found_paths(config["gateway"])
    summary, problem = repository.backup(paths, tags(config, "gateway"), config["host"], config["gateway"]["exclude"])
    if problem:
        result["problems"].append(f"gateway: not everything could be read: {problem}.")
    return _part("gateway", summary, began)


def _maintainer(config, result):
    """Whether this host is the one that looks after the repository; else why not is noted."""
    who, why, _info = data.elected(config["redis"], config["host"])
    if who != config["host"]:
        result["skipped"] = f"{who} does it: {why}"
    return who == config["host"]


def _check(config, result):
    if not _maintainer(config, result):
        return
    before = records.read(config["state_directory"]).get("check", {})
    part = result["part"] = plan.next_part(before.get("part"), config["check_parts"])
    for repository in filter(None, repositories(config)):
        began = time.time()
        with _attempt(result, "check"):
            opened(config, repository).check(part, config["check_parts"])
            result["parts"].append({"what": f"{repository.name}, part {part} of {config['check_parts']}", "seconds": round(time.time() - began, 1)})


def _prove(config, result):
    if not _maintainer(config, result):
        return
    began = time.time()
    repository = opened(config, repositories(config)[0])
    with fetched(config, repository, "latest", "prove") as (snapshot, directory):
        result |= {"snapshot": snapshot["id"][:8], "snapshot_time": snapshot["time"]}
        with data.proven(directory, config["redis"]) as (_server, manifest, report):
            pass
    result["parts"].append(
        {"what": "restore test", "snapshot": snapshot["id"][:8], "seconds": round(time.time() - began, 1), "bytes": manifest["bytes"], **report}
    )
    if not report["equal"]:
        result["problems"].append(f"snapshot {snapshot['id'][:8]}: what was restored differs from its manifest: {'; '.join(report['differs'])}.")


@contextlib.contextmanager
def fetched(config, repository, wanted, name, site=None, parent=None):
    """A snapshot of Redis, restored into a directory that is gone afterwards: ``(snapshot, directory)``."""
    try:
        snapshot = plan.choose(repository.snapshots(*tags(config, "redis", site)), wanted)
    except plan.Problem as problem:
        raise plan.Problem(f"{repository.name} {repository.location}, Redis of {site or config['site']}: {problem}", problem.kind) from None
    with workplace(config, name, parent) as directory:
        target = tempfile.mkdtemp(dir=directory)
        try:
            repository.restore(snapshot["id"], target)
        except plan.Problem as problem:
            raise plan.Problem(f"snapshot {snapshot['id'][:8]} cannot be read: {problem}", problem.kind) from None
        # The files lie below the path that they were saved from.
        for folder, _folders, files in os.walk(target):
            for file in files:
                data.give(shutil.move(os.path.join(folder, file), os.path.join(directory, file)), config["redis"]["user"])
        shutil.rmtree(target)
        yield snapshot, directory
