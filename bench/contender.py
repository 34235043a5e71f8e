"""One contender of the benchmark, in a process of its own: loads a model, then does what each line of JSON asks.

    {"do": "batch", "rows": 8, "tokens": 128}     one batch of random tokens, equal lengths, dense     -> seconds
    {"do": "vectors", "ids": [...], "file": ...}  dense vectors of these texts, one by one, as .npy    -> seconds
    {"do": "texts", "texts": [...]}               as its users call it; "all": ours with all outputs   -> seconds
    {"do": "idle", "seconds": 1}                  waits; what it spends of the processor meanwhile     -> seconds
    {"do": "peak"}                                resident memory, highest so far                      -> bytes
    {"do": "private"}                             pages that no other process shares, now              -> bytes

One at a time is at work, the others wait for their line, so that no thread of one spins beside another's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers import Lite, LlamaCpp, OpenVino
from vecferry.embeddings import DENSE, Float32, Outputs, TokenBatch

GEMM_ROWS = (16, 128, 512, 1024, 2048)


class Ours:
    """vecferry's artifact; low-memory if its name says so."""

    def __init__(self, artifact: Path, threads: int, *, low_memory: bool = False) -> None:
        from vecferry.encode.loading import EncoderOptions, load_runtime

        options = EncoderOptions(artifact=artifact, threads=threads, low_memory=low_memory)
        self.encoder = load_runtime(options, "onnx")

    def batch(self, tokens: TokenBatch) -> Float32:
        return self.encoder.runtime.run(tokens, DENSE).dense

    def texts(self, texts: Sequence[str], outputs: Outputs = DENSE) -> None:
        self.encoder.encode(texts, outputs=outputs)


class Transformers:
    """PyTorch: transformers with scaled-dot-product attention, fp32, and BGE-M3's dense head."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        from vecferry.encode.runtime.torch import TorchRuntime
        from vecferry.model.checkpoint import read_model

        self.runtime = TorchRuntime(read_model(checkpoint), threads=threads)

    def batch(self, tokens: TokenBatch) -> Float32:
        return self.runtime.run(tokens, DENSE).dense


class SentenceTransformers:
    """As its users call it: `encode` with what it has for defaults, at the model's full length."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self.model = SentenceTransformer(str(checkpoint), device="cpu")

    def texts(self, texts: Sequence[str]) -> None:
        self.model.encode(list(texts))


class FlagEmbedding:
    """As its README calls it, with 12 texts a batch and 8,192 tokens (the default cuts at 512); fp32, dense alone."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        import torch
        from FlagEmbedding import BGEM3FlagModel

        torch.set_num_threads(threads)
        self.model = BGEM3FlagModel(str(checkpoint), use_fp16=False, devices=["cpu"])

    def texts(self, texts: Sequence[str]) -> None:
        self.model.encode(list(texts), batch_size=12, max_length=8192)


class Gemm:
    """The processor's rate: four products [M, 1024] · [1024, 4096] · [4096, 1024] ..., with nothing between them."""

    def __init__(self, threads: int) -> None:
        import onnx
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper

        random = np.random.default_rng(0)
        shapes = [(1024, 4096), (4096, 1024)] * 2
        weights = [random.standard_normal(shape, np.float32) / 32 for shape in shapes]
        nodes = [helper.make_node("MatMul", [f"x{n}", f"w{n}"], [f"x{n + 1}"]) for n in range(4)]
        graph = helper.make_graph(
            nodes,
            "gemm",
            [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["m", 1024])],
            [helper.make_tensor_value_info("x4", TensorProto.FLOAT, ["m", 1024])],
            [numpy_helper.from_array(weight, f"w{n}") for n, weight in enumerate(weights)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {m: random.standard_normal((m, 1024), np.float32) for m in GEMM_ROWS}

    def batch(self, tokens: TokenBatch) -> None:
        self.session.run(None, {"x0": self.inputs[gemm_rows(len(tokens.ids))]})


def gemm_rows(tokens: int) -> int:
    """Rows of the bare products that stand beside a batch of so many tokens."""
    return min(GEMM_ROWS, key=lambda known: abs(known - tokens))


def open_contender(name: str, folder: Path, threads: int) -> Any:
    """folder: holds checkpoint, fp32 and int8, and what bench.peers has written."""
    made: dict[str, Callable[[], Any]] = {
        "fp32": lambda: Ours(folder / "fp32", threads),
        "int8": lambda: Ours(folder / "int8", threads),
        "fp32-low-memory": lambda: Ours(folder / "fp32", threads, low_memory=True),
        "int8-low-memory": lambda: Ours(folder / "int8", threads, low_memory=True),
        "transformers": lambda: Transformers(folder / "checkpoint", threads),
        "sentence-transformers": lambda: SentenceTransformers(folder / "checkpoint", threads),
        "FlagEmbedding": lambda: FlagEmbedding(folder / "checkpoint", threads),
        "openvino-fp32": lambda: OpenVino(folder / "openvino" / "fp32.xml", threads),
        "openvino-int8": lambda: OpenVino(folder / "openvino" / "int8.xml", threads),
        "gguf-f16": lambda: LlamaCpp(folder / "gguf" / "f16.gguf", threads),
        "gguf-q8_0": lambda: LlamaCpp(folder / "gguf" / "q8_0.gguf", threads),
        "lite-fp32": lambda: Lite(folder / "lite" / "fp32.onnx", threads),
        "lite-int8": lambda: Lite(folder / "lite" / "int8.onnx", threads),
        "gemm": lambda: Gemm(threads),
    }
    return made[name]()


def random_batch(rows: int, tokens: int) -> TokenBatch:
    random = np.random.default_rng(0)
    return TokenBatch.from_lists([[0, *random.integers(5, 7999, tokens - 2), 2] for _ in range(rows)])


def memory(file: str, field: str) -> int:
    """Bytes that a file of /proc/self says."""
    lines = Path("/proc/self", file).read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def answer(contender: Any, job: dict[str, Any]) -> float:
    match job["do"]:
        case "batch":
            batch = random_batch(job["rows"], job["tokens"])
            return seconds(lambda: contender.batch(batch))
        case "vectors":
            rows = [TokenBatch.from_lists([ids]) for ids in job["ids"]]
            return seconds(lambda: np.save(job["file"], np.concatenate([contender.batch(row) for row in rows])))
        case "texts":
            more = [Outputs.ALL] if job.get("all") and isinstance(contender, Ours) else []
            return seconds(lambda: contender.texts(job["texts"], *more))
        case "idle":
            before = time.process_time()
            time.sleep(job["seconds"])
            return time.process_time() - before
        case "peak":
            return memory("status", "VmHWM")
        case "private":
            return memory("smaps_rollup", "Private_Dirty")  # not the pages of mapped files
    raise ValueError(job)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    name, folder, threads = sys.argv[1:]
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    contender = open_contender(name, Path(folder), int(threads))
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(contender, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
