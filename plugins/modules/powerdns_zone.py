#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: powerdns_zone
short_description: Have a PowerDNS server with SQLite serve a zone that one TSIG key may update
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Makes the database where there is none, an empty zone, the key, and the permission of that key to update the zone. What a zone holds is left alone,
    see M(openclaw.ha.dns_weights).
  - C(pdnsutil) takes the secret as an argument, which every user of the host can read while it runs; this module does not.
options:
  database:
    description: Path of the SQLite database.
    type: path
    default: /var/lib/powerdns/pdns.sqlite3
  schema:
    description: File with the statements that make an empty database.
    type: path
    default: /usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql
  zone:
    description: Name of the zone.
    type: str
    required: true
  nameserver:
    description: Name of its first server, for the SOA record of an empty zone.
    type: str
    required: true
  key_name:
    description: Name of the key.
    type: str
    required: true
  key_algorithm:
    description: Algorithm of the key.
    type: str
    choices: [hmac-sha256, hmac-sha384, hmac-sha512]
    default: hmac-sha256
  key_secret:
    description: Secret of the key, in base64.
    type: str
    required: true
attributes:
  check_mode:
    description: Says what would be changed.
    support: full
  diff_mode:
    description: Shows zone, key and permission, without the secret.
    support: full
"""

EXAMPLES = r"""
- name: Serve the zone
  openclaw.ha.powerdns_zone:
    zone: claw.example.org
    nameserver: ns1.claw.example.org
    key_name: openclaw
    key_secret: "{{ dns_key_secret }}"
"""

RETURN = r"""
changes:
  description: What was changed, in words.
  type: list
  elements: str
  returned: always
"""

import base64
import binascii
import os
import sqlite3

from ansible.module_utils.basic import AnsibleModule

#: Kinds of a zone's metadata: which keys may update it, and that its serial is what the update says.
_PERMISSION = "TSIG-ALLOW-DNSUPDATE"
#: A server without weights of its own is behind every other one.
_SERIAL = 1


def row(database, statement, *values):
    return database.execute(statement, values).fetchone()


def difference(database, params):
    """(what has to be changed in words, statements that change it) for a database, or for none."""
    zone, key = params["zone"].rstrip(".").lower(), params["key_name"].rstrip(".").lower()
    found = row(database, "SELECT id, type FROM domains WHERE name = ?", zone)
    words, steps = [], []
    if not found:
        words.append(f"zone {zone} made")
        steps.append(("INSERT INTO domains (name, type) VALUES (?, 'NATIVE')", (zone,)))
        soa = f"{params['nameserver'].rstrip('.')} hostmaster.{zone} {_SERIAL} 60 30 604800 30"
        statement = "INSERT INTO records (domain_id, name, type, content, ttl, auth) SELECT id, name, 'SOA', ?, 30, 1 FROM domains WHERE name = ?"
        steps.append((statement, (soa, zone)))
    elif found[1] != "NATIVE":
        raise ValueError(f"{params['database']}: found the zone {zone} of type {found[1]}; allowed NATIVE; take it away, or give dns_zone another name.")
    keys = database.execute("SELECT algorithm, secret FROM tsigkeys WHERE name = ?", (key,)).fetchall()
    if keys != [(params["key_algorithm"], params["key_secret"])]:
        words.append(f"key {key} {'replaced' if keys else 'made'}")
        steps.append(("DELETE FROM tsigkeys WHERE name = ?", (key,)))
        steps.append(("INSERT INTO tsigkeys (name, algorithm, secret) VALUES (?, ?, ?)", (key, params["key_algorithm"], params["key_secret"])))
    may = database.execute(
        "SELECT content FROM domainmetadata JOIN domains ON domains.id = domain_id WHERE domains.name = ? AND kind = ?", (zone, _PERMISSION)
    ).fetchall()
    if may != [(key,)]:
        words.append(f"{key} may update {zone}, and no other key")
        steps.append(("DELETE FROM domainmetadata WHERE kind = ? AND domain_id = (SELECT id FROM domains WHERE name = ?)", (_PERMISSION, zone)))
        steps.append(("INSERT INTO domainmetadata (domain_id, kind, content) SELECT id, ?, ? FROM domains WHERE name = ?", (_PERMISSION, key, zone)))
    return words, steps


def main():
    module = AnsibleModule(
        argument_spec={
            "database": {"type": "path", "default": "/var/lib/powerdns/pdns.sqlite3"},
            "schema": {"type": "path", "default": "/usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql"},
            "zone": {"type": "str", "required": True},
            "nameserver": {"type": "str", "required": True},
            "key_name": {"type": "str", "required": True, "no_log": False},
            "key_algorithm": {"type": "str", "choices": ["hmac-sha256", "hmac-sha384", "hmac-sha512"], "default": "hmac-sha256"},
            "key_secret": {"type": "str", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        if not base64.b64decode(params["key_secret"], validate=True):
            raise binascii.Error
    except (binascii.Error, ValueError):
        module.fail_json(msg="dns_key_secret: found a value that is not base64; allowed what `openssl rand -base64 32` prints; correct it.", changes=[])
    path, words = params["database"], []
    is_new = not os.path.exists(path)
    try:
        # A dry run on a fresh host has neither database nor schema: there, everything would be made.
        if is_new and module.check_mode and not os.path.exists(params["schema"]):
            module.exit_json(changed=True, changes=["database made"], diff={"before": "", "after": "database made\n"})
        if is_new and not module.check_mode:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        database = sqlite3.connect(":memory:" if is_new and module.check_mode else path, timeout=10)
        with database:
            # A database that an interrupted run left without tables gets them now.
            if not row(database, "SELECT 1 FROM sqlite_master WHERE name = 'domains'"):
                words.append("database made")
                with open(params["schema"], encoding="utf-8") as stream:
                    database.executescript(stream.read())
        more, steps = difference(database, params)
        words += more
        if not module.check_mode:
            with database:
                for statement, values in steps:
                    database.execute(statement, values)
    except OSError as error:
        module.fail_json(msg=f"{error.filename or path}: {error.strerror}; this module needs root and the package pdns-backend-sqlite3.", changes=[])
    except sqlite3.Error as error:
        text = f"{path}: found a database that does not do as it must ({error}); allowed one of PowerDNS; look at it, or move it away."
        module.fail_json(msg=text, changes=[])
    except ValueError as error:
        module.fail_json(msg=str(error), changes=[])
    module.exit_json(changed=bool(words), changes=words, diff={"before": "", "after": "".join(f"{word}\n" for word in words)})


if __name__ == "__main__":
    main()
