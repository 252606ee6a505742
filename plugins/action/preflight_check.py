# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action that judges the whole cluster on the controller; documented in plugins/modules/preflight_check.yml."""

from __future__ import annotations

import datetime
import os
import pathlib

from ansible.errors import AnsibleError, AnsibleLookupError
from ansible.plugins.action import ActionBase
from ansible.release import __version__ as ansible_version

from ansible_collections.openclaw.ha.plugins.module_utils import preflight

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
except ImportError:  # ansible-core needs it itself; only ansible-test imports this file without it
    x509 = serialization = None


class ActionModule(ActionBase):
    """Ansible's entry point."""

    _requires_connection = False

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        dummy, arguments = self.validate_argument_spec(
            {
                "topology": {"type": "dict", "required": True},
                "host_facts": {"type": "dict", "required": True},
                "npm": {"type": "list", "elements": "dict", "default": []},
                "roles_path": {"type": "path", "required": True},
            }
        )
        roles = pathlib.Path(arguments["roles_path"])
        topology = arguments["topology"]
        specs = {role: self._specs(roles / role) for role in preflight.ROLE_GROUPS}
        cluster = {
            "topology": topology,
            "settings": self._settings(topology, self._defaults(roles), specs, task_vars),
            # A host that failed or could not be reached has a result without facts.
            "host_facts": {
                host: facts if facts and "memory_bytes" in facts else None
                for host, facts in arguments["host_facts"].items()
            },
            "npm": {answer["item"]: answer for answer in arguments["npm"]},
            "ansible_version": ansible_version,
            "specs": specs,
        }
        cluster["certificates"] = {pair: certificate_info(*pair) for pair in _given_certificates(cluster["settings"])}
        problems = preflight.problems(**cluster)
        warnings = preflight.warnings(**cluster)
        if problems:
            count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
            lines = "\n".join(f"  {problem}" for problem in problems)
            return result | {
                "failed": True,
                "warnings": warnings,
                "msg": f"Refused before any change, {count}:\n{lines}",
            }
        return result | {"warnings": warnings, "msg": "Nothing speaks against this cluster."}

    def _load(self, path):
        """Content of a YAML file of a role, {} where the role has none."""
        return (self._loader.load_from_file(str(path), trusted_as_template=True) or {}) if path.is_file() else {}

    def _specs(self, role):
        """The options of a role's main entry point."""
        specs = self._load(role / "meta" / "argument_specs.yml").get("argument_specs", {})
        return specs.get("main", {}).get("options", {})

    def _defaults(self, roles):
        """The defaults of all roles: their variables carry the role's name, so they cannot clash."""
        merged = {}
        for role in preflight.ROLE_GROUPS:
            merged |= self._load(roles / role / "defaults" / "main.yml")
        return merged

    def _settings(self, topology, defaults, specs, task_vars):
        """Host -> variable -> value, for the variables of the roles that the host takes part in."""
        settings = {}
        for host, node in topology["hosts"].items():
            own = task_vars["hostvars"].raw_get(host)
            variables = {**defaults, **own, "hostvars": task_vars["hostvars"]}
            templar = self._templar.copy_with_new_env(available_variables=variables)
            roles = [role for role, group in preflight.ROLE_GROUPS.items() if group in node["groups"]]
            names = {name: None for role in roles for name in specs[role]} | dict.fromkeys((*preflight.SECRETS, *preflight.USER_PASSWORDS))
            settings[host] = {}
            for name in names:
                try:
                    settings[host][name] = templar.template(variables.get(name))
                except AnsibleError as error:
                    # A default may need facts that the role gathers first; what the inventory says must hold now.
                    settings[host][name] = preflight.Unreadable(_reason(error)) if name in own else None
        return settings


def _given_certificates(settings):
    """Pairs of files that the balancers' variables name."""
    pairs = set()
    for variables in settings.values():
        given = variables.get("balancer_certificates")
        for item in given if isinstance(given, list) else []:
            if isinstance(item, dict) and all(isinstance(item.get(key), str) for key in ("cert", "key")):
                pairs.add((item["cert"], item["key"]))
    return pairs


def certificate_info(cert, key):
    """``{"days": days left}`` of a certificate and its key on this machine, or ``{"problem": what is wrong}``; nothing of the key is told."""
    content = {}
    for what, path in (("cert", cert), ("key", key)):
        full = os.path.expanduser(path)
        if not os.path.isabs(full):
            return {"problem": f"found {path} as {what}; allowed an absolute path on the controller; put {{{{ inventory_dir }}}}/ in front"}
        try:
            content[what] = pathlib.Path(full).read_bytes()
        except OSError as error:
            return {"problem": f"found no readable file {path} ({error.strerror}); allowed one that Ansible can read; correct the path or its mode"}
    try:
        first = x509.load_pem_x509_certificate(content["cert"])
    except ValueError:
        return {"problem": f"found no PEM certificate in {cert}; allowed the site's certificate first, then those that lead to its authority; correct it"}
    try:
        private = serialization.load_pem_private_key(content["key"], password=None)
    except (TypeError, ValueError):
        return {"problem": f"found no usable private key in {key}; allowed a PEM key without a passphrase; correct it"}
    if _public(private.public_key()) != _public(first.public_key()):
        return {"problem": f"found a key in {key} that is not the one of the certificate in {cert}; allowed two that belong together; correct one"}
    now, begin, end = datetime.datetime.now(datetime.timezone.utc), _time(first, "not_valid_before"), _time(first, "not_valid_after")
    if not begin <= now <= end:
        found = f"found a certificate in {cert} that is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}"
        return {"problem": f"{found}; allowed one that is valid now; renew it"}
    return {"days": (end - now).days}


def _public(key):
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _time(certificate, name):
    """One of its two times; versions of cryptography before 42 have no name for it with a time zone."""
    value = getattr(certificate, f"{name}_utc", None)
    return value or getattr(certificate, name).replace(tzinfo=datetime.timezone.utc)


def _reason(error):
    """Why a variable could not be evaluated: the innermost error's text, as those around it only say where."""
    while isinstance(error.__cause__, AnsibleError):
        error = error.__cause__
    if isinstance(error, AnsibleLookupError):
        return error.message
    return (
        f"found an expression without a value ({error.message.rstrip('.')}); allowed one that has it now; correct it."
    )
