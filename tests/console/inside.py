"""A console in a thread of the test's process, over doubles whose vectors say their text and model."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from tests.migrate.doubles import TruthEncoder
from tests.stores.collections import OLD_DIMENSION
from tests.waiting import wait_until
from vecferry.console.app import create_app
from vecferry.console.operator import Operator, Task
from vecferry.console.sessions import Sessions
from vecferry.migrate import MigrationOptions
from vecferry.migrate.values import Check, GateVerdict
from vecferry.server import process
from vecferry.server.keys import ApiKeys
from vecferry.stores.protocol import Store
from vecferry.stores.values import Patience

KEY = "a-key-of-the-tests-1234"
WAIT_S = 300.0


def options(folder: Path, **others: Any) -> MigrationOptions:
    return MigrationOptions(
        accept_unconfirmed="a test",
        staging=folder / "staging",
        old_fingerprint=TruthEncoder("old", OLD_DIMENSION).fingerprint,
        min_recall=0.5,
        patience=Patience(0.3, 20.0),
        lease_s=5.0,
        **others,
    )


def task(
    store: Store,
    folder: Path,
    *,
    gates: Sequence[bool] = (True,),
    message: str = "Too few queries to tell.",
    hold: Callable[[], object] = lambda: None,
    new: TruthEncoder | None = None,
) -> Task:
    """gates: what the gate says, one time after the other; the last one stays. message: where it does not pass.

    hold: called before it says anything.
    """
    verdicts = list(gates)

    def gate(store: Store) -> GateVerdict:
        hold()
        passed = verdicts.pop(0) if len(verdicts) > 1 else verdicts[0]
        slices = (Check("language en", passed, "+0.010"),)
        return GateVerdict(passed, "The new model is better." if passed else message, "judged queries", slices)

    old = TruthEncoder("old", OLD_DIMENSION)
    return Task(store, options(folder), new or TruthEncoder("new", 16), old, lambda: gate)


@dataclass
class Console:
    url: str
    operator: Operator
    http: httpx2.Client
    csrf: str = ""
    place: str = ""

    def log_in(self, key: str = KEY) -> httpx2.Response:
        answer = self.post("/login", key=key)
        self.csrf = self.token() if answer.status_code == 303 else ""
        return answer

    def token(self) -> str:
        """Return the token of the forms, as the page has it."""
        return re.search(r'name="csrf" value="([^"]+)"', self.page())[1]  # type: ignore[index]

    def page(self, path: str = "/") -> str:
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def post(self, path: str, *, headers: dict[str, str] | None = None, **fields: str) -> httpx2.Response:
        return self.http.post(path, data=fields, headers={"origin": self.url} | (headers or {}))

    def do(self, verb: str, **fields: str) -> str:
        """Send the form of a verb; return the page to which it leads. `place` is where on it, after a refusal."""
        answer = self.post(f"/do/{verb}", headers=None, csrf=self.csrf, **fields)
        path, _, self.place = answer.headers["location"].partition("#")
        assert (answer.status_code, path) == (303, "/"), answer.text
        return self.page()

    def wait_for(self, message: str) -> str:
        wait_until(lambda: message in self.page())
        return self.page()


@contextmanager
def console(work: Task, *, names: Sequence[str] = (), receive_s: float = WAIT_S) -> Iterator[Console]:
    operator = Operator(work)
    app = create_app(operator, Sessions(ApiKeys([KEY])), names=names, receive_s=receive_s)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", ws="none"))
    listening = process.listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        wait_until(lambda: server.started)
        with httpx2.Client(base_url=url, timeout=WAIT_S, follow_redirects=False) as http:
            yield Console(url, operator, http)
    finally:
        app.state.is_ending = server.should_exit = True
        thread.join(WAIT_S)
        listening.close()
