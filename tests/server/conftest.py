"""A server in a process of its own, as `vecferry serve` starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from vecferry.encode.encoder import Encoder
from vecferry.encode.loading import EncoderOptions, load_encoder
from vecferry.model.artifact import Artifact

STARTED = re.compile(r"at (http://\S+)")
KEY = "a-key-of-the-tests-1234"


def rss_bytes_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


@dataclass
class Server:
    """url: without a slash at its end. lines: of its log so far."""

    process: subprocess.Popen[str]
    url: str
    lines: list[str] = field(default_factory=list)

    def wait_until_ready(self) -> None:
        with httpx2.Client(base_url=self.url) as http:
            for _ in range(200):
                if http.get("/health").status_code == 200:
                    return
                threading.Event().wait(0.05)
        raise AssertionError("\n".join(self.lines))

    def rss_bytes(self) -> int:
        return rss_bytes_of(self.process.pid)

    def stop(self, with_signal: int = signal.SIGTERM, timeout_s: float = 60) -> int:
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        return self.process.wait(timeout_s)


@contextmanager
def serving(
    *arguments: str, env: dict[str, str] | None = None, python: Sequence[str] = (sys.executable,)
) -> Iterator[Server]:
    """Run `vecferry serve` with these arguments, on a free port of the loopback interface; killed at the end."""
    command = [*python, "-m", "vecferry.cli", "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | (env or {}))
    lines: list[str] = []
    started = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip("\n"))
            if STARTED.search(line):
                started.set()
        started.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert started.wait(60), "no start within a minute"
        addresses = [match[1] for line in lines if (match := STARTED.search(line))]
        assert addresses, "\n".join(lines)
        server = Server(process, addresses[0].replace("0.0.0.0", "127.0.0.1"), lines)
        server.wait_until_ready()
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(5)
        if process.stderr is not None:
            process.stderr.close()


Serving = Callable[..., Iterator[Server]]


@pytest.fixture(scope="session")
def server(tiny_artifact: Artifact) -> Iterator[Server]:
    """Yield a server of one model under two names, `tiny` and its folder's, that takes token ids.

    Not to be stopped, nor left busy.
    """
    with serving(f"tiny={tiny_artifact.path}", "--token-ids") as started:
        yield started


@pytest.fixture(scope="session")
def library(tiny_artifact: Artifact) -> Encoder:
    """Return the encoder of the same model, without a server."""
    return load_encoder(EncoderOptions(artifact=tiny_artifact.path)).encoder


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client
