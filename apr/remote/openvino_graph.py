"""A Llama checkpoint as a graph of OpenVINO; needs neither torch nor an exporter.

OpenVINO GenAI puts paged attention in place of what it finds in a graph, and finds it by the names
of inputs and by a fixed order of operations: a state, gathered by beam, grown by the new keys or
values, read by an attention. So neither is free to choose here (checked against 2026.4). The
attention that takes its place is causal by itself and looks at no mask.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo
from safetensors import SafetensorError, deserialize

from apr.errors import CheckpointError

MODEL = "openvino_model.xml"
"""What OpenVINO GenAI looks for in a folder."""
_ONLY = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}

Node = Any  # openvino has no types for its nodes
Array = np.ndarray[Any, np.dtype[Any]]


def write_graph(checkpoint: Path, folder: Path) -> None:
    """Write ``MODEL``, its weights in float32 and its config for a Hugging Face folder.

    Raises:
        CheckpointError: nothing there, another architecture, or weights that do not fit.
    """
    config = _read_config(checkpoint)
    try:
        graph = _Llama(config, _read_weights(checkpoint)).graph()
    except KeyError as e:
        raise CheckpointError(f"{checkpoint} lacks the weight or setting {e}: copy it whole") from e
    ov.save_model(graph, folder / MODEL, compress_to_fp16=False)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _read_config(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rope = config.get("rope_parameters") or {}
        other = {k: config[k] for k, only in _ONLY.items() if config.get(k, only) != only}
    except (OSError, ValueError, AttributeError) as e:
        raise CheckpointError(f"no checkpoint at {checkpoint} that can be read: {e}") from e
    if config.get("rope_scaling") or rope.get("rope_type", "default") != "default":
        other["rope_scaling"] = config.get("rope_scaling") or rope
    if other:
        raise CheckpointError(
            f"{checkpoint} has {other}, which is no plain Llama: export it with optimum-cli, and "
            "name the folder with the export"
        )
    return {**config, "rope_theta": rope.get("rope_theta", config.get("rope_theta", 10_000.0))}


def _read_weights(checkpoint: Path) -> dict[str, Array]:
    """All weights by their names, in float32."""
    weights: dict[str, Array] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        try:
            entries = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
            for name, entry in entries:
                weights[name] = _array(entry["dtype"], entry["data"]).reshape(entry["shape"])
        except (SafetensorError, KeyError, OSError) as e:
            raise CheckpointError(f"{path} cannot be read ({e}): copy the checkpoint again") from e
    return weights


def _array(dtype: str, data: bytes) -> Array:
    if dtype == "BF16":  # The upper half of a float32, and nothing that numpy knows.
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, _FLOATS[dtype]).astype(np.float32)


class _Llama:
    """Builds the graph, operation by operation. Axes: B sequences, T tokens, heads, width."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Array]) -> None:
        self.config = config
        self.weights = weights
        self.num_heads = config["num_attention_heads"]
        self.num_kv = config.get("num_key_value_heads") or self.num_heads
        self.head_dim = config.get("head_dim") or config["hidden_size"] // self.num_heads
        self.ids = _parameter("input_ids", 2, np.int64)
        self.mask = _parameter("attention_mask", 2, np.int64)
        self.positions = _parameter("position_ids", 2, np.int64)
        self.beams = _parameter("beam_idx", 1, np.int32)
        self.num_sequences = op.gather(op.shape_of(self.ids), _ints(0), _scalar(0))
        self.cos, self.sin = self._rotary()
        self.assigned: list[Node] = []

    def graph(self) -> Any:
        x = op.gather(self._weight("model.embed_tokens"), op.convert(self.ids, "i32"), _scalar(0))
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            x = op.add(x, self._attention(self._norm(x, f"{name}.input_layernorm"), layer))
            x = op.add(x, self._mlp(self._norm(x, f"{name}.post_attention_layernorm"), name))
        head = "lm_head" if "lm_head.weight" in self.weights else "model.embed_tokens"
        logits = self._linear(self._norm(x, "model.norm"), head)
        logits.output(0).set_names({"logits"})
        inputs = [self.ids, self.mask, self.positions, self.beams]
        return ov.Model([op.result(logits)], self.assigned, inputs, "llama")

    def _rotary(self) -> tuple[Node, Node]:
        """Cosines and sines (B, 1, T, width) of each position."""
        half = np.arange(0, self.head_dim, 2, dtype=np.float32) / self.head_dim
        per_position = 1 / self.config["rope_theta"] ** half
        positions = op.unsqueeze(op.convert(self.positions, "f32"), _ints(2))
        angles = op.multiply(positions, _floats(per_position.reshape(1, 1, -1)))
        angles = op.unsqueeze(op.concat([angles, angles], -1), _ints(1))
        return op.cos(angles), op.sin(angles)

    def _attention(self, x: Node, layer: int) -> Node:
        name = f"model.layers.{layer}.self_attn"
        q = self._rotate(self._heads(self._linear(x, f"{name}.q_proj"), self.num_heads))
        k = self._rotate(self._heads(self._linear(x, f"{name}.k_proj"), self.num_kv))
        v = self._heads(self._linear(x, f"{name}.v_proj"), self.num_kv)
        k, v = self._grown(k, f"past.{layer}.key"), self._grown(v, f"past.{layer}.value")
        mask = op.unsqueeze(op.convert(self.mask, "f32"), _ints(1, 2))
        out = op.scaled_dot_product_attention(q, self._spread(k), self._spread(v), mask)
        out = op.transpose(out, _ints(0, 2, 1, 3))
        out = op.reshape(out, _ints(0, 0, self.num_heads * self.head_dim), True)
        return self._linear(out, f"{name}.o_proj")

    def _mlp(self, x: Node, name: str) -> Node:
        gate = op.swish(self._linear(x, f"{name}.mlp.gate_proj"))
        up = self._linear(x, f"{name}.mlp.up_proj")
        return self._linear(op.multiply(gate, up), f"{name}.mlp.down_proj")

    def _heads(self, x: Node, count: int) -> Node:
        """(B, T, count * width) -> (B, count, T, width)."""
        x = op.reshape(x, _ints(0, 0, count, self.head_dim), True)
        return op.transpose(x, _ints(0, 2, 1, 3))

    def _rotate(self, x: Node) -> Node:
        half = self.head_dim // 2
        left = op.slice(x, _ints(0), _ints(half), _ints(1), _ints(3))
        right = op.slice(x, _ints(half), _ints(2 * half), _ints(1), _ints(3))
        turned = op.concat([op.multiply(right, _floats([-1.0])), left], -1)
        return op.add(op.multiply(x, self.cos), op.multiply(turned, self.sin))

    def _grown(self, new: Node, name: str) -> Node:
        """The state ``name`` with ``new`` keys or values at its end."""
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, self.num_kv, -1, self.head_dim])
        info.data_type = ov.Type.f32
        info.variable_id = name
        variable = Variable(info)
        shape = op.concat([self.num_sequences, _ints(self.num_kv, 0, self.head_dim)], 0)
        state = op.read_value(op.broadcast(_scalar(0, np.float32), shape), variable)
        grown = op.concat([op.gather(state, self.beams, _scalar(0)), new], 2)
        self.assigned.append(op.assign(grown, variable))
        return grown

    def _spread(self, x: Node) -> Node:
        """(B, KV, T, width) -> (B, H, T, width): a copy for each query head of a group."""
        if self.num_kv == self.num_heads:
            return x
        num_tokens = op.gather(op.shape_of(x), _ints(2), _scalar(0))
        group = _ints(self.num_kv, self.num_heads // self.num_kv)
        shape = op.concat([self.num_sequences, group, num_tokens, _ints(self.head_dim)], 0)
        spread = op.broadcast(op.unsqueeze(x, _ints(2)), shape, "bidirectional")
        return op.reshape(spread, _ints(0, self.num_heads, -1, self.head_dim), True)

    def _norm(self, x: Node, name: str) -> Node:
        square = op.reduce_mean(op.power(x, _floats([2.0])), _ints(-1), True)
        size = op.sqrt(op.add(square, _floats([self.config["rms_norm_eps"]])))
        return op.multiply(op.multiply(x, op.divide(_floats([1.0]), size)), self._weight(name))

    def _linear(self, x: Node, name: str) -> Node:
        return op.matmul(x, self._weight(name), False, True)

    def _weight(self, name: str) -> Node:
        return op.constant(self.weights[f"{name}.weight"])


def _parameter(name: str, num_axes: int, dtype: type) -> Node:
    node = op.parameter([-1] * num_axes, dtype)
    node.set_friendly_name(name)
    node.output(0).set_names({name})
    return node


def _ints(*values: int) -> Node:
    return op.constant(np.array(values, np.int64))


def _scalar(value: float, dtype: type = np.int64) -> Node:
    return op.constant(np.array(value, dtype))


def _floats(values: Any) -> Node:
    return op.constant(np.array(values, np.float32))
