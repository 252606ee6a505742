"""What one replica may have at a time: never two at once, and soon another one, whatever happens to the owner."""

import contextlib
import itertools
import threading
import time
import uuid

import pytest

from lab.demo import playbook
from lab.image import OPENCLAW_VERSIONS
from lab.shell import LabError, wait_for
from tests.channels import telegram
from tests.history.faults import execute, main_pid, started
from tests.redis.playbook import run as play

ACCOUNT = "telegram/polling"
#: Seconds after a kill within which another replica must ask for updates: less than a lease lasts. How long it really takes is printed.
TAKEOVER = 40
CHAIN = "openclaw-channels"


def owner_of(cluster, name=ACCOUNT):
    """The replica that has it, as soon as there is one, and the row that tells of it."""

    def one():
        rows = telegram.owners(cluster).get(name, [])
        assert len(rows) < 2, f"two hosts say that they have {name}: {rows}"
        return rows and rows[0]["on"] and rows[0]["since"] and rows[0]

    row = wait_for(f"an owner of {name}", one, 120)
    return next(replica for replica in cluster.topology["replicas"] if replica["id"] == row["replica"]), row


def poller(bot, since=0.0):
    """Address of the replica that asks for updates, by its latest request that is under way or was answered, after a moment."""
    polls = [one for one in bot.get("polls") if one["monotonic"] > since]
    return polls[-1]["peer"].rpartition(":")[0] if polls else None


def settled_with(cluster, bot, seconds=180):
    """Wait until all is answered; updates whose replica died in the middle of them may have no answer, but no more than that."""
    wait_for("nothing pending", lambda: not bot.state()["pending"], seconds)
    return wait_for("an end", lambda: (verdict := bot.verdict({})) and verdict.answered == len(bot.written) and verdict, seconds)


def answers(cluster, bot, chat):
    """A message is answered, by whoever has the bot now."""
    number = bot.write(chat, f"p-{uuid.uuid4().hex[:8]} {chat}")
    wait_for("an answer", lambda: [one for one in bot.replies() if one.chat == chat and bot.written[-1][2] in one.text], 120)
    return number


def taken_over(cluster, bot, before, at, seconds):
    """Wait until another replica asks for updates; returns how long after ``at`` that was."""

    def another():
        return [one for one in bot.get("polls") if one["monotonic"] > at and one["peer"].rpartition(":")[0] != before["address"]]

    return wait_for(f"another poller than {before['id']}", another, seconds)[0]["monotonic"] - at


@contextlib.contextmanager
def cut(cluster, host, *rules):
    """Packets that a host sends to nobody that matches."""
    execute(cluster, host, "iptables", "-w", "-N", CHAIN)
    execute(cluster, host, "iptables", "-w", "-I", "OUTPUT", "-j", CHAIN)
    execute(cluster, host, "iptables", "-w", "-I", "INPUT", "-j", CHAIN)
    try:
        for rule in rules:
            execute(cluster, host, "iptables", "-w", "-A", CHAIN, *rule.split(), "-j", "DROP")
        yield
    finally:
        execute(cluster, host, "iptables", "-w", "-D", "OUTPUT", "-j", CHAIN)
        execute(cluster, host, "iptables", "-w", "-D", "INPUT", "-j", CHAIN)
        execute(cluster, host, "iptables", "-w", "-F", CHAIN)
        execute(cluster, host, "iptables", "-w", "-X", CHAIN)


@pytest.fixture(autouse=True)
def never_two(cluster, polling):
    """Of two that ask for updates the provider ends one with a 409: none must be seen, in no test."""
    # The replicas that other tests have killed are no reason to wait.
    cluster.redis().hset(f"oc:owner:{ACCOUNT}", mapping={"faults": 0, "pause": 0})
    yield
    assert polling.state()["conflicts"] == 0, "two replicas asked for updates at once"


def test_one_replica_has_it_and_it_answers(cluster, polling):
    owner, row = owner_of(cluster)
    polling.burst(telegram.people(8), 3, f"p-{uuid.uuid4().hex[:8]}")
    verdict = settled_with(cluster, polling)
    assert not verdict.violations and verdict.answered == 24, verdict
    assert {one["peer"].rpartition(":")[0] for one in polling.get("polls")} == {owner["address"]}
    assert row["since"] <= time.time() and row["token"] > 0


@pytest.mark.smoke
def test_an_owner_killed(cluster, polling):
    owner, row = owner_of(cluster)
    answers(cluster, polling, 4200)
    at = telegram.now()
    execute(cluster, owner["host"], "kill", "-KILL", main_pid(cluster, owner["host"], owner["unit"]))
    seconds = taken_over(cluster, polling, owner, at, 60)
    print(f"killed: another replica asks for updates after {seconds:.1f} s")
    answers(cluster, polling, 4201)
    after, new = owner_of(cluster)
    assert after["id"] != owner["id"] and new["token"] > row["token"]
    assert seconds < TAKEOVER, "its lease was waited for, though its process was seen to be gone"
    wait_for(f"{owner['id']} is back", lambda: started(owner), 240)


def test_an_owner_frozen_and_released(cluster, polling):
    owner, _row = owner_of(cluster)
    pid = main_pid(cluster, owner["host"], owner["unit"])
    at = telegram.now()
    execute(cluster, owner["host"], "kill", "-STOP", pid)
    try:
        seconds = taken_over(cluster, polling, owner, at, 240)
        print(f"frozen: another replica asks for updates after {seconds:.1f} s")
        answers(cluster, polling, 4202)
    finally:
        # It was killed before anybody else got its bot; if not, it goes on now, and the double says whether it asks for updates.
        with contextlib.suppress(RuntimeError):
            execute(cluster, owner["host"], "kill", "-CONT", pid)
    wait_for(f"{owner['id']} is back", lambda: started(owner), 240)
    answers(cluster, polling, 4203)
    assert owner_of(cluster)[0]["id"] != owner["id"]


def test_an_owner_cut_from_redis(cluster, polling):
    owner, _row = owner_of(cluster)
    ports = {one["port"] for key in ("redis", "sentinels") for one in cluster.topology[key]}
    at = telegram.now()
    # What comes from the other hosts, and answers to it: its own Redis server alone is not enough for a lease.
    with cut(cluster, owner["host"], *(f"-p tcp --{end} {port}" for port in ports for end in ("dport", "sport"))):
        seconds = taken_over(cluster, polling, owner, at, 180)
        print(f"cut from Redis: another replica asks for updates after {seconds:.1f} s")
        answers(cluster, polling, 4204)
    answers(cluster, polling, 4205)
    assert owner_of(cluster)[0]["id"] != owner["id"]


def test_an_owner_cut_from_the_network(cluster, polling):
    owner, _row = owner_of(cluster)
    at = telegram.now()
    with cut(cluster, owner["host"], f"-s {cluster.lab.network} ! -d {owner['address']} ! -i lo", f"-d {cluster.lab.network} ! -s {owner['address']}"):
        seconds = taken_over(cluster, polling, owner, at, 240)
        print(f"cut from the network: another replica asks for updates after {seconds:.1f} s")
        answers(cluster, polling, 4206)
    answers(cluster, polling, 4207)
    assert owner_of(cluster)[0]["id"] != owner["id"]


def test_an_owner_drained_hands_over_first(cluster, polling):
    owner, _row = owner_of(cluster)
    polling.burst(telegram.people(6), 2, f"p-{uuid.uuid4().hex[:8]}")
    at = telegram.now()
    playbook(cluster.lab, "drain", "--extra-vars", f"drain={owner['id']}")
    try:
        seconds = taken_over(cluster, polling, owner, at, 60)
        print(f"drained: another replica asks for updates after {seconds:.1f} s")
        polling.burst(telegram.people(6), 2, f"p-{uuid.uuid4().hex[:8]}")
        verdict = settled_with(cluster, polling)
        assert not verdict.violations and verdict.answered == 24, verdict
        assert owner_of(cluster)[0]["id"] != owner["id"]
    finally:
        playbook(cluster.lab, "drain", "--extra-vars", f"drain={owner['id']} drain_state=ready")


@contextlib.contextmanager
def people_write(bot, chats, seconds=3.0):
    """Somebody writes every few seconds, each in turn; yields nothing."""
    ended = threading.Event()

    def write():
        for number in itertools.count():
            bot.write(chats[number % len(chats)], f"u-{uuid.uuid4().hex[:8]} {number}")
            if ended.wait(seconds):
                return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_all_replicas_upgraded_and_back(cluster, polling):
    """Each of them hands over before it is stopped: everything that people write meanwhile is answered."""
    for version in (OPENCLAW_VERSIONS[1], OPENCLAW_VERSIONS[0]):
        polling.reset()
        with people_write(polling, telegram.people(20, 20)):
            played = play(cluster.name, "rolling_upgrade", variables={"gateway_version": version, "gateway_rollout_soak": "5"}, check=False, seconds=1500)
        assert played.code == 0, played.output[-3000:]
        verdict = settled_with(cluster, polling)
        polls = polling.get("polls")
        gap = max(after["monotonic"] - before["monotonic"] - (before["seconds"] or 0) for before, after in itertools.pairwise(polls))
        owners = {one["peer"].rpartition(":")[0] for one in polls}
        print(f"upgraded to {version}: {verdict}, by {len(owners)} owners; nobody asked for updates for at most {gap:.1f} s")
        assert not verdict.violations and verdict.answered == len(polling.written) and len(owners) > 1, verdict
        assert polling.state()["conflicts"] == 0, "two replicas asked for updates at once"


def test_the_program_that_elects_killed_and_frozen(cluster, polling):
    """It is back before its leases end, so what is on stays on."""
    owner, row = owner_of(cluster)
    for number in ("-KILL", "-STOP"):
        execute(cluster, owner["host"], "kill", number, main_pid(cluster, owner["host"], "openclaw-owner.service"))
        answers(cluster, polling, 4208)
    owner, after = owner_of(cluster)
    assert after["token"] == row["token"]
    answers(cluster, polling, 4209)
    assert {one["peer"].rpartition(":")[0] for one in polling.get("polls")} == {owner["address"]}


def test_whatsapp_without_a_login_is_on_its_owner_only_and_moves_with_it(cluster, polling):
    owner, _row = owner_of(cluster, "whatsapp/main")

    def switched(replica):
        return "whatsapp" in execute(cluster, replica["host"], "cat", f"/run/openclaw-owner/{replica['instance']}/channels.json")

    assert [replica["id"] for replica in cluster.topology["replicas"] if switched(replica)] == [owner["id"]]
    execute(cluster, owner["host"], "openclaw-owner", "give", "whatsapp/main")
    wait_for("another owner", lambda: owner_of(cluster, "whatsapp/main")[0]["id"] != owner["id"], 120)
    after = owner_of(cluster, "whatsapp/main")[0]
    assert [replica["id"] for replica in cluster.topology["replicas"] if switched(replica)] == [after["id"]]
    token = cluster.lab.secret("gateway_token").read_text().strip()

    def ready(replica):
        # A gateway on a balancer's host takes its own address for a proxy's.
        url = f"http://127.0.0.1:{replica['port']}/readyz"
        told = execute(cluster, replica["host"], "sh", "-c", f"printf 'Authorization: Bearer %s' {token} | curl -s -m 20 -H @- {url} || true")
        if '"ready":true' in told.replace(" ", ""):
            return True
        raise LabError(told)

    # OpenClaw does not answer while it reloads its plugins, and an account that is being stopped counts as one that fails.
    for replica in cluster.topology["replicas"]:
        wait_for(f"{replica['id']} that is ready", lambda replica=replica: ready(replica), 120)
