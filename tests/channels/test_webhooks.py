"""Webhooks over three replicas: each update that was accepted is answered once, whoever dies."""

import http.client
import json
import ssl
import subprocess
import time
import uuid

import pytest
import requests

from lab.shell import wait_for
from tests.channels import telegram
from tests.history import faults
from tests.history.faults import execute, main_pid, started


def model(cluster, **behaviour):
    requests.post(f"{cluster.llm_url}/behaviour", json=behaviour or {"mode": "ok"}, timeout=10).raise_for_status()


@pytest.fixture
def slow(cluster):
    """A model that takes its time, so that there are turns to be cut."""
    model(cluster, mode="slow", seconds=4)
    yield
    model(cluster)


def word():
    """One of its own for each test: texts must be."""
    return f"m-{uuid.uuid4().hex[:8]}"


def active(cluster, unit):
    show = ("systemctl", "show", "--property=ActiveState", "--value", unit)
    return [one["host"] for one in cluster.topology["ingresses"] if execute(cluster, one["host"], *show) == "active"]


def journal_of(cluster, unit):
    """What a unit has said on all hosts."""
    return "".join(execute(cluster, host, "journalctl", "--unit", unit, "--output", "cat", "--no-pager") for host in cluster.containers)


@pytest.mark.smoke
def test_each_message_is_answered_once_and_the_replicas_share_them(cluster, webhook):
    chats = telegram.people(12)
    webhook.burst(chats, 3, word())
    verdict = webhook.settled()
    assert not verdict.violations and verdict.answered == 36 and not verdict.told and not verdict.others, verdict
    seen = {one["peer"].partition(":")[0] for one in webhook.get("replies")}
    # A busy machine may keep one of them out of it.
    assert len(seen & {replica["address"] for replica in cluster.topology["replicas"]}) > 1, "replicas share them"


@pytest.mark.smoke
def test_a_replica_killed_between_its_200_and_the_commit(cluster, webhook, slow):
    chats = telegram.people(12)
    webhook.burst(chats, 1, word())
    replica = cluster.topology["replicas"][0]

    def has_turns():
        return [one for one in telegram.waiting(cluster) if one["replica"] == replica["id"] and one["state"] == "delivered"]

    wait_for(f"turns on {replica['id']}", has_turns, 60)
    execute(cluster, replica["host"], "kill", "-KILL", main_pid(cluster, replica["host"], replica["unit"]))
    verdict = webhook.settled()
    wait_for(f"{replica['id']} is back", lambda: started(replica), 240)
    assert not verdict.violations and verdict.answered + len(verdict.told) == 12, verdict
    assert verdict.answered == 12, (verdict, verdict.told)


def test_an_ingress_killed_in_a_burst(cluster, webhook):
    chats, said = telegram.people(10), word()
    for number in range(6):
        for chat in chats:
            webhook.write(chat, f"{said} {chat} {number}")
        if number % 2:
            host = cluster.topology["ingresses"][number // 2]["host"]
            execute(cluster, host, "kill", "-KILL", main_pid(cluster, host, "openclaw-ingress.service"))
    verdict = webhook.settled()
    assert not verdict.violations and verdict.answered == 60, verdict
    wait_for("all ingresses", lambda: len(active(cluster, "openclaw-ingress.service")) == len(cluster.topology["ingresses"]), 60)


def test_the_redis_primary_killed_in_a_burst(cluster, webhook):
    chats, said = telegram.people(10), word()
    webhook.burst(chats, 2, f"{said} before")
    with faults.redis_primary_killed(cluster):
        webhook.burst(chats, 3, f"{said} during")
        verdict = webhook.settled(240)
    assert not verdict.violations and verdict.answered == 50, verdict


@pytest.mark.smoke
def test_the_same_update_delivered_three_times(webhook):
    webhook.fault(deliver_twice={"copies": 3, "concurrently": True, "times": 6})
    webhook.burst(telegram.people(6), 1, word())
    verdict = webhook.settled()
    assert sum(one["copy"] is not None for one in webhook.get("deliveries")) >= 12, "they came again"
    assert not verdict.violations and verdict.answered == 6, verdict


@pytest.mark.smoke
def test_what_begins_no_turn_holds_nobody_up(cluster, webhook):
    """Of a stranger's message the gateway says that it is through with it: the next one does not wait until it would be given up."""
    stranger = 77_000_001
    for number in range(3):
        webhook.write(stranger, f"{word()} {number}")
    wait_for("their 200", lambda: len(webhook.accepted()) == 3, 30)
    wait_for("an empty journal", lambda: not telegram.waiting(cluster), 60)
    assert not webhook.replies() and not telegram.dead(cluster)


def test_while_no_model_answers_each_person_is_told_once(cluster, webhook):
    """An error that a person has read is an answer: nobody else tries again behind it, and tells them once more."""
    (fallback,) = cluster.topology["ollama"]
    execute(cluster, fallback["host"], "systemctl", "stop", "ollama.service")
    model(cluster, mode="500")
    try:
        chats = telegram.people(4, 60)
        webhook.burst(chats, 1, word())
        wait_for("words for all of them", lambda: {one.chat for one in webhook.replies()} == set(chats), 240)
        wait_for("an end", lambda: not telegram.waiting(cluster), 120)
        told = [one.chat for one in webhook.replies()]
        assert sorted(told) == chats, f"each is told once: {webhook.replies()}"
        assert telegram.dead(cluster) == []
    finally:
        model(cluster)
        execute(cluster, fallback["host"], "systemctl", "start", "ollama.service")
    webhook.reset()
    webhook.burst(chats, 1, word())
    # While the circuit is open nobody asks; the next one who is told so may write again.
    verdict = webhook.settled()
    assert not verdict.violations and verdict.answered == 4, verdict


def test_a_replica_killed_between_the_commit_and_its_answer(cluster, webhook):
    """Before its commit another replica answers; after it nobody runs the turn again, and it is told that nobody knows whether its answer was sent."""
    webhook.fault(refuse={"status": 503, "methods": ["sendMessage"]})
    (chat,) = telegram.people(1, 70)
    webhook.write(chat, f"{word()} {chat}")
    tried = wait_for("a try to answer", lambda: [one for one in webhook.get("calls") if one["method"] == "sendMessage"], 60)
    address = tried[0]["peer"].rpartition(":")[0]
    replica = next(one for one in cluster.topology["replicas"] if one["address"] == address)
    execute(cluster, replica["host"], "kill", "-KILL", main_pid(cluster, replica["host"], replica["unit"]))
    webhook.fault(refuse=None)
    wait_for(f"{replica['id']} is back", lambda: started(replica), 240)
    wait_for("an end", lambda: not telegram.waiting(cluster), 180)
    verdict = webhook.verdict()
    print(f"killed while it sent its answer: {verdict}")
    assert not verdict.violations and verdict.answered + len(verdict.told) == 1 and set(verdict.told.values()) <= {"unsent"}, (verdict, verdict.others)


def test_an_answer_that_the_provider_does_not_take_is_told_of(cluster, webhook):
    webhook.fault(refuse={"status": 503, "methods": ["sendMessage"]})
    (chat,) = telegram.people(1, 71)
    webhook.write(chat, f"{word()} {chat}")
    wait_for("a dead letter", lambda: telegram.dead(cluster), 180)
    webhook.fault(refuse=None)
    verdict = webhook.verdict()
    assert not verdict.violations and verdict.told == {webhook.written[0][0]: "unsent"}, (verdict, verdict.others)
    # Its turn stands in the conversation: the next answer is made with it.
    before = webhook.written[0][2]
    webhook.write(chat, f"{word()} {chat}")
    verdict = webhook.settled()
    assert verdict.answered == 1 and before in webhook.replies()[-1].text, (verdict, webhook.replies())


def test_a_burst_of_500(cluster, webhook):
    began = time.monotonic()
    webhook.burst(telegram.people(50), 10, word())
    verdict = webhook.settled(600)
    print(f"500 updates of 50 chats: {time.monotonic() - began:.0f} s; {verdict}")
    assert not verdict.violations and verdict.answered == 500, (verdict, verdict.violations[:5])


def test_an_outage_that_is_longer_than_messages_are_worth(cluster, webhook):
    """With all replicas drained, what was accepted waits, dies of age, and can be listed, replayed and dropped."""
    hosts = [one["host"] for one in cluster.topology["ingresses"]]
    edit = "import json; p='/etc/openclaw-ingress/config.json'; d=json.load(open(p)); d['max_age_seconds']={}; json.dump(d, open(p, 'w'))"
    before = json.loads(execute(cluster, hosts[0], "cat", "/etc/openclaw-ingress/config.json"))["max_age_seconds"]

    def limit(seconds):
        for host in hosts:
            execute(cluster, host, "python3", "-c", edit.format(seconds))
            execute(cluster, host, "systemctl", "restart", "openclaw-ingress.service")

    said = word()
    limit(10)
    try:
        for replica in cluster.topology["replicas"]:
            execute(cluster, replica["host"], "openclaw-agent", "drain", replica["id"], "--reason", "test")
        wait_for("an ingress that knows", lambda: "ok" not in telegram.ingress_status(cluster, hosts[0])["replicas"].values(), 30)
        webhook.burst(telegram.people(3), 1, said)
        wait_for("their 200", lambda: len(webhook.accepted()) == 3, 30)
        wait_for("dead letters", lambda: len(telegram.dead(cluster)) == 3, 60)
    finally:
        for replica in cluster.topology["replicas"]:
            execute(cluster, replica["host"], "openclaw-agent", "ready", replica["id"])
        limit(before)
    # Nobody replays them by itself: what comes now is answered, they are not.
    late = webhook.write(telegram.people(1, 10)[0], f"{said} after")
    verdict = webhook.settled()
    assert not verdict.violations and verdict.answered == 1 and len(verdict.told) == 3 and late not in verdict.told, verdict
    one, two, three = (letter["id"] for letter in telegram.dead(cluster))
    telegram.ingress(cluster, "drop", one)
    assert sorted(telegram.ingress(cluster, "replay", two, three)["replayed"]) == sorted([two, three])
    wait_for("their answers", lambda: len(webhook.replies()) == 3, 60)
    assert telegram.dead(cluster) == []


def post(cluster, path, body, **headers):
    return requests.post(f"https://{cluster.lab.vip}:8443{path}", data=body, headers=headers, verify=str(cluster.lab.authority / "ca.pem"), timeout=20)


def declared(cluster, path, length, headers):
    """Status for a body of that length, of which nothing is sent: who refuses it does not wait for it."""
    context = ssl.create_default_context(cafile=str(cluster.lab.authority / "ca.pem"))
    connection = http.client.HTTPSConnection(cluster.lab.vip, 8443, timeout=20, context=context)
    try:
        connection.putrequest("POST", path)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            connection.putheader(name, value)
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.smoke
def test_what_is_no_webhook_of_the_provider(cluster, webhook):
    path = cluster.topology["webhooks"][0]
    secret = cluster.lab.secret("telegram_webhook").read_text().strip()
    right = {"X-Telegram-Bot-Api-Secret-Token": secret, "Content-Type": "application/json"}
    private = f"private {word()}"
    message = {"message_id": 1, "date": 1, "chat": {"id": 4200, "type": "private"}, "from": {"id": 4200}, "text": private}
    update = json.dumps({"update_id": 1, "message": message})
    assert post(cluster, path, update, **right | {"X-Telegram-Bot-Api-Secret-Token": "wr0ng-s3cret"}).status_code == 401
    assert post(cluster, path, update).status_code == 401
    assert post(cluster, "/webhooks/telegram/nobody", update, **right).status_code == 404
    assert post(cluster, path + "/more", update, **right).status_code == 404
    assert declared(cluster, path, 1048577, right) == 413
    assert post(cluster, path, "{", **right).status_code == 400
    assert post(cluster, path, "[]", **right).status_code == 400
    assert requests.get(f"https://{cluster.lab.vip}:8443{path}", verify=str(cluster.lab.authority / "ca.pem"), timeout=10).status_code == 405
    assert telegram.waiting(cluster) == telegram.dead(cluster) == [] and not [reply for reply in webhook.replies() if private in reply.text]
    for unit in ("openclaw-ingress.service", "haproxy.service", "openclaw-owner.service"):
        said = journal_of(cluster, unit)
        assert not [one for one in (secret, "wr0ng-s3cret", private) if one in said], f"{unit} tells what it must not"


#: What everybody on a host can read, and configurations that name no secret: prints what of standard input is in there.
READABLE = """
exec 3<&0 </dev/null
{
    ps -eo args
    cat /etc/openclaw-ingress/config.json /etc/openclaw-owner/config.json /etc/openclaw/gateway/*/openclaw.json /run/openclaw-owner/*/*.json
    find /etc /opt /run -xdev -type f -perm -004 -size -1M -newer /etc/hostname -print0 2>/dev/null | xargs -0 cat 2>/dev/null
} | grep -a -o -F -f /dev/fd/3 || true
"""


@pytest.mark.smoke
def test_no_secret_of_a_channel_is_where_others_can_read_it(cluster):
    secrets = [cluster.lab.secret(name).read_text().strip() for name in ("telegram_101", "telegram_102", "telegram_webhook")]
    for host in cluster.containers:
        run = subprocess.run(
            ["docker", "exec", "--interactive", cluster.containers[host], "sh", "-c", READABLE],
            input="\n".join(secrets), capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        assert run.stdout == "", f"{host}: a secret of a channel is readable"
