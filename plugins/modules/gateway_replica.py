#!/usr/bin/python

# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_replica
short_description: Configure and run one gateway replica
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Writes the replica's configuration, environment, settings, secrets and unit, makes its directories, enables its unit and sees to
    it that the process which runs was started with all of that.
  - A process carries a digest of everything it was started with. The unit is restarted when that differs from what is
    on the disk, so a change made by an earlier, interrupted run is not forgotten. A restart waits until the gateway
    has finished the turns it was answering.
  - A release keeps its state in a directory named after its version, which holds O(state_directory). When the version becomes a newer one,
    the replica is stopped and the new directory becomes a copy of the old one, whatever was in it; the old one stays as it is, for the
    way back. An older release goes on with what it had left, or begins anew, because it refuses what a newer one has stored.
  - A configuration that the release itself calls invalid is refused before anything is touched, so a replica that
    runs goes on running.
  - A change of nothing but what OpenClaw takes over while it runs (models, agents, tools, messages and skills in C(openclaw.json)) restarts
    nothing. The module waits until OpenClaw says in its journal that it has taken it over, and otherwise puts the old file back and fails.
  - It does not wait for the replica to get healthy; M(openclaw.ha.gateway_health) does.
options:
  id:
    description: Name of the replica.
    type: str
    required: true
  unit:
    description: The replica's systemd unit.
    type: str
    required: true
  state:
    description: V(absent) stops and disables the unit and removes its file and the replica's configuration; what it stored remains.
    type: str
    choices: [present, absent]
    default: present
  config_directory:
    description: Directory of C(openclaw.json), C(replica.env) and C(secrets.env).
    type: path
    required: true
  state_directory:
    description: OpenClaw's state directory of this replica and version.
    type: path
  directories:
    description: Further directories that belong to the gateway's user, parents first.
    type: list
    elements: path
    default: []
  user:
    description: The user and group that the gateway runs as.
    type: str
    default: openclaw
  validate:
    description: Command that checks a configuration, without its arguments C(config validate --json); it runs as
      O(user). Nothing is checked where the command does not exist yet, as in check mode on a fresh host.
    type: list
    elements: str
    default: []
  config:
    description: Content of C(openclaw.json). Secrets belong into the environment, not in here.
    type: dict
  includes:
    description: Files that O(config) includes and that others write, by path, with the most that each ever holds. It is only needed to
      check the configuration.
    type: dict
    default: {}
  settings:
    description: Content of the agent's C(settings.json), which OpenClaw reads anew for each turn.
    type: dict
    default: {}
  plugins:
    description: npm packages of OpenClaw's own plugins. OpenClaw installs them itself into the replica's state, and only while its gateway is stopped;
      it trusts no others with a channel.
    type: list
    elements: str
    default: []
  plugins_version:
    description: Their version, which is OpenClaw's.
    type: str
    default: ""
  npm_environment:
    description: Additional environment variables for npm.
    type: dict
    default: {}
  environment:
    description: The replica's environment variables that are no secrets.
    type: dict
    default: {}
  secrets:
    description: Content of C(secrets.env), the environment variables that only the process itself may know, as the filter
      P(openclaw.ha.gateway_secrets#filter) writes them.
    type: str
    default: ""
  unit_content:
    description: Content of the unit's own file; without it the unit is somebody else's.
    type: str
    default: ""
  unit_directory:
    description: Where the unit's file is put.
    type: path
    default: /etc/systemd/system
  inputs:
    description: Files and directories that the process reads at its start. Directories C(node_modules) in them count
      by their checksum.
    type: list
    elements: path
    default: []
  reload_deadline:
    description: Seconds for OpenClaw to say that it has taken over a changed configuration.
    type: float
    default: 30
  inputs_changed:
    description: In check mode, whether earlier tasks would have changed one of O(inputs).
    type: bool
    default: false
attributes:
  check_mode:
    description: Says what would be written and done.
    support: full
  diff_mode:
    description: Shows the files before and after, C(secrets.env) excepted.
    support: partial
"""

EXAMPLES = r"""
- name: Run a replica
  openclaw.ha.gateway_replica:
    id: node1-1
    unit: openclaw-gateway@1.service
    config_directory: /etc/openclaw/gateway/1
    state_directory: /var/lib/openclaw/1/2026.9.6/state
    config: "{{ config }}"
    environment: "{{ environment }}"
    validate:
      - /opt/openclaw/node/24.19.0/bin/node
      - /opt/openclaw/releases/2026.9.6/node_modules/openclaw/openclaw.mjs
    unit_content: "{{ lookup('ansible.builtin.template', 'openclaw-gateway.service.j2') }}"
    inputs:
      - /opt/openclaw/plugins/shared_state-0123456789ab

- name: Take a replica away
  openclaw.ha.gateway_replica:
    id: node1-2
    unit: openclaw-gateway@2.service
    config_directory: /etc/openclaw/gateway/2
    state: absent
"""

RETURN = r"""
actions:
  description: The systemctl verbs that were used, in order.
  returned: always
  type: list
  elements: str
  sample: [restart]
live:
  description: Whether the process that runs takes over all that was changed.
  returned: always
  type: bool
seconds:
  description: How long systemd took for all of that, the finishing of turns included; 0 in check mode.
  returned: always
  type: float
files:
  description: The files and directories that were written or removed.
  returned: always
  type: list
  elements: str
"""

import glob
import grp
import json
import os
import pwd
import shutil
import stat
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openclaw.ha.plugins.module_utils import gateway_config, replica, systemd


class InvalidConfig(ValueError):
    """The release does not accept the configuration; the text lists what it has against it."""


class NoPlugin(RuntimeError):
    """A plugin was not installed; the text says which and why."""


class NotTakenOver(RuntimeError):
    """OpenClaw goes on with the configuration that it had; the text says what it has said."""


class Disk:
    """Files as they should be; remembers what had to be touched. With ``dry`` nothing is touched."""

    def __init__(self, user, dry):
        self.dry, self.touched, self.diffs = dry, [], []
        self.root = (os.geteuid(), os.getegid())
        try:
            self.user = (pwd.getpwnam(user).pw_uid, grp.getgrnam(user).gr_gid)
        except KeyError:
            if not dry:
                raise
            self.user = self.root

    def directory(self, path, mode, owner):
        """Make a directory, or mend its mode and owner."""
        try:
            seen = os.lstat(path)
            if not stat.S_ISDIR(seen.st_mode):
                raise NotADirectoryError(20, "This must be a directory, and no link to one", path)
        except FileNotFoundError:
            seen = None
        if seen is not None and _attributes(seen) == (mode, *owner):
            return
        self.touched.append(path)
        if self.dry:
            return
        if seen is None:
            os.mkdir(path, mode)
        os.chown(path, *owner, follow_symlinks=False)
        os.chmod(path, mode)

    def file(self, path, content, mode, owner, secret=False):
        """Write a file as a whole, so that nobody ever reads half of it. A secret one is not shown."""
        before, seen = b"", None
        try:
            seen = os.lstat(path)
            before = read(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        if (
            seen is not None
            and stat.S_ISREG(seen.st_mode)
            and before == content
            and _attributes(seen) == (mode, *owner)
        ):
            return
        self.touched.append(path)
        if not secret:
            self.diffs.append(
                {
                    "before_header": path,
                    "after_header": path,
                    "before": before.decode("utf-8", "replace"),
                    "after": content.decode(),
                }
            )
        if self.dry:
            return
        handle, partial = tempfile.mkstemp(prefix=".partial.", dir=os.path.dirname(path))
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                os.fchown(stream.fileno(), *owner)
                os.fchmod(stream.fileno(), mode)
                stream.flush()
                os.fsync(stream.fileno())
            os.rename(partial, path)
        except BaseException:
            os.unlink(partial)
            raise


class TimedUnits(systemd.Units):
    """systemd, and the seconds that it has taken for what it was told to do."""

    def __init__(self, run_command):
        super().__init__(run_command)
        self.seconds = 0.0

    def do(self, *words):
        began = time.monotonic()
        try:
            return super().do(*words)
        finally:
            self.seconds += time.monotonic() - began


def _attributes(seen):
    return stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_gid


def read(path):
    """The bytes of a file."""
    with open(path, "rb") as stream:
        return stream.read()


def contents(paths):
    """(path, bytes) of all files in ``paths`` and below; of node_modules only the checksum that npm_release left."""
    for path in paths:
        if os.path.isdir(path):
            for directory, names, files in os.walk(path):
                if "node_modules" in names:
                    names.remove("node_modules")
                    files = [*files, os.path.join("node_modules", ".lock-sha256")]
                for name in files:
                    full = os.path.join(directory, name)
                    if os.path.isfile(full):
                        yield full, read(full)
        elif os.path.isfile(path):
            yield path, read(path)


def same(path, content):
    """Whether a file is there with this content."""
    try:
        return read(path) == content
    except OSError:
        return False


def check(config, includes, command, user, environment, module):
    """Let the release check a configuration, as ``user`` and in a directory that is gone afterwards.

    :param includes: path -> document of files that it includes; the check reads copies beside the configuration
    :raises InvalidConfig: when it is not accepted
    """
    account = pwd.getpwnam(user)
    with tempfile.TemporaryDirectory(prefix="openclaw-check.") as directory:
        path = os.path.join(directory, "openclaw.json")
        files = {path: config}
        for number, (elsewhere, content) in enumerate(includes.items()):
            here = os.path.join(directory, f"include{number}.json")
            files[here] = document(content)
            files[path] = files[path].replace(json.dumps(elsewhere).encode(), json.dumps(here).encode())
        for name, content in files.items():
            with open(name, "wb") as stream:
                stream.write(content)
        for name in (directory, *files):
            os.chown(name, account.pw_uid, account.pw_gid)
        places = {
            "OPENCLAW_CONFIG_PATH": path,
            "OPENCLAW_STATE_DIR": os.path.join(directory, "state"),
            "HOME": directory,
        }
        words = [module.get_bin_path("runuser", True), "-u", user, "--", *command, "config", "validate", "--json"]
        found = replica.complaints(*module.run_command(words, environ_update={**environment, **places}, cwd=directory))
    if found:
        raise InvalidConfig("; ".join(found))


def document(data):
    """Stable, readable JSON."""
    return (json.dumps(data, indent=2, sort_keys=True) + "\n").encode()


def unit_file(params):
    """Where the unit's own file is; empty where it is somebody else's."""
    return os.path.join(params["unit_directory"], params["unit"]) if params["unit_content"] else ""


def inherit(params, units, disk):
    """Make the directory of a newer version a copy of the one that the replica runs with now."""
    path = os.path.join(params["config_directory"], "replica.env")
    environment = gateway_config.read_env_file(read(path).decode()) if os.path.isfile(path) else {}
    old, new = os.path.dirname(environment.get("OPENCLAW_STATE_DIR", "")), os.path.dirname(params["state_directory"])
    if not replica.inherits(old, new) or not os.path.isdir(old):
        return
    disk.touched.append(new)
    if disk.dry:
        return
    # What is copied must not change meanwhile. replica.env is written afterwards, so a run that dies here begins anew.
    if units.show(params["unit"]).get("ActiveState") not in (None, "inactive", "failed"):
        units.do("stop", "--", params["unit"])
    partial = f"{new}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    copy_tree(old, partial)
    if os.path.lexists(new):
        shutil.rmtree(new)
    os.rename(partial, new)


def copy_tree(source, target):
    """A directory with modes, times and owners."""
    shutil.copytree(source, target, symlinks=True)
    for directory, names, files in os.walk(source):
        for path in (directory, *(os.path.join(directory, name) for name in names + files)):
            seen = os.lstat(path)
            os.chown(os.path.normpath(os.path.join(target, os.path.relpath(path, source))), seen.st_uid, seen.st_gid, follow_symlinks=False)


def absent_plugins(params):
    """Those of the plugins that the replica's state does not hold in the wanted version."""
    held = set()
    for path in glob.glob(os.path.join(params["state_directory"], "npm/projects/*/node_modules/@openclaw/*/package.json")):
        try:
            told = json.loads(read(path))
        except ValueError:
            continue
        held.add((told.get("name"), told.get("version")))
    return [name for name in params["plugins"] if (name, params["plugins_version"]) not in held]


def install_plugins(params, names, units, module):
    """Have OpenClaw install plugins, which it does only while nobody else has its state.

    :raises NoPlugin: when one was not installed
    """
    if units.show(params["unit"]).get("ActiveState") not in (None, "inactive", "failed"):
        units.do("stop", "--", params["unit"])
    account = pwd.getpwnam(params["user"])
    # OpenClaw notes what it installs in the configuration that it is shown, and npm wants a cache of its own.
    with tempfile.TemporaryDirectory(prefix="openclaw-plugins.") as directory:
        os.chown(directory, account.pw_uid, account.pw_gid)
        places = {"OPENCLAW_CONFIG_PATH": os.path.join(directory, "openclaw.json"), "npm_config_cache": os.path.join(directory, "cache")}
        # Not the replica's own, which allows nothing to be written.
        environment = {key: value for key, value in params["environment"].items() if key != "OPENCLAW_CONFIG_READONLY"}
        for name in names:
            what = f"{name}@{params['plugins_version']}"
            # runuser sets HOME, which does not exist: its replicas have one each.
            words = [module.get_bin_path("runuser", True), "-u", params["user"], "--", "env", f"HOME={directory}", f"TMPDIR={directory}"]
            words += [*params["validate"], "plugins", "install", f"npm:{what}", "--accept-capabilities", "--force"]
            rc, out, err = module.run_command(words, environ_update={**environment, **params["npm_environment"], **places}, cwd=directory)
            if rc != 0 or name in absent_plugins(params):
                raise NoPlugin(f"OpenClaw did not install {what}: it ended with status {rc} and said {' '.join((err or out).split())[-400:]!r}")


def said_since(module, unit, moment, deadline):
    """What OpenClaw says of its configuration, see :func:`replica.taken_over`, as soon as it says it."""
    until = time.monotonic() + deadline
    while True:
        words = ["journalctl", "--unit", unit, "--since", f"@{moment:.6f}", "--no-pager", "--output", "cat"]
        taken, said = replica.taken_over(module.run_command(words)[1])
        if taken is not None or time.monotonic() >= until:
            return taken, said
        time.sleep(0.5)  # between two looks, until the deadline


def present(params, units, disk, module):
    """Write everything and make the unit run it; returns the verbs used, and whether the process takes over what was changed."""
    config = document(params["config"])
    directory, state = params["config_directory"], params["state_directory"]
    command = params["validate"]
    ready = command and all(os.path.exists(word) for word in command) and not (disk.dry and params["inputs_changed"])
    if ready and not same(os.path.join(directory, "openclaw.json"), config):
        check(config, params["includes"], command, params["user"], params["environment"], module)
    secrets = params["secrets"].encode()
    own = {
        "config": document(replica.of_the_start(params["config"])),
        "environment": document(params["environment"]),
        "unit": params["unit_content"].encode(),
        "secrets": secrets,
    }
    # Keyed with the secrets: what the process shows of them lets nobody guess.
    wanted = replica.generation(secrets, [*own.items(), *contents(params["inputs"])])
    environment = {**params["environment"], replica.GENERATION: wanted}
    config_path, settings_path = os.path.join(directory, "openclaw.json"), os.path.join(state, "agents/main/agent/settings.json")
    before = read(config_path) if os.path.isfile(config_path) else b""

    inherit(params, units, disk)
    disk.directory(directory, 0o750, (disk.root[0], disk.user[1]))
    for path in params["directories"]:
        disk.directory(path, 0o700, disk.user)
    for path in ("", "agents", "agents/main", "agents/main/agent"):
        disk.directory(os.path.join(state, path).rstrip("/"), 0o700, disk.user)
    disk.file(settings_path, document(params["settings"]), 0o600, disk.user)
    moment = time.time()
    disk.file(config_path, config, 0o640, (disk.root[0], disk.user[1]))
    environment_text = gateway_config.env_file(environment).encode()
    disk.file(os.path.join(directory, "secrets.env"), secrets, 0o600, disk.root, secret=True)
    disk.file(os.path.join(directory, "replica.env"), environment_text, 0o640, (disk.root[0], disk.user[1]))

    if path := unit_file(params):
        disk.file(path, params["unit_content"].encode(), 0o644, disk.root)

    wanting = absent_plugins(params)
    disk.touched += [os.path.join(state, "npm", name) for name in wanting]
    if wanting and not disk.dry:
        install_plugins(params, wanting, units, module)
    seen = units.show(params["unit"])
    if unit_file(params) in disk.touched:
        seen["NeedDaemonReload"] = "yes"  # systemd does not see by itself that a unit has got a file of its own
    running = running_generation(seen.get("MainPID", "0"))
    # They are installed while it is stopped.
    behind = disk.dry and (params["inputs_changed"] or wanting)
    verbs = replica.plan(seen, "" if behind else running, wanted)
    goes_on = seen.get("ActiveState") == "active" and not {"start", "restart"} & set(verbs)
    if not disk.dry:
        for verb in verbs:
            units.do(verb, *([] if verb == "daemon-reload" else ["--", params["unit"]]))
        if goes_on and before != config:
            taken, words = said_since(module, params["unit"], moment, params["reload_deadline"])
            if not taken:
                disk.file(config_path, before, 0o640, (disk.root[0], disk.user[1]))
                raise NotTakenOver(words or f"it has said nothing of it for {params['reload_deadline']:g} s")
    return verbs, goes_on and (before != config or settings_path in disk.touched)


def absent(params, units, disk, module):
    """Stop and disable the unit, then remove the configuration; returns the verbs used, and that nothing takes anything over."""
    seen = units.show(params["unit"])
    verbs = []
    if seen.get("ActiveState") not in (None, "inactive", "failed"):
        verbs.append("stop")
    if seen.get("UnitFileState") == "enabled":
        verbs.append("disable")
    if not disk.dry:
        for verb in verbs:
            units.do(verb, "--", params["unit"])
    path = os.path.join(params["unit_directory"], params["unit"])
    if os.path.lexists(path):
        disk.touched.append(path)
        verbs.append("daemon-reload")
        if not disk.dry:
            os.unlink(path)
            units.do("daemon-reload")
    # The configuration last, because its directory is how the role finds a replica that has to go.
    path = params["config_directory"]
    if os.path.lexists(path):
        disk.touched.append(path)
        if not disk.dry:
            shutil.rmtree(path)
    return verbs, False


def running_generation(pid):
    """What the process was started with; empty when there is none."""
    if pid in ("", "0"):
        return ""
    try:
        return replica.running_generation(read(f"/proc/{pid}/environ"))
    except OSError:
        return ""


def main():
    module = AnsibleModule(
        argument_spec={
            "id": {"type": "str", "required": True},
            "unit": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "config_directory": {"type": "path", "required": True},
            "state_directory": {"type": "path"},
            "directories": {"type": "list", "elements": "path", "default": []},
            "user": {"type": "str", "default": "openclaw"},
            "validate": {"type": "list", "elements": "str", "default": []},
            "config": {"type": "dict"},
            "includes": {"type": "dict", "default": {}},
            "settings": {"type": "dict", "default": {}},
            "plugins": {"type": "list", "elements": "str", "default": []},
            "plugins_version": {"type": "str", "default": ""},
            "npm_environment": {"type": "dict", "default": {}},
            "environment": {"type": "dict", "default": {}},
            "secrets": {"type": "str", "default": "", "no_log": True},
            "unit_content": {"type": "str", "default": ""},
            "unit_directory": {"type": "path", "default": "/etc/systemd/system"},
            "inputs": {"type": "list", "elements": "path", "default": []},
            "reload_deadline": {"type": "float", "default": 30},
            "inputs_changed": {"type": "bool", "default": False},
        },
        required_if=[("state", "present", ["config", "state_directory"])],
        supports_check_mode=True,
    )
    params = module.params
    act = present if params["state"] == "present" else absent
    try:
        disk = Disk(params["user"], module.check_mode)
        units = TimedUnits(module.run_command)
        verbs, live = act(params, units, disk, module)
    except KeyError:
        module.fail_json(msg=f"Replica {params['id']}: this host has no user and group {params['user']}.")
    except InvalidConfig as error:
        module.fail_json(
            msg=f"Replica {params['id']}: OpenClaw does not accept the configuration: {error}. Nothing was changed; "
            "mend gateway_extra_config."
        )
    except NoPlugin as error:
        module.fail_json(msg=f"Replica {params['id']}: {error}. It is stopped; the next run goes on.")
    except NotTakenOver as error:
        module.fail_json(msg=f"Replica {params['id']}: OpenClaw did not take over its changed configuration: {error}. It goes on with the one that it had.")
    except gateway_config.GatewayConfigError as error:
        module.fail_json(msg=f"Replica {params['id']}: {error}")
    except OSError as error:
        module.fail_json(msg=f"Replica {params['id']}: {error.strerror or error} ({error.filename}).")
    except systemd.SystemdError as error:
        module.fail_json(msg=f"Replica {params['id']}: {error}")
    seconds = round(units.seconds, 1)
    module.exit_json(changed=bool(disk.touched or verbs), actions=verbs, live=live, seconds=seconds, files=disk.touched, diff=disk.diffs)


if __name__ == "__main__":
    main()
