"""What the Python programs share: where the gateway is, what the upstream saw, and how checks are
told. It knows no SDK.

The environment names the gateway (TIDEGATE_URL), a tenant's key that opens every model but
deepseek-v4-pro (TIDEGATE_KEY), and the emulator's journal (EMULATOR_JOURNAL).
"""

import asyncio
import inspect
import json
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from urllib.request import urlopen

URL = os.environ["TIDEGATE_URL"].rstrip("/")
KEY = os.environ["TIDEGATE_KEY"]
JOURNAL = os.environ["EMULATOR_JOURNAL"]

# How soon an upstream must know that the client has left.
CANCEL_SECONDS = 1.0

_checks: list[tuple[str, Callable]] = []


def check(function: Callable) -> Callable:
    """Adds a check; its name, a sentence, is the function's."""
    _checks.append((function.__name__.replace("_", " "), function))
    return function


def main() -> None:
    """Runs all checks in their order, prints a line for each, and exits."""
    failures = 0
    for name, function in _checks:
        try:
            outcome = function()
            if inspect.iscoroutine(outcome):
                asyncio.run(outcome)
        except Exception as error:
            failures += 1
            print(f"not ok {name}: {_why(error)}", flush=True)
        else:
            print(f"ok {name}", flush=True)
    sys.exit(1 if failures else 0)


def _why(error: Exception) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith("_sdk.py")]
    place = f"line {frames[-1].lineno}: {frames[-1].line}" if frames else "no line"
    return f"{type(error).__name__}: {error} ({place})".replace("\n", " ")


def equal(found: object, wanted: object) -> None:
    """Like assert ==, but says what was found."""
    assert found == wanted, f"found {found!r}, wanted {wanted!r}"


def raises(kind: type[Exception], call: Callable[[], object]) -> Exception:
    """The exception of exactly this kind or a subclass; anything else is a failure."""
    try:
        answer = call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}, but {answer!r}")


def recovered(call: Callable[[], object]) -> None:
    """Waits until the gateway asks its only account again, which was refused."""
    deadline = time.monotonic() + 5
    while True:
        try:
            call()
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def ordering(faults: str, text: str = "Hello") -> str:
    """A user message that orders faults of the emulator, counted apart from every other order."""
    return f"{text} [[fault:{faults},id={uuid.uuid4().hex}]]"


def journal() -> list[dict]:
    """What the upstream was asked, oldest first."""
    with urlopen(JOURNAL, timeout=5) as answer:
        return json.load(answer)


def asked(request_id: str) -> dict:
    """The upstream's entry for one request, known by the id that the gateway gave it."""
    found = [e for e in journal() if dict(e["request_headers"]).get("x-request-id") == request_id]
    assert len(found) == 1, f"{len(found)} entries of {request_id}"
    return found[0]


def generations() -> list[dict]:
    """The entries of requests for an answer, oldest first; probes of the upstream's health are none."""
    return [entry for entry in journal() if entry["method"] == "POST"]


def attempts(call: Callable[[], object]) -> int:
    """How many requests for an answer reach the upstream meanwhile."""
    before = len(generations())
    call()
    return len(generations()) - before


def seen_as_cancelled(request_id: str, left_at: float) -> None:
    """The upstream noticed in time that the client left at `left_at` (Unix seconds)."""
    deadline = time.monotonic() + 3 * CANCEL_SECONDS
    while (entry := asked(request_id))["outcome"] is None and time.monotonic() < deadline:
        time.sleep(0.02)
    equal(entry["outcome"], "client_gone")
    took = entry["ended_ms"] / 1000 - left_at
    assert took < CANCEL_SECONDS, f"seen after {took:.3f} s"
