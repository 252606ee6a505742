#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_config
short_description: Make settings of a running Redis server or Sentinel what they should be
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Compares CONFIG GET with the wanted settings and sends CONFIG SET for those that differ, so that a change goes live without a restart.
  - With O(sentinel) it does the same through SENTINEL MASTER and SENTINEL SET, for the settings of one watched primary.
  - Waits for the server to answer and to have loaded its data first.
  - Writes no file; the file that the server reads at its next start is the role's.
options:
  address:
    description: Address of the server.
    type: str
    required: true
  port:
    description: Port of the server.
    type: int
    required: true
  settings:
    description: Settings by name, as in redis.conf.
    type: dict
    default: {}
  secret_settings:
    description: Settings whose values are never shown, such as C(masterauth).
    type: dict
    default: {}
  certificate:
    description:
      - File of the certificate that the server should show, such as C(tls-cert-file). When it shows another one, because the file was renewed, Redis is
        made to read its certificate, key and authority again. A Sentinel cannot do that, see RV(restart_needed).
    type: path
  file:
    description:
      - File in which a Sentinel keeps its settings. It is read for O(secret_settings), C(auth-user), C(auth-pass), C(sentinel-user) and C(sentinel-pass),
        which a Sentinel does not tell.
    type: path
  sentinel:
    description: Name of the watched primary when the server is a Sentinel.
    type: str
  wait:
    description: Seconds to wait for the server to answer and to have loaded its data.
    type: float
    default: 30
extends_documentation_fragment:
  - openclaw.ha.access.redis
"""

EXAMPLES = r"""
- name: Give Redis more memory, live
  openclaw.ha.redis_config:
    address: 192.0.2.11
    port: 6379
    redis_access:
      password: "{{ redis_password }}"
    settings:
      maxmemory: 512mb
"""

RETURN = r"""
settings:
  description: Names of the settings that differed.
  type: list
  elements: str
  returned: always
restart_needed:
  description: Whether the server is a Sentinel that shows another certificate than O(certificate).
  type: bool
  returned: always
"""

import ssl
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.openclaw.ha.plugins.module_utils import redis_client
from ansible_collections.openclaw.ha.plugins.module_utils.redis_view import differences


#: How a Sentinel gets into the other ones; the rest is about one watched primary.
SENTINEL_OWN = ("sentinel-user", "sentinel-pass")


#: Read again together.
TLS_FILES = ("tls-cert-file", "tls-key-file", "tls-ca-cert-file")


def is_renewed(parameters):
    """Whether the server shows another certificate than the file holds. :raises OSError: when either cannot be had"""
    with open(parameters["certificate"], encoding="utf-8") as stream:
        pem = stream.read()
    end = "-----END CERTIFICATE-----"
    # A server shows the first one of a chain.
    on_disk = ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN") : pem.index(end) + len(end)] + "\n")
    return redis_client.served_certificate(parameters, parameters["redis_access"], timeout=5) != on_disk


def kept(path, name):
    """What stands in a Sentinel's file about users and passwords; {} without a file."""
    if not path:
        return {}
    with open(path, encoding="utf-8") as stream:
        lines = [line.replace('"', "").split() for line in stream if line.startswith("sentinel ")]
    own = {words[1]: words[2] for words in lines if len(words) == 3 and words[1] in SENTINEL_OWN}
    return own | {words[1]: words[3] for words in lines if len(words) == 4 and words[1] in ("auth-user", "auth-pass") and words[2] == name}


def wait_until_ready(client, seconds):
    """Ping until the server answers and has loaded its data; returns None, or the last error's text at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            client.ping()
            return None
        except (redis_client.redis.AuthenticationError, redis_client.redis.ResponseError) as error:
            # A wrong password does not heal by waiting; "loading" does.
            if not isinstance(error, redis_client.redis.BusyLoadingError):
                return str(error)
            last = str(error)
        except redis_client.redis.RedisError as error:
            last = str(error)
        if time.monotonic() >= deadline:
            return last
        time.sleep(0.2)  # between two pings, until the deadline


def main():
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "redis_access": redis_client.ACCESS,
            "settings": {"type": "dict", "default": {}},
            "secret_settings": {"type": "dict", "default": {}, "no_log": True},
            "certificate": {"type": "path"},
            "file": {"type": "path"},
            "sentinel": {"type": "str"},
            "wait": {"type": "float", "default": 30},
        },
        supports_check_mode=True,
    )
    redis_client.require_redis(module)
    parameters = module.params
    wanted = {**parameters["settings"], **parameters["secret_settings"]}
    label = f"{'Sentinel' if parameters['sentinel'] else 'Redis'} at {parameters['address']}:{parameters['port']}"
    client = redis_client.connect(parameters, parameters["redis_access"], timeout=5)
    error = wait_until_ready(client, parameters["wait"])
    if error:
        module.fail_json(msg=f"{label} does not answer as it should: {error} (waited up to {parameters['wait']:.0f} s).")

    name = parameters["sentinel"]
    if name:
        found = {**redis_client.sentinel_settings(client, name), **kept(parameters["file"], name)}
    else:
        found = client.config_get(*wanted)
    changes = differences(wanted, found)
    try:
        renewed = bool(parameters["certificate"]) and is_renewed(parameters)
        if renewed and not name and not module.check_mode:
            # In one command: a certificate and the key of another one would be refused.
            client.execute_command("CONFIG SET", *(word for setting in TLS_FILES for word in (setting, client.config_get(setting)[setting])))
    except (OSError, ValueError, redis_client.redis.RedisError) as refusal:
        module.fail_json(msg=f"{label} and its certificate {parameters['certificate']}: {refusal}")
    if not module.check_mode:
        for setting, (_before, value) in changes.items():
            try:
                if setting in SENTINEL_OWN:
                    redis_client.sentinel(client, "CONFIG", "SET", setting, value)
                elif name:
                    redis_client.sentinel(client, "SET", name, setting, value)
                else:
                    client.config_set(setting, value)
            except redis_client.redis.RedisError as refusal:
                module.fail_json(msg=f"{label} refuses {setting}: {refusal}")

    def shown(position):
        return {key: "(secret)" if key in parameters["secret_settings"] else values[position] for key, values in sorted(changes.items())}

    module.exit_json(
        changed=bool(changes) or (renewed and not name),
        settings=sorted(changes),
        restart_needed=bool(renewed and name),
        diff={"before": shown(0), "after": shown(1)},
    )


if __name__ == "__main__":
    main()
