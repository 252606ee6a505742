"""Running commands, and telling the person in front of the terminal how far things are."""

import subprocess
import sys
import time

_START = time.monotonic()


class LabError(RuntimeError):
    """Something the person at the terminal has to act on; the text says what."""


def say(text):
    """One line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - _START:6.1f} s] {text}", flush=True)


def run(*command, check=True, **options):
    """Run a command quietly and return its standard output.

    :raises LabError: with the end of what it printed, when it fails and ``check`` is set
    """
    words = [str(part) for part in command]
    done = subprocess.run(words, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)
    if check and done.returncode:
        output = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise LabError(f"{' '.join(str(part) for part in command[:4])} ... ended with {done.returncode}:\n{output}")
    return done.stdout.strip()


def run_logged(command, log, show, **options):
    """Run a long command, write all it prints to the file ``log``, and pass each line through ``show`` (line -> text or None)."""
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            **options,
        )
        for line in process.stdout:
            file.write(line)
            file.flush()
            text = show(line.rstrip())
            if text:
                say(text)
        code = process.wait()
    if code:
        with open(log, encoding="utf-8") as file:
            sys.stderr.write("".join(file.readlines()[-60:]))
        raise LabError(f"{command[0]} ended with {code}; the whole output is in {log}")


def wait_for(what, probe, seconds=120, interval=0.25):
    """Call ``probe`` until it returns something true, and return that; a :class:`LabError` of it counts as an answer.

    :raises LabError: after ``seconds``, with ``what`` and the last answer
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = probe()
        except LabError as error:
            found, answer = None, str(error)
        else:
            answer = repr(found)
        if found:
            return found
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not seen within {seconds} s (last: {answer})")
        time.sleep(interval)  # between two looks, until the deadline above
