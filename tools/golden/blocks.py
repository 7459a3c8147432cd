#!/usr/bin/env python3
"""Writes tests/golden/blocks.safetensors: blocks of GGUF's types, and what the gguf package makes of them.

`widen.TYPE.number` is the type's number in files, `widen.TYPE.blocks` are random bytes with sane scales, `widen.TYPE.values` the float32 that they stand for.
`quantise.values` (rows, cols) has random rows and such as are hard for a quantiser, and `quantise.TYPE` are its bytes.
"""

import argparse
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

# Type and where in a block the f16 scales are.
SCALES = {"F16": [0], "BF16": [], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "Q2_K": [80, 82], "Q3_K": [108], "IQ4_NL": [0], "IQ4_XS": [0]}
QUANTISED = ["F16", "BF16", "Q8_0", "Q4_0"]
COLS = 64


def blocks(rng, kind):
    """Values of one tensor: 512, or 128 of the types with small blocks."""
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    count = {1: 64, 32: 4, 256: 2}[values]
    out = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scale = (rng.standard_normal(count) * 0.05).astype(np.float16)
        out[:, at:at + 2] = scale[:, None].view(np.uint8)
    if kind == "BF16":
        out = (rng.standard_normal(count).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return out.reshape(-1)


def rows(rng):
    out = rng.standard_normal((6, COLS)).astype(np.float32)
    out[1] *= 1e-6  # scales that are subnormal in f16
    out[2] = 0
    out[3, :32] = 0.25
    out[3, 40] = -9.0  # the largest magnitude twice, with both signs
    out[3, 50] = 9.0
    out[4] = np.arange(COLS) - 31.5  # ties
    out[5] *= 3000.0
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).resolve().parents[2] / "tests" / "golden" / "blocks.safetensors"
    parser.add_argument("--output", type=Path, default=default)
    output = parser.parse_args().output
    rng = np.random.default_rng(11)
    tensors = {}
    for kind in SCALES:
        packed = blocks(rng, kind)
        tensors[f"widen.{kind}.number"] = np.array([GGMLQuantizationType[kind]], dtype=np.int32)
        tensors[f"widen.{kind}.blocks"] = packed
        tensors[f"widen.{kind}.values"] = np.ascontiguousarray(dequantize(packed, GGMLQuantizationType[kind]))
    values = rows(rng)
    tensors["quantise.values"] = values
    for kind in QUANTISED:
        packed = quantize(values, GGMLQuantizationType[kind])
        tensors[f"quantise.{kind}"] = np.ascontiguousarray(packed).view(np.uint8).reshape(-1)
    save_file(tensors, output)


if __name__ == "__main__":
    main()
