"""Checks the GGUF files that are written here with transformers and the gguf package.

    python tools/golden/gguf_files.py

Small random Llama, Mistral, Qwen2, Qwen3 and Gemma 3 are saved, written as GGUF by the example gguf_write, and read again:
transformers' weights must be the saved ones (F32, so rows, names and configuration are right), the gguf package's
blocks must be its own quantisation's, bit for bit (F16, Q8_0), and the adapter's tensors those of llama.cpp's converter.
"""

import subprocess
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import quants
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, MistralConfig,
    MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
)

ROOT = Path(__file__).resolve().parents[2]
SIZES = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=80, max_position_embeddings=256,
)
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
MODELS = {
    "llama": LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "llama3": LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True, rope_parameters=LLAMA3)),
    "mistral": MistralForCausalLM(MistralConfig(**SIZES, sliding_window=32)),
    "qwen2": Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=128)),  # transformers takes no other size from a GGUF
    "gemma3": Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=32, query_pre_attn_scalar=32)),
}
RANK = 4


def converters_rows(weight, heads):
    """The order of q's and k's rows in llama.cpp's files of the architecture llama."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def stored_like_llama_cpp(architecture, name, values):
    if architecture == "gemma3" and name.endswith("norm.weight"):
        return values + 1
    heads = {"attn_q": SIZES["num_attention_heads"], "attn_k": SIZES["num_key_value_heads"]}
    part = name.split(".")[2] if name.startswith("blk.") else ""
    return converters_rows(values, heads[part]) if architecture == "llama" and part in heads else values


def check(name, model, folder):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
        if parameter.ndim == 1:  # 1 added and subtracted again is the same value
            parameter.data = (parameter.data * 1024).round() / 1024
    model.save_pretrained(folder)
    state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight" or not model.config.tie_word_embeddings}
    lora = {}
    for module, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and "layers" in module:
            lora[f"{module}.lora_A.weight"] = torch.randn(RANK, layer.in_features)
            lora[f"{module}.lora_B.weight"] = torch.randn(layer.out_features, RANK)
    save_file(lora, folder / "lora.safetensors")
    command = ["cargo", "run", "--release", "--quiet", "-p", "lora-drop-transformer", "--example", "gguf_write", "--"]
    subprocess.run([*command, folder, folder / "lora.safetensors", folder], check=True, cwd=ROOT)

    architecture = "llama" if name in ("llama", "llama3", "mistral") else name
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], SIZES["num_hidden_layers"])
    names = {k: mapping.get_name(k, (".weight", ".bias")) for k in state}
    for kind, block in (("f32", gguf.GGMLQuantizationType.F32), ("f16", gguf.GGMLQuantizationType.F16),
                        ("q8_0", gguf.GGMLQuantizationType.Q8_0)):
        reader = gguf.GGUFReader(folder / f"{kind}.gguf")
        tensors = {t.name: t for t in reader.tensors}
        assert set(tensors) - {"rope_freqs.weight"} == set(names.values()), (set(tensors), set(names.values()))
        for hf, own in names.items():
            values = stored_like_llama_cpp(architecture, own, state[hf].numpy())
            expected_type = block if values.ndim == 2 else gguf.GGMLQuantizationType.F32
            assert tensors[own].tensor_type == expected_type, own
            expected = quants.quantize(values, expected_type)
            assert np.array_equal(np.asarray(tensors[own].data).view(np.uint8), expected.view(np.uint8)), (kind, own)

    if name != "mistral":  # transformers reads Mistral's files as Llama's, whose window it leaves out
        read = AutoModelForCausalLM.from_pretrained(str(folder), gguf_file="f32.gguf")
        assert read.config.model_type == model.config.model_type
        for hf, values in state.items():
            assert torch.equal(read.state_dict()[hf], values), hf
        for key in (*SIZES, "head_dim", "tie_word_embeddings"):
            assert getattr(read.config, key, None) == getattr(model.config, key, None), key
        assert np.float32(read.config.rms_norm_eps) == np.float32(model.config.rms_norm_eps)
    if name == "llama3":
        factors = {t.name: t for t in gguf.GGUFReader(folder / "f32.gguf").tensors}["rope_freqs.weight"].data
        plain = LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}))
        ratio = plain.model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq
        assert np.allclose(factors, ratio.numpy(), rtol=1e-5), (factors, ratio)

    reader = gguf.GGUFReader(folder / "adapter.gguf")
    value = lambda key: reader.fields[key].contents()
    assert value("general.type") == "adapter" and value("adapter.type") == "lora", reader.fields
    assert value("general.architecture") == architecture and value("adapter.lora.alpha") == 16.0
    tensors = {t.name: t for t in reader.tensors}
    assert len(tensors) == len(lora)
    for hf, values in lora.items():
        module, part = hf.rsplit(".lora_", 1)
        base = mapping.get_name(module + ".weight", (".weight",))
        seen = tensors[f"{base}.lora_{part[0].lower()}"]
        values = values.numpy() if part.startswith("A") else stored_like_llama_cpp(architecture, base, values.numpy())
        assert list(seen.shape) == list(values.shape[::-1]) and np.array_equal(seen.data, values), hf
    print(f"{name}: {len(state)} tensors in F32, F16 and Q8_0, {len(lora)} of the adapter: all equal", flush=True)


def main():
    torch.manual_seed(0)
    for name, model in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            check(name, model, Path(folder))


if __name__ == "__main__":
    main()
