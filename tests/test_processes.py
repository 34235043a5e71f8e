"""A model in several processes, of which each would have a GPU: two of one processor stand for them."""

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from vecferry.embeddings import DENSE, Embeddings, Outputs, TokenBatch
from vecferry.encode.batching import Limits
from vecferry.encode.encoder import Encoder
from vecferry.encode.loading import EncoderOptions, load_runtime
from vecferry.encode.runtime.processes import ProcessesRuntime
from vecferry.errors import ArtifactNotFound, RuntimeFailed
from vecferry.model.artifact import Artifact

TEXTS = [f"{n} and {'more ' * (n % 9)}" for n in range(60)]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def options(tiny_artifact: Artifact) -> EncoderOptions:
    return EncoderOptions(artifact=tiny_artifact.path, processes=2, limits=Limits(max_batch_tokens=64))


@pytest.fixture
def several(options: EncoderOptions) -> Iterator[Encoder]:
    encoder = load_runtime(options, "onnx")
    yield encoder
    runtime_of(encoder).close()


@dataclass
class Counted:
    """What a worker does, noted by its number."""

    submit: Callable[[TokenBatch, Outputs], Future[Embeddings]]
    given: list[str]
    number: str

    def __call__(self, batch: TokenBatch, outputs: Outputs) -> Future[Embeddings]:
        self.given.append(self.number)
        return self.submit(batch, outputs)


def runtime_of(encoder: Encoder) -> ProcessesRuntime:
    assert isinstance(encoder.runtime, ProcessesRuntime)
    return encoder.runtime


def test_two_processes_give_what_one_gives_and_both_work(several: Encoder, options: EncoderOptions) -> None:
    runtime = runtime_of(several)
    given = list[str]()
    for number, worker in enumerate(runtime._workers):
        worker.submit = Counted(worker.submit, given, str(number))  # type: ignore[method-assign]
    alone = load_runtime(replace(options, processes=1), "onnx")
    ours, expected = (each.encode(TEXTS, outputs=Outputs.ALL) for each in (several, alone))
    np.testing.assert_allclose(ours.dense, expected.dense, atol=1e-5)
    np.testing.assert_allclose(ours.colbert.vectors, expected.colbert.vectors, atol=1e-5)
    assert ours.fingerprint == expected.fingerprint
    assert min(given.count(number) for number in "01") >= 2, "the first four runs are shared out"
    assert runtime.describe()["processes"] == "2"
    assert [worker.under_way for worker in runtime._workers] == [0, 0]


def test_an_error_of_a_run_comes_back_with_the_batch_and_the_others_go_on(several: Encoder) -> None:
    runtime = runtime_of(several)
    with pytest.raises(RuntimeFailed, match="onnx runtime failed on a batch of 1 × 2"):
        runtime.run(TokenBatch.from_lists([[0, 10**6]]), DENSE)
    assert len(several.encode(TEXTS[:3])) == 3


def test_a_process_that_is_killed_is_named(several: Encoder) -> None:
    runtime = runtime_of(several)
    pid = runtime._workers[0]._process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RuntimeFailed, match="the process of device 0 has ended"):
        several.encode(TEXTS)


def test_what_opening_raises_is_raised_here(options: EncoderOptions, tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFound):
        load_runtime(replace(options, artifact=tmp_path / "none"), "onnx")


def test_a_pickle_starts_processes_of_its_own(several: Encoder) -> None:
    again = pickle.loads(pickle.dumps(several))
    np.testing.assert_allclose(again.encode(TEXTS[:2]).dense, several.encode(TEXTS[:2]).dense, atol=1e-6)
    assert runtime_of(again)._workers[0]._process.pid != runtime_of(several)._workers[0]._process.pid
    runtime_of(again).close()
