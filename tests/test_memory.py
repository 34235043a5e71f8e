import subprocess
import sys
from pathlib import Path

import pytest

from bench.make_checkpoint import Shape, make_checkpoint
from vecferry.conversion.convert import convert_checkpoint
from vecferry.embeddings import DENSE, Outputs
from vecferry.encode.batching import MB
from vecferry.encode.memory import predicted_bytes
from vecferry.model.artifact import Artifact
from vecferry.model.sources import open_source
from vecferry.model.spec import EncoderSpec

BGE_M3 = EncoderSpec(
    family="xlm-roberta", hidden=1024, layers=24, attention_heads=16, feed_forward=4096, vocabulary=250_002,
    positions=8194, token_types=1, layer_norm_eps=1e-5, pad_id=1, tokenizer_class="XLMRobertaTokenizer",
    pooling="cls", normalize=True, max_tokens=8192, query_prefix="", passage_prefix="",
)  # fmt: skip

ONE_RUN = """
import sys
from pathlib import Path
import numpy as np
from vecferry.model.artifact import Artifact
from vecferry.embeddings import Outputs, TokenBatch
from vecferry.encode.runtime.onnx import OnnxRuntime

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024

runtime = OnnxRuntime(Artifact.open(Path(sys.argv[1])))
rows, tokens, padding, outputs = (int(value) for value in sys.argv[2:])
ids = np.random.default_rng(0).integers(5, 900, (rows, tokens)).tolist()
batch = TokenBatch.from_lists([row[: tokens - padding] if i else row for i, row in enumerate(ids)])
runtime.run(TokenBatch.from_lists([ids[0][:8]]), Outputs(outputs))
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
before = resident("VmRSS")
runtime.run(batch, Outputs(outputs))
print(resident("VmHWM") - before)
"""


def test_an_8192_token_text_of_bge_m3_is_within_the_default_budget() -> None:
    for outputs in (DENSE, Outputs.ALL):
        assert predicted_bytes(BGE_M3, 1, 8192, outputs=outputs, padded=False) < 2048 * MB


def test_padding_and_every_further_row_and_output_take_more() -> None:
    alone = predicted_bytes(BGE_M3, 1, 4096, outputs=DENSE, padded=False)
    assert predicted_bytes(BGE_M3, 2, 4096, outputs=DENSE, padded=False) == 2 * alone
    assert predicted_bytes(BGE_M3, 2, 4096, outputs=DENSE, padded=True) > 4 * alone
    assert predicted_bytes(BGE_M3, 1, 4096, outputs=Outputs.ALL, padded=False) > alone


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("memory")
    checkpoint = make_checkpoint(folder / "checkpoint", Shape(layers=2, vocabulary=4000))
    return convert_checkpoint(open_source(str(checkpoint)), folder / "artifact", verified=False).artifact


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("rows", "tokens", "padding", "outputs"),
    [
        (1, 2048, 0, DENSE), (1, 8192, 0, DENSE), (8, 512, 1, DENSE), (2, 2048, 1, DENSE),
        (32, 128, 1, DENSE), (64, 64, 0, DENSE), (16, 256, 1, Outputs.ALL), (1, 4096, 0, Outputs.ALL),
    ],
)  # fmt: skip
def test_the_prediction_is_near_what_a_run_takes(
    two_layers: Artifact, rows: int, tokens: int, padding: int, outputs: Outputs
) -> None:
    padded = padding > 0
    predicted = predicted_bytes(two_layers.manifest.encoder, rows, tokens, outputs=outputs, padded=padded)
    arguments = [str(Path(two_layers.path)), str(rows), str(tokens), str(padding), str(outputs.value)]
    done = subprocess.run([sys.executable, "-c", ONE_RUN, *arguments], capture_output=True, text=True, check=True)
    assert 0.75 <= predicted / int(done.stdout) <= 1.35
