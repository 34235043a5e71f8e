"""Machines of a cluster: each is looked at, gets the model, and is compared, before it gets a worker."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import vecferry
from vecferry.conversion.verify import LOSSES, TEXTS, TOLERANCES
from vecferry.embeddings import Float32
from vecferry.encode.encoder import TextEncoder
from vecferry.errors import EngineUnreachable, NodeRefused, VecferryError
from vecferry.migrate.engines import RaySettings
from vecferry.migrate.engines.model_distribution import ArtifactRef
from vecferry.migrate.engines.ray.session import machines_alive

CANCEL_POLL_S = 0.5


class Stalled(Exception):
    """Nothing came in time; what was seen."""


def on(machine: str, what: Any, *, num_cpus: float = 0, num_gpus: float = 0, **options: Any) -> Any:
    """Make a function or class of ours a task or actor on that machine, which is not begun again if it is lost."""
    options |= {"max_restarts": 0} if inspect.isclass(what) else {"max_retries": 0}
    placed = NodeAffinitySchedulingStrategy(machine, soft=False)
    return ray.remote(what).options(num_cpus=num_cpus, num_gpus=num_gpus, scheduling_strategy=placed, **options)


def late(tasks: list[Any], patience_s: float, raise_if_cancelled: Callable[[], None]) -> list[Any]:
    """Return those without a result after so long, or as soon as all have one. raise_if_cancelled: called meanwhile."""
    until, waited_for = time.monotonic() + patience_s, tasks
    while waited_for and (left_s := until - time.monotonic()) > 0:
        raise_if_cancelled()
        _, waited_for = ray.wait(tasks, num_returns=len(tasks), timeout=min(left_s, CANCEL_POLL_S))
    return waited_for


@dataclass(frozen=True)
class Machines:
    """Knows which it has examined. encoder: of the driver, whose vectors those of other machines are held against."""

    settings: RaySettings
    model: ArtifactRef
    encoder: TextEncoder
    raise_if_cancelled: Callable[[], None]
    examined: set[str] = field(default_factory=set)

    def check_integrity(self, threads: int) -> None:
        """Leave the model on every machine that can have a worker with so many threads and was not seen before.

        Raises NodeRefused, EngineUnreachable, RayError, Stalled.
        """
        new = {name: host for name, host in self._fitting(threads).items() if name not in self.examined}
        looks = self._on_each(new, _look, self.model)
        for name, (_, version, _, refusal) in looks.items():
            if version != vecferry.__version__:
                raise NodeRefused(new[name], f"it has vecferry {version}, and the driver {vecferry.__version__}")
            if refusal:
                raise NodeRefused(new[name], refusal)
        self._ship({name: new[name] for name, (_, _, missing, _) in looks.items() if missing})
        self._compare({name: new[name] for name, (kind, *_) in looks.items() if kind != self.model.kind()}, threads)
        self.examined.update(new)

    def _fitting(self, threads: int) -> dict[str, str]:
        """Return Ray's name and the host's. Raises EngineUnreachable."""
        wanted = {"CPU": threads, "GPU": self.settings.gpus_per_worker}
        hosts = {
            machine["NodeID"]: machine["NodeManagerHostname"] for machine in machines_alive()
            if all(machine["Resources"].get(name, 0) >= number for name, number in wanted.items())
        }  # fmt: skip
        if not hosts:
            reason = f"none of its machines has {threads} CPUs and {self.settings.gpus_per_worker:g} GPUs for a worker"
            raise EngineUnreachable(self.settings.address or "local", reason)
        return hosts

    def _ship(self, machines: Mapping[str, str]) -> None:
        if machines:
            pieces = [(name, ray.put(piece)) for name, piece in self.model.pieces()]
            refusals = self._on_each(machines, _receive, self.model, pieces)
            del pieces
            for name, refusal in refusals.items():
                if refusal:
                    raise NodeRefused(machines[name], refusal)

    def _compare(self, machines: Mapping[str, str], threads: int) -> None:
        """Refuse a machine of another kind on which the same texts do not have nearly the same vectors."""
        if not machines:
            return
        allowed = LOSSES.get(self.encoder.space.precision, TOLERANCES)["itself"]
        expected = self.encoder.encode(TEXTS).dense
        needs = {"num_cpus": threads, "num_gpus": self.settings.gpus_per_worker}
        for name, answer in self._on_each(machines, _encode_probes, self.model, threads, **needs).items():
            if isinstance(answer, str):
                raise NodeRefused(machines[name], answer)
            if (difference := float(np.abs(answer - expected).max())) > allowed or not np.isfinite(answer).all():
                reason = f"its vectors differ from the driver's by {difference:.2g}, and {allowed:g} is allowed"
                raise NodeRefused(machines[name], reason)

    def _on_each(self, machines: Mapping[str, str], function: Any, *args: Any, **needs: float) -> dict[str, Any]:
        """Return what the function returns on each of these machines. Raises RayError, Stalled."""
        if not machines:
            return {}
        tasks = {name: on(name, function, **needs).remote(*args) for name in machines}
        if silent := late([*tasks.values()], self.settings.stall_s, self.raise_if_cancelled):
            hosts = ", ".join(machines[name] for name, task in tasks.items() if task in silent)
            raise Stalled(f"{hosts} did not answer for {self.settings.stall_s:g} s")
        return {name: ray.get(task) for name, task in tasks.items()}


# --- on the machines ------------------------------------------------------------------------------


def _look(model: ArtifactRef) -> tuple[str, str, str, str]:
    """Return kind of machine, vecferry's version, why the model is missing, why the machine is to be refused."""
    try:
        missing, refusal = model.missing(), ""
    except VecferryError as exc:
        missing, refusal = "", exc.message
    return model.kind(), vecferry.__version__, missing, refusal


def _receive(model: ArtifactRef, pieces: Sequence[tuple[str, Any]]) -> str:
    """Receive the model, and say why it could not be; empty if it is there."""
    try:
        model.receive((name, ray.get(piece)) for name, piece in pieces)
    except VecferryError as exc:
        return exc.message
    return ""


def _encode_probes(model: ArtifactRef, threads: int) -> Float32 | str:
    """Return float32 [TEXTS, D], or why not."""
    try:
        return model.load(threads).encode(TEXTS).dense
    except VecferryError as exc:
        return exc.message
