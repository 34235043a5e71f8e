"""What Prometheus reads at /metrics; docs/serving.md explains it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from vecferry.server.lanes import Lane
from vecferry.server.models import Served, ServedModels

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, which nobody asked for
CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Metrics:
    """Metrics in a registry of their own, so that several servers can be in one process, as in tests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._new: dict[str, Any] = {"registry": self.registry, "namespace": "vecferry"}
        self.requests = Counter("requests", "Answered requests.", ["endpoint", "status"], **self._new)
        self.seconds = Histogram(
            "request_seconds",
            "Seconds from arrival to answer.",
            ["endpoint", "lane"],
            buckets=SECONDS,
            **self._new,
        )
        self.run_seconds = Histogram(
            "run_seconds", "Seconds of one run of a model.", ["model"], buckets=SECONDS, **self._new
        )
        self.run_tokens = Histogram("run_tokens", "Tokens of a run, padded.", ["model"], buckets=TOKENS, **self._new)
        self.run_texts = Counter("run_texts", "Texts that were computed.", ["model"], **self._new)
        self.tokens = Counter("tokens", "Tokens that were computed, without padding.", ["model"], **self._new)
        self.padding = Counter("padding_tokens", "Tokens of padding that were computed.", ["model"], **self._new)
        self.truncated = Counter("truncated_texts", "Texts that were cut.", ["model"], **self._new)
        self.abandoned = Counter("abandoned_requests", "Requests whose client went away.", ["endpoint"], **self._new)
        self.accepted = Counter("accepted_requests", "Requests that were let into a lane.", ["lane"], **self._new)

    def watch_lanes(self, lanes: tuple[Lane, ...]) -> None:
        tokens = Gauge("queue_tokens", "Tokens that wait.", ["lane"], **self._new)
        parts = Gauge("queue_parts", "Parts of requests that wait.", ["lane"], **self._new)
        for lane in lanes:
            tokens.labels(lane.name).set_function(partial(getattr, lane, "tokens"))
            parts.labels(lane.name).set_function(lane.__len__)

    def watch_bodies(self, num_bytes: Callable[[], int]) -> None:
        held = Gauge("body_bytes", "Bytes of requests' bodies that are held, without small ones.", **self._new)
        held.set_function(num_bytes)

    def watch_models(self, models: ServedModels) -> None:
        works = Gauge("model_works", "1 if the last probe passed.", ["model"], **self._new)
        fallback = Gauge("model_fallback", "1 if another runtime than the first choice serves.", ["model"], **self._new)
        info = Gauge(
            "model_info",
            "Always 1; the labels name what serves.",
            ["model", "runtime", "precision", "fingerprint"],
            **self._new,
        )
        for model in models.all:
            works.labels(model.name).set_function(partial(_works, model))
            fallback.labels(model.name).set(model.is_fallback)
            space = model.encoder.space
            info.labels(model.name, model.encoder.runtime.name, space.precision, space.fingerprint).set(1)

    def ran(self, model: Served, texts: int, padded: int, tokens: int, seconds: float) -> None:
        """Record a run of a model."""
        self.run_seconds.labels(model.name).observe(seconds)
        self.run_tokens.labels(model.name).observe(padded)
        self.run_texts.labels(model.name).inc(texts)
        self.tokens.labels(model.name).inc(tokens)
        self.padding.labels(model.name).inc(padded - tokens)

    def exposed(self) -> bytes:
        return generate_latest(self.registry)


def _works(model: Served) -> float:
    return float(model.problem is None)
