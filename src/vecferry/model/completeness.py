"""What lies where a checkpoint was expected: other forms of a model, half of one, or its pointers in Git LFS."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vecferry.errors import CheckpointIncomplete
from vecferry.model.layout import TOKENIZER

TRAINING_STEP = re.compile(r"checkpoint-(\d+)")
FROM_PYTORCH = "Give the PyTorch checkpoint that it was made from: model.safetensors or pytorch_model.bin"
WITH_TRANSFORMERS_4 = (
    "Convert it with transformers 4 and that framework: pip install 'transformers<5' torch {package} && python -c "
    '"from transformers import AutoModel; '
    "AutoModel.from_pretrained('{folder}', {flag}=True).save_pretrained('{folder}')\""
)
OTHER_FORMS = {
    ".onnx": ("ONNX", FROM_PYTORCH),
    ".gguf": ("GGUF", FROM_PYTORCH),
    ".xml": ("OpenVINO", FROM_PYTORCH),
    ".h5": ("TensorFlow", WITH_TRANSFORMERS_4.replace("{package}", "tf-keras").replace("{flag}", "from_tf")),
    ".msgpack": ("Flax", WITH_TRANSFORMERS_4.replace("{package}", "flax").replace("{flag}", "from_flax")),
}
"""Of weights, by the end of a file's name: what it is, and what to do."""
TOKENIZER_FORMS = {"sentencepiece.bpe.model": "sentencepiece", "vocab.txt": ""}
"""Files from which transformers makes tokenizer.json, with the package that it needs for it."""


def without_weights(folder: Path, names: Iterable[str]) -> CheckpointIncomplete:
    """Return what is to be said of a checkpoint that has no weights. names: of the files in it, relative to it."""
    files = [PurePosixPath(name) for name in names]
    if not files:
        return CheckpointIncomplete(
            folder, "the folder is empty", "Fetch the checkpoint into it, or give another folder"
        )
    steps = {part for file in files for part in file.parts[:-1] if TRAINING_STEP.fullmatch(part)}
    if steps:
        last = max(steps, key=lambda step: int(step.partition("-")[2]))
        reason = f"the checkpoints of a training lie in it, such as {last}"
        return CheckpointIncomplete(folder, reason, f"Give the one that is meant, such as the last: {folder / last}")
    for end, (form, remedy) in OTHER_FORMS.items():
        if example := next((str(file) for file in files if file.suffix == end), None):
            reason = f"its weights are there as {form} alone ({example})"
            return CheckpointIncomplete(folder, reason, remedy.replace("{folder}", str(folder)))
    reason = "it has neither model.safetensors nor pytorch_model.bin, whole or in shards"
    return CheckpointIncomplete(folder, reason, "Fetch the checkpoint whole, or give the folder that has them")


def files_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder and in the folders in it, relative to it."""
    paths = [*folder.iterdir(), *folder.glob("*/*")]
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())


def without_tokenizer(folder: Path) -> CheckpointIncomplete:
    """Return what is to be said of a checkpoint that has no tokenizer.json."""
    form = next((name for name in TOKENIZER_FORMS if (folder / name).exists()), None)
    source, reason = (
        ("BASE", f"it has no {TOKENIZER}") if form is None else (folder, f"it has {form}, but no {TOKENIZER}")
    )
    package = TOKENIZER_FORMS.get(form or "", "")
    remedy = (
        f"Let transformers write it{' out of its base model, BASE' if form is None else ''}: pip install "
        f'{" ".join(filter(None, ["transformers", package]))} && python -c "from transformers import AutoTokenizer; '
        f"AutoTokenizer.from_pretrained('{source}').save_pretrained('{folder}')\""
    )
    return CheckpointIncomplete(folder, reason, remedy)
