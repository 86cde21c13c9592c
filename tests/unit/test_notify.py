"""Addresses of messages: what can be one, what is shown of it, and what a plain web address becomes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptjobs.errors import UsageError
from gptjobs.job import MOST_ADDRESSES
from gptjobs.notify import check, masked
from worker.notify import as_webhook

SECRET = "t0ken"
SHOWN = {
    f"ntfy://{SECRET}": "ntfy://…",
    f"slack://{SECRET}/b/c": "slack://…",
    f"discord://{SECRET}/{SECRET}": "discord://…",
    f"tgram://{SECRET}/12": "tgram://…",
    f"NTFY://{SECRET}": "ntfy://…",
    f"https://hooks.slack.com/services/{SECRET}/b/c": "https://hooks.slack.com/…",
    f"https://me:{SECRET}@hook.example:8443/{SECRET}?key={SECRET}#{SECRET}": "https://hook.example:8443/…",
    f"jsons://{SECRET}:x@hook.example": "jsons://hook.example/…",
    f"mailtos://me:{SECRET}@mail.example": "mailtos://mail.example/…",
    f"mailtos://{SECRET}?x@mail.example?to=you@mail.example": "mailtos://…",
    f"json://{SECRET}/more@hook.example/path": "json://…",
    f"json://me:{SECRET}/more@hook.example/path": "json://…",
    f"json://hook.example:{SECRET}/": "json://…",
    f"https://[{SECRET}/": "https://…",
    f"form:///{SECRET}": "form://…",
}


@pytest.mark.parametrize("url", SHOWN)
def test_of_an_address_the_service_is_shown_and_a_host_that_is_one(url: str) -> None:
    assert masked(url) == SHOWN[url]


@given(st.lists(st.sampled_from([SECRET, ":", "/", "@", "?", "#", "&", "=", "[", "%"]), min_size=1, max_size=9))
def test_nothing_before_an_at_is_shown_whatever_stands_in_a_password(parts: list[str]) -> None:
    assert SECRET not in masked(f"json://me:{''.join(parts)}@h.example/")
    assert SECRET not in masked(f"https://x{''.join(parts)}@h.example")


@pytest.mark.parametrize(
    "url",
    ["", SECRET, f"#{SECRET}", f"//{SECRET}", f"ntfy:{SECRET}", f"ntfy://{SECRET} x", f"ntfy://{SECRET}\n", "ntfy://"],
)
def test_what_can_be_no_address_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(UsageError, match=r"what --notify names is no URL") as refused:
        check([url], "--notify")
    assert SECRET not in refused.value.message + str(refused.value.hint)


def test_of_several_the_refused_one_is_counted_and_none_is_told_twice() -> None:
    with pytest.raises(UsageError, match="address 2 of --notify"):
        check(["ntfy://a", "b"], "--notify")
    assert check(["ntfy://a", "ntfy://b", "ntfy://a"], "--notify") == ("ntfy://a", "ntfy://b")
    with pytest.raises(UsageError, match="more than 16"):
        check([f"ntfy://{each}" for each in range(MOST_ADDRESSES + 1)], "--notify")


@pytest.mark.parametrize(
    ("url", "webhook"),
    [
        ("https://h.example/a/b", "jsons://h.example/a/b"),
        ("HTTP://me:p%2Fw@h.example:8080", "json://me:p%2Fw@h.example:8080"),
        ("https://h.example/a?token=x%26y&b=#part", "jsons://h.example/a?-token=x%26y&-b="),
        ("ntfy://topic?a=b", "ntfy://topic?a=b"),
    ],
)
def test_a_plain_web_address_takes_json_with_its_own_parameters(url: str, webhook: str) -> None:
    assert as_webhook(url) == webhook


@pytest.mark.parametrize(
    ("url", "service"),
    [
        ("https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ", True),
        ("https://discord.com/api/webhooks/4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js", True),
        ("https://ntfy.sh/topic", True),
        ("mailtos://me:secret@mail.example?to=you@mail.example", True),
        ("https://h.example/a?token=x", True),
        ("slack://one-part", False),
        ("nobody://x", False),
    ],
)
def test_a_child_says_without_a_word_whether_an_address_is_of_a_service(
    tmp_path: Path, url: str, service: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker.notify"],
        input=json.dumps({"url": url, "message": None}), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == (0 if service else 11)
    assert url not in done.stdout + done.stderr
