"""A job of each minute, while replicas die and are drained: each minute once, or it is told that it was missed."""

import json
import time

from lab.cluster import JOB
from lab.demo import playbook
from lab.shell import wait_for
from tests.channels import telegram
from tests.history.faults import execute, main_pid, started

MINUTES = 10


def slots(cluster):
    """Milliseconds of a minute -> what Redis says of it, of all that were claimed or missed."""
    client = cluster.redis()
    prefix = f"oc:cron:{JOB['name']}:"
    found = {}
    for key in client.keys(f"{prefix}*"):
        text = key.decode() if isinstance(key, bytes) else key
        if text.removeprefix(prefix).isdecimal():
            found[int(text.removeprefix(prefix))] = json.loads(client.get(key))
    return found


def latest(cluster):
    """The newest minute that is over, and who had it."""
    done = {slot: row for slot, row in slots(cluster).items() if row["state"] == "done"}
    return max(done.items(), default=(0, None))


def test_each_minute_once(cluster, webhook):
    replicas = {one["id"]: one for one in cluster.topology["replicas"]}
    # A bot may write to nobody who has never written to it.
    person = int(JOB["deliver"]["to"])
    webhook.write(person, f"j-{time.time_ns()}")
    webhook.settled()
    begin = wait_for("a first minute", lambda: latest(cluster)[0], 180)
    killed = drained = None
    while (now := latest(cluster)[0]) < begin + MINUTES * 60_000:
        if not killed and now >= begin + 2 * 60_000:
            killed = replicas[latest(cluster)[1]["owner"]]
            execute(cluster, killed["host"], "kill", "-KILL", main_pid(cluster, killed["host"], killed["unit"]))
            wait_for(f"{killed['id']} is back", lambda: started(killed), 240)
        if not drained and now >= begin + 5 * 60_000:
            drained = replicas[latest(cluster)[1]["owner"]]
            playbook(cluster.lab, "drain", "--extra-vars", f"drain={drained['id']}")
            execute(cluster, drained["host"], "systemctl", "restart", drained["unit"])
            wait_for(f"{drained['id']} is back", lambda: started(drained), 240)
            playbook(cluster.lab, "drain", "--extra-vars", f"drain={drained['id']} drain_state=ready")
        before = time.time()
        # Whoever has run it, the next minute comes; or it is missed, and Redis says so.
        wait_for("the next minute", lambda: max(slots(cluster)) > now or time.time() > before + 150, 200)
    wait_for("an end of what runs", lambda: not [row for row in slots(cluster).values() if row["state"] == "running"], 240)
    rows = {slot: row for slot, row in slots(cluster).items() if begin < slot <= begin + MINUTES * 60_000}
    states = [rows.get(begin + number * 60_000, {"state": "untold"})["state"] for number in range(1, MINUTES + 1)]
    answers = [reply for reply in webhook.replies() if reply.chat == person and JOB["message"] in reply.text]
    owners = {row["owner"] for row in rows.values() if row.get("owner")}
    print(f"{MINUTES} minutes with {killed['id']} killed and {drained['id']} drained and restarted: {states}, {len(answers)} answers, by {sorted(owners)}")
    assert set(states) <= {"done", "missed", "unfinished"} and states.count("done") >= MINUTES - 2
    # Never twice: as many answers as minutes that were run, and the one before them and after them at most.
    ran = [slot for slot, row in slots(cluster).items() if row["state"] == "done"]
    assert states.count("done") <= len(answers) <= len([slot for slot in ran if slot >= begin]) + 1
    assert len(owners) > 1
    assert telegram.waiting(cluster) == []
