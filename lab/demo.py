"""What ``make up`` shows at the end: what runs where, and a conversation that moves between the gateways."""

import json
import os
import re
import secrets
import shlex
import time
import urllib.error
import urllib.request

from plugins.module_utils.status import columns, roles_of, units_of
from plugins.module_utils.status import table as render
from plugins.module_utils.topology import build

from . import image
from .cluster import LAB, ROOT, write_private
from .shell import LabError, run, run_logged, say

#: A cold gateway's first turn may take this long on a busy two-core machine.
TURN_TIMEOUT = 120


def converge(cluster, *options):
    """Run ``site.yml`` on the cluster, showing the plays as they pass."""

    def show(line):
        return line.rstrip("* ") if line.startswith("PLAY [") or "ok=" in line else None

    playbook(cluster, "site", *options, show=show)


def playbook(cluster, name, *options, show=lambda line: None):
    """Run a playbook of the collection with its output in ``<name>.log``."""
    command = [ROOT / ".venv/bin/ansible-playbook", *cluster.inventories, *options, ROOT / f"playbooks/{name}.yml"]
    run_logged(command, cluster.directory / f"{name}.log", show, cwd=ROOT, env=os.environ | {"ANSIBLE_NOCOLOR": "1"})


def topology(cluster):
    """The cluster's topology, from the same function that the roles use."""
    inventories = ("--inventory", cluster.sample, "--inventory", cluster.inventory)
    listed = json.loads(run(ROOT / ".venv/bin/ansible-inventory", *inventories, "--list", cwd=ROOT))
    groups = {name: group.get("hosts", []) for name, group in listed.items() if name != "_meta"}
    return build(groups, listed["_meta"]["hostvars"])


def write_env(cluster, built):
    """Write the file ``env`` (shell syntax, mode 0600) that leads tests and people to the cluster."""
    first = built["balancers"][0]
    values = {
        "OPENCLAW_URL": f"http://{first['vip'] or first['address']}:{first['port']}",
        # Who held the virtual address when this was written; empty before the first run, or without one.
        "OPENCLAW_VIP_HOLDER": " ".join(cluster.holders()),
        "OPENCLAW_TOKEN": cluster.secret("gateway_token").read_text().strip(),
        "OPENCLAW_HOSTS": " ".join(cluster.container(host) for host in cluster.hosts),
        "OPENCLAW_REPLICAS": " ".join(f"{replica['address']}:{replica['port']}" for replica in built["replicas"]),
        "LLM_DOUBLE_URL": cluster.llm_url,
    }
    path = cluster.directory / "env"
    write_private(path, "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()))
    return values


def table(cluster, built):
    """One row a host: container, addresses (the virtual one at its holder), roles, units."""
    holders = cluster.holders()
    rows = [("host", "container", "address", "roles", "units")]
    for name, host in built["hosts"].items():
        units = " ".join(unit.removesuffix(".service") for unit in units_of(built, name))
        held = f" {cluster.vip}" if name in holders else ""
        rows.append((name, cluster.container(name), host["address"] + held, " ".join(roles_of(built, name)), units))
    return "\n".join(columns(rows))


def status(cluster, as_json):
    """Run ``status.yml`` and print what it found, as a table or as JSON."""
    path = cluster.directory / "status.json"
    path.unlink(missing_ok=True)
    playbook(cluster, "status", "--extra-vars", f"status_json={path}")
    found = json.loads(path.read_text())
    datacenters = [found] if "hosts" in found else found.values()
    print(json.dumps(found, indent=2) if as_json else "\n\n".join("\n".join(render(one)) for one in datacenters))


def send(address, token, conversation, message):
    """One turn, straight to one replica; returns the decoded answer.

    :raises LabError: with the status and body of a refusal
    """
    body = json.dumps({"channel": "web", "user_id": conversation, "message": message}).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Idempotency-Key": secrets.token_hex(16)}
    request = urllib.request.Request(f"http://{address}/api/v1/message", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TURN_TIMEOUT) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise LabError(f"{address} answered {error.code}: {error.read().decode(errors='replace')[:500]}") from error
    except OSError as error:
        raise LabError(f"{address} did not answer: {error}") from error


def converse(values):
    """Three turns of one conversation, each sent to another replica; the third must know the first."""
    replicas = values["OPENCLAW_REPLICAS"].split()
    conversation = f"demo-{secrets.token_hex(4)}"
    word = f"tangerine-{secrets.token_hex(2)}"
    turns = (f"Remember this word: {word}.", "Thank you. How are you today?", "Which word did I ask you to remember?")
    answer = {}
    for number, message in enumerate(turns):
        answer = send(replicas[number % len(replicas)], values["OPENCLAW_TOKEN"], conversation, message)
        print(f"  user             > {message}\n  replica {answer['replica']:<8} > {answer['reply']}", flush=True)
    if word not in answer["reply"]:
        raise LabError(f"the third replica does not know the first turn: {word!r} is not in its answer")


def up(cluster):
    """From nothing to a running cluster, or, where it runs, a quick look that it still is what the inventory says."""
    cluster.create()
    converge(cluster)
    built = topology(cluster)
    values = write_env(cluster, built)
    print(f"\n{table(cluster, built)}\n\nURL {values['OPENCLAW_URL']}  (token and more: {cluster.directory.relative_to(ROOT)}/env)\n")
    say("one conversation, three replicas")
    converse(values)
    say("the cluster is up; `make status` looks at it, `make down` removes it")


def bench(cluster):
    """Measure what a person waits for; prints JSON and writes it to ``.lab/bench.json``.

    Seconds of wall time: ``image`` (built anew), ``hosts``, ``first_run`` and ``second_run`` of site.yml, ``conversation``;
    ``tasks``: what one host's recap counts in the first and in the second run.
    """
    cluster.destroy()
    result = {}

    def measure(name, action):
        started = time.monotonic()
        action()
        result[name] = round(time.monotonic() - started, 1)

    def tasks(name):
        recap = re.findall(r"ok=(\d+).*skipped=(\d+)", (cluster.directory / "site.log").read_text())
        result[f"tasks_{name}"] = max(int(ok) + int(skipped) for ok, skipped in recap)

    try:
        measure("image", lambda: image.ensure(again=True))
        measure("hosts", cluster.create)
        measure("first_run", lambda: converge(cluster))
        tasks("first_run")
        measure("second_run", lambda: converge(cluster))
        tasks("second_run")
        values = write_env(cluster, topology(cluster))
        measure("conversation", lambda: converse(values))
    finally:
        cluster.destroy()
    result["up_from_nothing"] = round(sum(result[name] for name in ("image", "hosts", "first_run", "conversation")), 1)
    text = json.dumps(result, indent=2)
    (LAB / "bench.json").write_text(text + "\n")
    print(text)
