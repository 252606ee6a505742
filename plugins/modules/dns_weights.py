#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dns_weights
short_description: Read and set how many clients of a name each datacenter gets
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Reads from the name servers which weights are in force, sets others if asked to, and is done only when the authoritative servers themselves
    answer with them.
  - Without O(weights) the weights in force are kept, servers that say something else or nothing are brought to them, and records are brought up
    to date with addresses, servers and the time to live. On the first run O(first) is set.
  - Of several servers that say different things the one with the highest serial is right; serials are seconds since 1970.
  - A server that is silent is named in RV(silent) and skipped, and brought up to date by the next run that finds it; one that answers and cannot be
    changed fails the run, after the others have been changed.
options:
  provider:
    description: What serves the zone. With V(nsupdate) weights other than 0 and 100 are refused, because plain address records cannot be weighted.
    type: str
    required: true
    choices: [powerdns, nsupdate, route53]
  name:
    description: The name that clients use.
    type: str
    required: true
  zone:
    description: The zone that holds it.
    type: str
    required: true
  ttl:
    description: Seconds for which resolvers may keep an answer, 1 to 300.
    type: int
    default: 30
  addresses:
    description: For each datacenter a list of the addresses that its clients connect to.
    type: dict
    required: true
  weights:
    description: Weights of datacenters to set, 0 to 100 each; those that are not named get 0. Left out, the weights in force are kept.
    type: dict
  first:
    description: Weights for the first run, while nothing is in force.
    type: dict
    default: {}
  ramp_from:
    description:
      - Weights to write down beside O(weights) as those to go back to, while a ramp is under way. They are kept as long as O(weights) is left out, and go
        when it is given without them.
    type: dict
  servers:
    description:
      - The authoritative servers, each with C(host) (a name for messages), C(address) and C(port).
      - With O(provider=powerdns) each of them is written to, with O(provider=nsupdate) the first one, with O(provider=route53) none; left out there, the
        zone's own are asked.
    type: list
    elements: dict
    default: []
  nameservers:
    description: For O(provider=powerdns), the names of the servers in NS records, each with C(name) and C(address).
    type: list
    elements: dict
    default: []
  hostmaster:
    description: For O(provider=powerdns), the mail address of who is responsible, as a domain name; by default C(hostmaster) in the zone.
    type: str
  key:
    description: The TSIG key that signs updates, for O(provider=powerdns) and O(provider=nsupdate).
    type: dict
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      algorithm:
        description: Its algorithm.
        type: str
        choices: [hmac-sha256, hmac-sha384, hmac-sha512]
        default: hmac-sha256
      secret:
        description: Its secret, in base64.
        type: str
        required: true
  aws_access_key:
    description: For O(provider=route53), the access key; by default what boto3 finds in its environment.
    type: str
  aws_secret_key:
    description: The secret that belongs to O(aws_access_key).
    type: str
  route53_zone_id:
    description: For O(provider=route53), the hosted zone, needed where several have the name of O(zone).
    type: str
    default: ""
  deadline:
    description: Seconds for the authoritative servers to give what was set.
    type: float
    default: 60
attributes:
  check_mode:
    description: Looks, and says what would be changed.
    support: full
  diff_mode:
    description: Shows the weights and the servers' statements before and after.
    support: full
requirements:
  - dnspython, where the module runs
  - boto3, for O(provider=route53)
"""

EXAMPLES = r"""
- name: Send a tenth of the clients to the second datacenter
  openclaw.ha.dns_weights:
    provider: powerdns
    name: claw.example.org
    zone: claw.example.org
    addresses: {dc1: [192.0.2.10], dc2: [198.51.100.10]}
    weights: {dc1: 90, dc2: 10}
    servers:
      - {host: ns1, address: 192.0.2.53, port: 53}
      - {host: ns2, address: 198.51.100.53, port: 53}
    nameservers:
      - {name: ns1.claw.example.org, address: 192.0.2.53}
      - {name: ns2.claw.example.org, address: 198.51.100.53}
    key: {name: openclaw, secret: "{{ dns_key_secret }}"}
  delegate_to: localhost
"""

RETURN = r"""
weights:
  description: The weights in force at the end; in check mode those that would be.
  type: dict
  returned: success
before:
  description: The weights that were in force; null when there were none.
  type: dict
  returned: always
ramp_from:
  description: The weights before the ramp that is under way; null where none is.
  type: dict
  returned: success
silent:
  description: Sentences about servers that did not answer and were left as they are.
  type: list
  elements: str
  returned: always
repaired:
  description: Sentences about servers that said something older than what is in force, or nothing, and were brought to it.
  type: list
  elements: str
  returned: always
seconds:
  description: How long it took until all servers that answer gave what was set.
  type: float
  returned: success
"""

import time
import traceback

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.openclaw.ha.plugins.module_utils import dns_weights as core
from ansible_collections.openclaw.ha.plugins.module_utils import dns_providers as providers


def settings(parameters):
    """The parameters with their parts in the form that the rest takes for granted; refuses what can be refused before anybody is asked."""
    problem = core.settings_problem(parameters["name"], parameters["zone"], parameters["ttl"])
    if problem:
        raise core.WeightsError(problem)
    for server in parameters["servers"]:
        if not {"host", "address", "port"} <= set(server):
            raise core.WeightsError("dns_servers: found one without host, address or port; allowed servers with all three; add what is missing.")
    zone = core.name_of(parameters["zone"])
    found = dict(parameters, hostmaster=core.name_of(parameters["hostmaster"] or f"hostmaster.{zone}"))
    if parameters["provider"] == "route53":
        return found
    if not parameters["servers"]:
        raise core.WeightsError(f"dns_servers: found none; dns_provider {parameters['provider']} allowed at least one; add the zone's authoritative servers.")
    if parameters["provider"] == "powerdns":
        if not parameters["nameservers"] or not all({"name", "address"} <= set(row) for row in parameters["nameservers"]):
            raise core.WeightsError("nameservers: found none, or one without name or address; allowed one for each server; add what is missing.")
        found["nameservers"] = [{"name": core.name_of(row["name"]), "address": str(row["address"])} for row in parameters["nameservers"]]
    return found


def target(provider, parameters, sights):
    """What all servers shall say, or why nothing can be done."""
    answering = [sight for sight in sights if not sight.failure]
    if not [sight for sight in provider.believed(sights) if not sight.failure]:
        said = "; ".join(f"{sight.host} {sight.failure}" for sight in sights)
        raise core.WeightsError(f"No server that has the weights gives a usable answer, so nothing was changed: {said}.")
    wanted, ramp_from, addresses = parameters["weights"], parameters["ramp_from"], parameters["addresses"]
    try:
        stated = core.in_force([sight for sight in provider.believed(sights) if not sight.failure])
    except core.WeightsError:
        if wanted is None:
            raise
        stated = max((sight.statement for sight in answering if sight.statement), key=lambda one: one.serial)
    if wanted is None:
        wanted = core.settled(stated.weights, addresses) if stated else parameters["first"]
        ramp_from = stated.ramp_from if stated else None
    problem = core.weights_problem(wanted, addresses, parameters["provider"]) or provider.foreign(answering, addresses)
    if problem:
        raise core.WeightsError(problem)
    weights = {name: wanted.get(name, 0) for name in addresses}
    rows = provider.rows(weights, addresses)
    made_of = core.content(provider.describe(rows))
    if stated and (stated.weights, stated.ramp_from, stated.content) == (weights, ramp_from, made_of):
        return stated, stated, rows
    # By the clock, so that what was decided last counts, whichever server was away meanwhile.
    serial = max([int(time.time())] + [sight.statement.serial + 1 for sight in answering if sight.statement])
    return stated, core.Statement(weights, serial, ramp_from, made_of), rows


def not_yet(provider, wanted, rows, silent):
    """What keeps the servers from giving what was set; empty when they all do. ``silent`` are those that need not."""
    if not provider.settled():
        return ["the provider has not yet given the change to its servers"]
    found = []
    for server in provider.servers:
        sight = providers.see(server, provider.name)
        if sight.failure and sight.host in silent:
            continue
        if sight.failure:
            found.append(f"{sight.host} {sight.failure}")
        elif sight.text != core.encode(wanted):
            said = f"still says {core.text_of(sight.statement.weights)}, serial {sight.statement.serial}" if sight.statement else "has no weights"
            found.append(f"{sight.host} {said}")
        else:
            problem = core.answers_problem(sight.answers, rows)
            found += [f"{sight.host} {problem}"] if problem else []
    return found


def prove(provider, wanted, rows, silent, deadline):
    """Ask the authoritative servers until all give what was set."""
    began = time.monotonic()
    while True:
        missing = not_yet(provider, wanted, rows, silent)
        if not missing or time.monotonic() - began > deadline:
            return missing
        time.sleep(0.1)  # between two looks, until the deadline above


def main():
    module = AnsibleModule(
        argument_spec={
            "provider": {"type": "str", "required": True, "choices": list(core.PROVIDERS)},
            "name": {"type": "str", "required": True},
            "zone": {"type": "str", "required": True},
            "ttl": {"type": "int", "default": 30},
            "addresses": {"type": "dict", "required": True},
            "weights": {"type": "dict"},
            "first": {"type": "dict", "default": {}},
            "ramp_from": {"type": "dict"},
            "servers": {"type": "list", "elements": "dict", "default": []},
            "nameservers": {"type": "list", "elements": "dict", "default": []},
            "hostmaster": {"type": "str"},
            "key": {
                "type": "dict",
                "no_log": False,
                "options": {
                    "name": {"type": "str", "required": True},
                    "algorithm": {"type": "str", "choices": list(providers.ALGORITHMS), "default": "hmac-sha256"},
                    "secret": {"type": "str", "required": True, "no_log": True},
                },
            },
            "aws_access_key": {"type": "str", "no_log": True},
            "aws_secret_key": {"type": "str", "no_log": True},
            "route53_zone_id": {"type": "str", "default": ""},
            "deadline": {"type": "float", "default": 60},
        },
        required_if=[("provider", "powerdns", ["key"]), ("provider", "nsupdate", ["key"])],
        required_together=[("aws_access_key", "aws_secret_key")],
        supports_check_mode=True,
    )
    if providers.dns is None:
        module.fail_json(msg=missing_required_lib("dnspython"))
    if module.params["provider"] == "route53" and providers.boto3 is None:
        module.fail_json(msg=missing_required_lib("boto3"))
    before, silent, repaired, began = None, [], [], time.monotonic()
    try:
        parameters = settings(module.params)
        provider = (providers.Route53 if parameters["provider"] == "route53" else providers.Updated)(parameters)
        sights = provider.look()
        stated, wanted, rows = target(provider, parameters, sights)
        before = stated.weights if stated else None
        silent = [f"{one.host} {one.failure}; it keeps what it has, and the next run that finds it brings it up to date." for one in sights if one.silent]
        broken = [f"{one.host} {one.failure}" for one in sights if one.failure and not one.silent]
        stale = [one for one in provider.believed(sights) if not one.failure and provider.differs(one, wanted, rows)]
        if stated is wanted:
            repaired = [
                f"{one.host} said {core.text_of(one.statement.weights) + ', serial ' + str(one.statement.serial) if one.statement else 'nothing'}; "
                f"in force is {core.text_of(wanted.weights)}, serial {wanted.serial}."
                for one in stale
            ]
        diff = {
            "before": "".join(f"{one.host}: {_shown(one.statement)}\n" for one in provider.believed(sights)),
            "after": "".join(f"{one.host}: {_shown(one.statement if one.failure else wanted)}\n" for one in provider.believed(sights)),
        }
        failures = []
        if not module.check_mode:
            failures = provider.apply(stale, wanted, rows) if stale else []
            # Who gave no usable answer before does not keep the others from being told and proven.
            ignored = {one.host for one in sights if one.failure}
            failures = failures or prove(provider, wanted, rows, ignored, parameters["deadline"])
        failures += broken
    except (core.WeightsError, providers.ProviderError) as error:
        module.fail_json(msg=str(error), before=before, silent=silent, repaired=[])
    except (TypeError, ValueError) as error:
        module.fail_json(msg=f"A value has another form than it must have ({error}).", exception=traceback.format_exc(), before=before)
    answer = {
        "changed": bool(stale),
        "weights": wanted.weights,
        "before": before,
        "ramp_from": wanted.ramp_from,
        "silent": silent,
        "repaired": repaired,
        "seconds": round(time.monotonic() - began, 2),
        "diff": diff,
    }
    if failures:
        module.fail_json(msg=f"Not all servers give {core.text_of(wanted.weights)} (serial {wanted.serial}): {'; '.join(failures)}.", **answer)
    for text in silent + repaired:
        module.warn(text)
    module.exit_json(**answer)


def _shown(statement):
    if statement is None:
        return "nothing"
    ramp = f", ramp from {core.text_of(statement.ramp_from)}" if statement.ramp_from is not None else ""
    return f"{core.text_of(statement.weights)}{ramp}, serial {statement.serial}"


if __name__ == "__main__":
    main()
