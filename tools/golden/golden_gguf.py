#!/usr/bin/env python3
"""Writes a small random Gemma 3 as the GGUF file that llama.cpp's converter would make of it, and what PyTorch and
transformers compute with the same weights. README.md beside this file has the layout.

The file says neither which layers are global nor the rotary base of the others nor how queries are scaled: a reader must
know, as llama.cpp does. All weights are exact in the file's types, norms with the 1 that is added to them too.
"""

import argparse
import json
from pathlib import Path

import gguf
import torch
import torch.nn.functional as F
from tokenizers import AddedToken
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GemmaTokenizer

from golden_decoders import randomise
from make_golden import to_file

LENGTHS = [12, 3, 9]
TURNS = ["<start_of_turn>", "<end_of_turn>"]
USER_DEFINED = ["\n", "\n\n"]
MERGES = ["t h", "e r", "▁ th", "▁th e", "a n", "an d", "▁ and", "i n", "in g", "o u", "r e", "▁ a", "e n", "th er"]
TEXTS = ["the cat and the other", " an engine\nroaring\n\nin here", "naïve & 3", "",
         "<start_of_turn>user\nhi there<end_of_turn>\n<start_of_turn>model\n"]
TEMPLATE = ("{{ bos_token }}{% for message in messages %}<start_of_turn>"
            "{{ 'model' if message.role == 'assistant' else message.role }}\n"
            "{{ message.content }}<end_of_turn>\n{% endfor %}"
            "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}")


def vocabulary():
    """Tokens as Gemma orders them (special ones, the user's, bytes, pieces, characters), their scores and types."""
    kinds = gguf.TokenType
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *TURNS]
    found = [(token, -1000.0, kinds.CONTROL) for token in special]
    found += [(token, -1000.0, kinds.USER_DEFINED) for token in USER_DEFINED]
    found += [(f"<0x{byte:02X}>", 0.0, kinds.BYTE) for byte in range(256)]
    pieces = [merge.replace(" ", "") for merge in MERGES] + list("▁etaoinshrdlucmfwypvbgkjqxz")
    found += [(piece, -float(rank), kinds.NORMAL) for rank, piece in enumerate(pieces)]
    return found


def tokens_of(tokens):
    """Texts and the tokens that transformers' GemmaTokenizer makes of them."""
    vocab = {token: i for i, (token, _, _) in enumerate(tokens)}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in MERGES])
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in TURNS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in USER_DEFINED])
    assert len(tokenizer) == len(tokens)
    return [{"text": text, "tokens": [vocab["<bos>"], *tokenizer.encode(text, add_special_tokens=False)]}
            for text in TEXTS]


def model_of(vocab_size, generator):
    """Seven layers, so that the sixth is global and others follow; exact in F16, norms with their 1 in F32."""
    config = Gemma3TextConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=7, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, sliding_window=5, max_position_embeddings=64,
        rope_scaling={"rope_type": "linear", "factor": 8.0}, attn_implementation="eager")
    model = Gemma3ForCausalLM(config)
    randomise(model, generator)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_((p * 1024).round() / 1024 if "norm" in name else p.half())
    return model


def write(model, tokens, path):
    """The keys and their order are those of the converter's files of 4B and larger models."""
    config = model.config
    rope = config.rope_parameters["full_attention"]
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_type("model")
    writer.add_name("Gemma 3")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _, _ in tokens])
    writer.add_token_scores([score for _, score, _ in tokens])
    writer.add_token_types([int(kind) for _, _, kind in tokens])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(TEMPLATE)
    writer.add_add_space_prefix(False)
    writer.add_quantization_version(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    for name, p in model.named_parameters():
        values = p.detach() + 1 if "norm" in name else p.detach().half()
        writer.add_tensor(names.get_name(name, (".weight",)), values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def golden(model, generator):
    model = model.double().eval()
    offsets = [0]
    for length in LENGTHS:
        offsets.append(offsets[-1] + length)
    ids = torch.randint(3, model.config.vocab_size, (offsets[-1],), generator=generator)
    learn = torch.ones(offsets[-1], dtype=torch.int32)
    learn[torch.tensor(offsets[:-1])] = 0
    logits, losses = [], []
    for start, end in zip(offsets, offsets[1:]):
        text = ids[start:end]
        logits.append(model(input_ids=text[None], use_cache=False).logits[0])
        losses.append(F.cross_entropy(logits[-1][:-1], text[1:], reduction="none"))
    return {"input.ids": ids.int(), "input.offsets": torch.tensor(offsets, dtype=torch.int32), "input.learn": learn,
            "logits": torch.cat(logits), "losses": torch.cat(losses)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[2] / "tests" / "golden")
    folder = parser.parse_args().output / "gguf"
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(41)
    tokens = vocabulary()
    model = model_of(len(tokens), generator)
    write(model, tokens, folder / "gemma3.gguf")
    found = golden(model, generator)
    to_file(found, folder / "gemma3.safetensors")
    (folder / "gemma3.json").write_text(json.dumps(tokens_of(tokens), ensure_ascii=False, indent=1) + "\n")
    print(f"gemma3.gguf: {len(tokens)} tokens, {model.num_parameters()} parameters, loss {found['losses'].mean().item():.6f}")


if __name__ == "__main__":
    main()
