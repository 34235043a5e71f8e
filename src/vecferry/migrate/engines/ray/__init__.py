"""Ray, and what Ray Data does here.

    driver ── jobs ──► conductor ── Ray Data: map_batches over a pool of actors ──► workers, one model each
       ◄── results, one by one, each as soon as it is there ──┘

pool.py       jobs in, results out; what hangs or breaks is begun again
machines.py   are looked at, get the model and are compared, before they get a worker
session.py    the connection to a cluster, or a Ray of this machine
actors.py     what Ray runs: conductor, turnstile, workers

The conductor is an actor on the driver's machine that owns one Ray Data run, a wave of jobs. Where nothing comes any
more it is killed, and with it goes all that it owns; the next one begins what is missing. A job's result is its bytes:
nothing is written by a worker, so no folder must be shared, and a full disk is met in one place.

A worker begins a job when the result of its last one is kept, and no sooner: it waits at a turnstile, an actor beside
the conductor. So whatever is lost, a worker has one job to do again at most, and none is begun for a driver that died.

Ray reports usage to its maker unless it is told not to; here it is, unless the application has chosen otherwise.
"""

import os

from vecferry.errors import MissingExtra

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import pyarrow as pyarrow
    import ray as ray
except ImportError as exc:
    raise MissingExtra("ray", "ray") from exc
