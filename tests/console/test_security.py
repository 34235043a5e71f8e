"""Who is let in, and what a browser is told to refuse."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.console.inside import KEY, WAIT_S, Console, console, task
from tests.stores.collections import MirrorCollection, mirror_collection
from vecferry.console import sessions as module
from vecferry.console.sessions import IDLE_S, Sessions
from vecferry.server.keys import ApiKeys


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    folder = tmp_path_factory.mktemp("console")
    with mirror_collection("memory", folder) as collection, console(task(collection.store, folder)) as started:
        yield started


@pytest.fixture
def opened(served: Console) -> Iterator[Console]:
    """Yield the one console of this file, with a browser of the test's own."""
    with httpx2.Client(base_url=served.url, timeout=WAIT_S) as http:
        yield Console(served.url, served.operator, http)


# --- logging in -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/search?q=x"])
def test_nothing_is_shown_without_a_login(opened: Console, path: str) -> None:
    answer = opened.http.get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


def test_nothing_is_done_without_a_login(opened: Console) -> None:
    answer = opened.post("/do/start", csrf="")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert not opened.operator._threads


def test_a_wrong_key_is_refused_and_said_nowhere(opened: Console, caplog: pytest.LogCaptureFixture) -> None:
    answer = opened.log_in("the-wrong-key-1234")
    assert answer.status_code == 200
    assert "That is not a key of this console." in answer.text
    assert "set-cookie" not in answer.headers
    assert "the-wrong-key" not in answer.text + caplog.text


def test_the_cookie_is_for_this_console_alone(opened: Console) -> None:
    answer = opened.log_in()
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Path=/" in cookie
    assert KEY not in cookie + answer.headers["location"]


def test_a_logout_ends_the_session_on_the_server(inside: Console) -> None:
    cookie = dict(inside.http.cookies)
    assert inside.post("/logout", csrf=inside.csrf).status_code == 303
    inside.http.cookies.update(cookie)
    assert inside.http.get("/").status_code == 303


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_wrong_keys_are_slowed_and_the_right_one_waits_too() -> None:
    clock = Clock()
    sessions = Sessions(ApiKeys([KEY]), clock)
    waits = []
    for _ in range(9):
        clock.now += sessions.wait_s("a")
        assert not sessions.accepts("wrong", "a")
        waits.append(sessions.wait_s("a"))
    assert waits == [0, 0, 1, 2, 4, 8, 16, 32, 60]
    assert not sessions.accepts(KEY, "a")
    assert sessions.accepts(KEY, "b"), "nobody else has to wait"
    clock.now += 60
    assert sessions.accepts(KEY, "a")
    assert sessions.wait_s("a") == 0


def test_what_is_remembered_of_clients_is_bounded() -> None:
    sessions = Sessions(ApiKeys([KEY]), Clock())
    for number in range(2 * module.MAX_REMEMBERED):
        sessions.accepts("wrong", str(number))
        sessions.begin()
    assert len(sessions._failures) == len(sessions._sessions) == module.MAX_REMEMBERED


def test_a_session_ends_when_nobody_does_anything_and_looking_on_is_nothing() -> None:
    clock = Clock()
    sessions = Sessions(ApiKeys([KEY]), clock)
    session = sessions.begin()
    clock.now += IDLE_S
    assert sessions.find(session.token, active=False) is session
    clock.now += 1
    assert sessions.find(session.token, active=False) is None
    assert sessions.find(session.token) is None
    again = sessions.begin()
    clock.now += IDLE_S
    assert sessions.find(again.token) is again
    clock.now += IDLE_S
    assert sessions.find(again.token) is again


def test_sessions_and_keys_are_not_shown() -> None:
    session = Sessions(ApiKeys([KEY])).begin()
    assert session.token not in repr(session)
    assert session.csrf not in repr(session)


# --- forms of others ------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "another"])
def test_a_form_without_this_sessions_token_is_refused(inside: Console, token: str) -> None:
    answer = inside.post("/do/pause", csrf=token)
    assert answer.status_code == 403
    assert "another session" in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
    ],
)
@pytest.mark.parametrize("path", ["/login", "/do/start", "/logout"])
def test_a_form_of_another_page_is_refused(inside: Console, path: str, headers: dict[str, str]) -> None:
    answer = inside.post(path, headers=headers, csrf=inside.csrf, key=KEY)
    assert answer.status_code == 403


def test_a_form_of_nobody_is_refused(inside: Console) -> None:
    assert inside.http.post("/do/pause", data={"csrf": inside.csrf}).status_code == 403


def test_a_form_of_our_own_page_is_taken_by_either_word_of_the_browser(inside: Console) -> None:
    for headers in ({"origin": inside.url}, {"sec-fetch-site": "same-origin"}):
        answer = inside.http.post("/do/throttle", data={"csrf": inside.csrf}, headers=headers)
        assert answer.status_code == 303


def test_a_form_that_is_too_large_is_refused(inside: Console) -> None:
    assert inside.post("/do/override", csrf=inside.csrf, reason="x" * 100_000).status_code == 413


def test_an_unknown_verb_is_refused(inside: Console) -> None:
    for verb in ("finalize", "abort", "x"):
        assert inside.post(f"/do/{verb}", csrf=inside.csrf).status_code == 404


# --- names of others ------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8081", "localhost.evil.example", "", "127.0.0.1.evil"])
def test_a_name_that_leads_here_without_being_ours_is_refused(inside: Console, host: str) -> None:
    assert inside.http.get("/", headers={"host": host}).status_code in (400, 421)


@pytest.mark.parametrize(
    "host", ["localhost:8081", "127.0.0.1", "[::1]:8081", "192.168.1.7:8081", "console.shop.example"]
)
def test_an_address_and_a_name_of_ours_are_taken(collection: MirrorCollection, tmp_path: Path, host: str) -> None:
    with console(task(collection.store, tmp_path), names=["console.shop.example"]) as opened:
        assert opened.http.get("/login", headers={"host": host}).status_code == 200


def test_a_login_that_is_too_long_is_refused_without_a_word_in_the_log(
    inside: Console, caplog: pytest.LogCaptureFixture
) -> None:
    assert inside.post("/login", key="x" * 100_000).status_code == 413
    chunks = (b"key=" + b"x" * 50_000, b"x" * 50_000)
    answer = inside.http.post("/login", content=iter(chunks), headers={"origin": inside.url})
    assert answer.status_code == 413
    assert caplog.records == []


def test_nobody_is_told_what_is_migrated_before_the_login(inside: Console) -> None:
    target = inside.operator.task.store.target
    assert target in inside.page()
    inside.http.cookies.clear()
    for path in ("/login", "/no", "/static/no"):
        assert target not in inside.http.get(path).text


# --- what every answer says -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/login", "/search", "/static/console.js", "/static/console.css", "/no", "/events"]
)
def test_every_answer_has_the_headers(inside: Console, path: str) -> None:
    inside.http.cookies.clear()
    headers = inside.http.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "same-origin"


def test_what_is_not_there_is_refused_in_a_page(inside: Console) -> None:
    answer = inside.http.get("/no")
    assert answer.status_code == 404
    assert "<h1" in answer.text


def test_no_page_has_a_script_a_style_or_a_handler_in_it(inside: Console) -> None:
    for path in ("/", "/search?q=text+number+3", "/login"):
        page = inside.page(path)
        assert re.findall(r"<script(?! src=\"/static/console\.js\" defer>)", page) == []
        assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", page) == []
        assert re.findall(r"(?:src|href|action)=\"(?!/|#)", page) == []


def test_keys_are_in_no_address(inside: Console) -> None:
    page = inside.page()
    assert KEY not in page
    assert 'method="get"' not in page


# --- what does not come ---------------------------------------------------------------------------


def test_a_form_that_does_not_come_is_ended(collection: MirrorCollection, tmp_path: Path) -> None:
    lines = ["POST /login HTTP/1.1", "host: localhost", "origin: http://localhost", "content-length: 100", "", "key="]
    with console(task(collection.store, tmp_path), receive_s=0.1) as opened:
        port = int(opened.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as connection:
            connection.sendall("\r\n".join(lines).encode())
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"did not arrive within 0.1 seconds" in answer


@pytest.mark.parametrize("origin", ["http://[", "http://127.0.0.1:1", "ftp://localhost", "\xe9"])
def test_an_origin_that_is_none_is_refused(inside: Console, origin: str) -> None:
    assert inside.post("/login", headers={"origin": origin.encode("latin-1")}, key=KEY).status_code == 403  # type: ignore[dict-item]
