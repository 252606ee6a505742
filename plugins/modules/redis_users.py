#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_users
short_description: Give a Redis server or a Sentinel its users
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Compares the users of a running server (ACL LIST) with the cluster's users, changes those that differ (ACL SETUSER, ACL DELUSER) and has the
    server write them to its file (ACL SAVE). Each user may do what its work needs and nothing else; the user C(default) is off.
  - Connections that are open stay open, unless their user is removed.
  - Where nothing listens, it changes the file that the server reads at its start.
  - The files hold SHA-256 digests of the passwords only.
  - A password is changed in two steps, so that nobody is ever refused - first with O(older=keep), so that the old and the new one are good, then,
    once all clients have the new one, with O(older=remove).
  - Gets in with the password in O(redis_access), else with the one that was good the last time, which is remembered in O(remembered).
options:
  kind:
    description: The kind of server, which decides which users there are.
    type: str
    choices: [redis, sentinel]
    required: true
  address:
    description: Address of the server.
    type: str
    required: true
  port:
    description: Port of the server.
    type: int
    required: true
  passwords:
    description: The password of every user of this kind; see the filter P(openclaw.ha.redis_passwords#filter).
    type: dict
    required: true
  file:
    description: The server's C(aclfile).
    type: path
    required: true
  remembered:
    description: File, readable for root only, that keeps the password of the user C(admin).
    type: path
    required: true
  older:
    description: What becomes of passwords that were good before, and of users that the cluster does not have.
    type: str
    choices: [keep, remove]
    default: keep
  create:
    description: Whether O(file) is made when it does not exist; without, a host where the server was never set up is left alone.
    type: bool
    default: true
  user:
    description: Owner and group of O(file) when it is written here.
    type: str
    default: redis
extends_documentation_fragment:
  - openclaw.ha.access.redis
attributes:
  check_mode:
    description: Says what would be changed.
    support: full
  diff_mode:
    description: Shows what changes of which user; passwords are counted, not shown.
    support: full
"""

EXAMPLES = r"""
- name: Accept the new passwords beside the old ones
  openclaw.ha.redis_users:
    kind: redis
    address: 192.0.2.11
    port: 6379
    redis_access:
      username: admin
      password: "{{ passwords.admin }}"
    passwords: "{{ passwords }}"
    file: /etc/redis/openclaw/users.acl
    remembered: /etc/openclaw/redis-admin
  vars:
    passwords: "{{ redis_password | openclaw.ha.redis_passwords('redis') }}"
"""

RETURN = r"""
users:
  description: What changed, as a list of sentences by user.
  type: dict
  returned: always
  sample: {app: [1 password added]}
live:
  description: Whether a running server was changed, and not its file alone.
  type: bool
  returned: always
"""

import grp
import os
import pwd
import tempfile

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.openclaw.ha.plugins.module_utils import redis_access, redis_client


class NoWayIn(Exception):
    """Neither password is accepted."""


def nobody_listens(error):
    """Whether a failed connection was refused by the host itself, and not lost or ended by a server."""
    while error:
        if isinstance(error, ConnectionRefusedError):
            return True
        error = error.__cause__ or error.__context__
    return False


def read(path):
    """Text of a file, None where there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def write(path, text, mode, owner):
    """Write a file as a whole, readable to nobody else at any moment."""
    handle, partial = tempfile.mkstemp(prefix=".partial.", dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            os.fchown(stream.fileno(), *owner)
            os.fchmod(stream.fileno(), mode)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def enter(parameters):
    """A client that is let in, with the wanted password, else with the remembered one; None where nothing listens.

    :raises NoWayIn: when both are refused
    """
    refused = None
    for password in (parameters["redis_access"].get("password"), (read(parameters["remembered"]) or "").strip()):
        client = redis_client.connect(parameters, {**parameters["redis_access"], "password": password}, timeout=5)
        try:
            client.ping()
            return client
        except redis_client.redis.BusyLoadingError:
            return client
        except (redis_client.redis.AuthenticationError, redis_client.redis.ResponseError) as error:
            refused = error
        except redis_client.redis.ConnectionError as error:
            if nobody_listens(error):
                return None
            raise
    raise NoWayIn(str(refused))


def ensure(parameters, dry):
    """Bring the users to what they should be; returns the module's result."""
    before = read(parameters["file"])
    client = enter(parameters)
    live = client is not None
    on_disk = redis_access.parse((before or "").splitlines())
    present = redis_access.parse(client.execute_command("ACL LIST")) if live else on_disk
    wanted = redis_access.target(present, parameters["kind"], parameters["passwords"], parameters["older"] == "keep")
    if live:
        categories = {name: client.execute_command("ACL CAT", name) for name in client.execute_command("ACL CAT")}
        saved, running, meant = (redis_access.understand(users, categories) for users in (on_disk, present, wanted))
        changes = redis_access.changes(running, meant)
        stale = bool(changes) or saved != running
    else:
        changes = redis_access.changes(present, wanted)
        stale = bool(changes)
    if not dry:
        if live:
            for name in changes:
                command = ("ACL SETUSER", name, "reset", *wanted[name].words()) if name in wanted else ("ACL DELUSER", name)
                client.execute_command(*command)
            if stale:
                client.execute_command("ACL SAVE")
        elif stale or before is None:
            write(parameters["file"], redis_access.text(wanted), 0o640, _owner(parameters["user"]))
        remember(parameters)
    return {
        "changed": stale,
        "users": changes,
        "live": live,
        "diff": {
            "before": "",
            "after": "".join(f"{parameters['kind']} user {name}: {', '.join(said)}\n" for name, said in changes.items()),
        },
    }


def remember(parameters):
    """Keep the password that is good now. Only what is good on the server is ever written here."""
    path, password = parameters["remembered"], parameters["passwords"]["admin"]
    if (read(path) or "").strip() != password:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        write(path, password + "\n", 0o600, (os.geteuid(), os.getegid()))


def _owner(user):
    return pwd.getpwnam(user).pw_uid, grp.getgrnam(user).gr_gid


def main():
    module = AnsibleModule(
        argument_spec={
            "kind": {"type": "str", "choices": ["redis", "sentinel"], "required": True},
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "redis_access": redis_client.ACCESS,
            "passwords": {"type": "dict", "required": True, "no_log": True},
            "file": {"type": "path", "required": True},
            "remembered": {"type": "path", "required": True},
            "older": {"type": "str", "choices": ["keep", "remove"], "default": "keep"},
            "create": {"type": "bool", "default": True},
            "user": {"type": "str", "default": "redis"},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    if not parameters["create"] and not os.path.exists(parameters["file"]):
        # Nothing was set up here yet, the library included.
        module.exit_json(changed=False, users={}, live=False)
    redis_client.require_redis(module)
    label = f"{parameters['kind'].capitalize()} at {parameters['address']}:{parameters['port']}"
    missing = sorted(set(redis_access.RULES[parameters["kind"]]) - set(parameters["passwords"]))
    if missing:
        module.fail_json(msg=f"{label}: passwords has none for {', '.join(missing)}.")
    try:
        result = ensure(parameters, module.check_mode)
    except NoWayIn as error:
        module.fail_json(
            msg=f"{label} lets the user admin in neither with the password of this inventory nor with the one in {parameters['remembered']}: {error}. "
            "Run with the secret that was good before, then with the new one."
        )
    except redis_client.redis.RedisError as error:
        module.fail_json(msg=f"{label}: {error}")
    except KeyError:
        module.fail_json(msg=f"{label}: this host has no user and group {parameters['user']}.")
    except OSError as error:
        module.fail_json(msg=f"{label}: {error.strerror or error}{f' ({error.filename})' if error.filename else ''}.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
