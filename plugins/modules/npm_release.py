#!/usr/bin/python

# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: npm_release
short_description: Install an npm package version, or a project's locked dependencies, as a whole or not at all
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - With O(package) and O(version), installs that version below a directory of its own and proves it by running the
    package's own command with C(--version).
  - Without them, installs what the C(package-lock.json) in O(path) pins into C(node_modules) beside it, once for each
    content of that file.
  - npm works in a directory beside the target, which takes its place only when everything succeeded. An interrupted
    installation is therefore never mistaken for a complete one, and a running program keeps what it started with.
options:
  path:
    description: Directory of the release, or of the project.
    type: path
    required: true
  package:
    description: Package to install.
    type: str
  version:
    description: Exact version to install.
    type: str
  npm:
    description: The npm to install with; the C(node) beside it is used.
    type: path
    required: true
  cache:
    description: npm's cache. What it holds is not downloaded.
    type: path
  environment:
    description: Additional environment variables for npm, such as C(NODE_EXTRA_CA_CERTS).
    type: dict
    default: {}
attributes:
  check_mode:
    description: Says whether something would be installed.
    support: full
  diff_mode:
    description: Shows the version, or the checksum of the lock file, before and after.
    support: full
"""

EXAMPLES = r"""
- name: Install a gateway release
  openclaw.ha.npm_release:
    path: /opt/openclaw/releases/2026.9.6
    package: openclaw
    version: 2026.9.6
    npm: /opt/openclaw/node/24.19.0/bin/npm
    cache: /var/cache/openclaw/npm

- name: Install the plugin's dependencies
  openclaw.ha.npm_release:
    path: /opt/openclaw/plugins/shared_state
    npm: /opt/openclaw/node/24.19.0/bin/npm
"""

RETURN = r"""
before:
  description: Version, or checksum of the lock file, that was installed; empty when there was none.
  returned: always
  type: str
after:
  description: Version, or checksum of the lock file, that is installed now.
  returned: always
  type: str
seconds:
  description: Time that npm took.
  returned: when something was installed
  type: float
"""

import hashlib
import json
import os
import re
import shutil
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openclaw.ha.plugins.module_utils import npm

STAMP = ".lock-sha256"


class InstallError(RuntimeError):
    """Nothing was installed, and what was there is untouched; the text says why and what to do."""


def read(path):
    """The text of a file, or an empty one where there is none."""
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def manifest(path, package):
    """The package.json of an installed package; empty when it is not there or cannot be read."""
    try:
        found = json.loads(read(os.path.join(path, "node_modules", package, "package.json")) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def command_of(path, package):
    """Path of the package's own command."""
    entry = manifest(path, package).get("bin") or ""
    if isinstance(entry, dict):
        entry = entry.get(package) or next(iter(entry.values()), "")
    return os.path.join(path, "node_modules", package, entry) if entry else ""


def remove(path):
    """Remove a directory and all below it, if it is there; errors are the caller's to report."""
    if os.path.lexists(path):
        shutil.rmtree(path)


def swap(new, target):
    """Put ``new`` in the place of ``target``; the old one goes only after the new one stands."""
    old = f"{target}.old"
    remove(old)
    if os.path.lexists(target):
        os.rename(target, old)
    os.rename(new, target)
    remove(old)


class Package:
    """One version of one package in a directory of its own."""

    def __init__(self, path, package, version):
        self.path, self.package, self.version = path, package, version
        self.name = f"{package} {version}"
        self.work = f"{path}.partial"

    def before(self):
        return str(manifest(self.path, self.package).get("version") or "")

    def after(self):
        return self.version

    def words(self):
        return ["install", "--prefix", self.work, "--no-save", f"{self.package}@{self.version}"]

    def prepare(self):
        os.makedirs(self.work)

    def prove(self, run, node):
        """The installed command tells its version; anything else is a broken installation."""
        command = command_of(self.work, self.package)
        if not command:
            raise InstallError(f"{self.name} was installed, but brings no command of its own.")
        rc, out, err = run([node, command, "--version"])
        told = re.findall(r"\d+(?:\.\d+)+[\w.-]*", out)
        if rc != 0 or self.version not in told:
            words = " ".join((out + " " + err).split())[-300:] or "nothing"
            raise InstallError(
                f"{self.name} was installed, but does not run: it ended with status {rc} and said {words!r}."
            )

    def put(self):
        swap(self.work, self.path)


class Project:
    """The locked dependencies of a directory with package.json and package-lock.json."""

    def __init__(self, path):
        self.path = path
        self.name = f"what {path}/package-lock.json pins"
        self.work = f"{path}.partial"

    def before(self):
        return read(os.path.join(self.path, "node_modules", STAMP)).strip()

    def after(self):
        text = read(os.path.join(self.path, "package-lock.json"))
        return hashlib.sha256(text.encode()).hexdigest() if text else ""

    def words(self):
        return ["ci", "--prefix", self.work]

    def prepare(self):
        if not self.after():
            raise InstallError(f"{self.path} has no package-lock.json.")
        os.makedirs(os.path.join(self.work, "node_modules"))
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(os.path.join(self.path, name), os.path.join(self.work, name))

    def prove(self, run, node):
        # npm removes and makes node_modules itself, and leaves none when nothing is pinned.
        os.makedirs(os.path.join(self.work, "node_modules"), exist_ok=True)
        with open(os.path.join(self.work, "node_modules", STAMP), "w", encoding="utf-8") as handle:
            handle.write(self.after() + "\n")

    def put(self):
        swap(os.path.join(self.work, "node_modules"), os.path.join(self.path, "node_modules"))
        remove(self.work)


def install(thing, params, run_command):
    """Run npm beside the target, prove the result, put it in place."""
    executable = params["npm"]
    if not os.access(executable, os.X_OK):
        raise InstallError(f"there is no npm at {executable}; the gateway role installs one, or set gateway_node_path.")
    directory = os.path.dirname(executable)
    environment = npm.environment(os.environ, params["cache"], params["environment"], directory)

    def run(words):
        return run_command(words, environ_update=environment, cwd="/", umask=0o022)

    try:
        remove(thing.work)
        thing.prepare()
        rc, out, err = run([executable, *thing.words(), *npm.FLAGS])
        if rc != 0:
            raise InstallError(npm.error(out, err, rc)[1])
        thing.prove(run, os.path.join(directory, "node"))
        thing.put()
    except OSError as error:
        raise InstallError(f"{error.strerror or error} ({error.filename or thing.work}).") from error


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "package": {"type": "str"},
            "version": {"type": "str"},
            "npm": {"type": "path", "required": True},
            "cache": {"type": "path"},
            "environment": {"type": "dict", "default": {}},
        },
        required_together=[["package", "version"]],
        supports_check_mode=True,
    )
    params = module.params
    path = params["path"].rstrip("/")
    thing = Package(path, params["package"], params["version"]) if params["package"] else Project(path)
    before, after = thing.before(), thing.after()
    result = {
        "changed": before != after or not after,
        "before": before,
        "after": after,
        "diff": {"before": f"{before}\n" if before else "", "after": f"{after}\n" if after else ""},
    }
    if result["changed"] and not module.check_mode:
        os.umask(0o022)
        start = time.monotonic()
        try:
            install(thing, params, module.run_command)
        except InstallError as error:
            module.fail_json(
                msg=f"Cannot install {thing.name} on {os.uname().nodename}: {error}", before=before, after=before
            )
        result["seconds"] = round(time.monotonic() - start, 1)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
