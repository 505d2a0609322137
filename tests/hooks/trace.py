#!/usr/bin/env python3
"""Traces of a PyTorch model for `tsar verify`: hooks on modules, by a table from module names to trace names (SPEC 8). Needs torch alone.

    from trace import trace, LLAMAGEN_GPT
    trace(gpt, lambda: gpt(codes, cond_idx=label), "theirs.safetensors", LLAMAGEN_GPT, inputs={"input.class": label[0:1], "input.codes": codes.view(16, 16)})

A table is a list of (module, what, name): module as in named_modules, with {i} for a number; what is "out", "in", or a function of (input, output) that gives
the tensor; name is the trace's, with the same {i}; a fourth member, if there is one, is a function of the whole tensor, all calls together. A module that is called several times, token by token with a cache, gives the rows of one tensor. A module name
that ends in * stands for everything under it: the last call counts. A batch axis of 1 in front is dropped; of a batch the first is taken (guidance: the conditional one).
Tensors are written as they are: BF16, F16, F32, F64. model.double() alone does not make official LlamaGen code float64: RMSNorm (.float()), the rotary table,
apply_rotary_emb (x.float()) and the logits stay float32; its float64 files are exact to 7e-7, and verify says which tensors `would pass as F32`."""
import json
import re
import struct

import torch

TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.uint8: "U8"}

LLAMAGEN_GPT = [  # FoundationVision/LlamaGen, autoregressive/models/gpt.py; q and k are no module's: see rows() for your own code
    ("tok_dropout", "out", "gpt.embed"),
    ("layers.{i}", "out", "gpt.block.{i}"),
    ("layers.{i}.attention.wo", "in", "gpt.block.{i}.attn"),
    ("layers.{i}.ffn_norm", "in", "gpt.block.{i}.h"),
    ("layers.{i}.feed_forward.w2", "in", "gpt.block.{i}.ffn"),
    ("norm", "out", "gpt.norm"),
    ("output", "out", "gpt.logits"),
]
LLAMAGEN_VQ = [  # tokenizer/tokenizer_image/vq_model.py: an encoder's or decoder's level is a plain list, so that its last call counts
    ("encoder.conv_in", "out", "vq.encoder.conv_in"),
    ("encoder.conv_blocks.{i}.*", "out", "vq.encoder.block.{i}"),
    ("encoder.mid.{i}", "out", "vq.encoder.mid.{i}"),
    ("encoder.conv_out", "out", "vq.encoder.conv_out"),
    ("quant_conv", "out", "vq.latent"),
    ("quantize", lambda given, out: out[2][2].view(-1, *given[0].shape[-2:])[0], "vq.codes"),
    ("post_quant_conv", "in", "vq.quantized"),
    ("post_quant_conv", "out", "vq.decoder.post_quant"),
    ("decoder.conv_in", "out", "vq.decoder.conv_in"),
    ("decoder.mid.{i}", "out", "vq.decoder.mid.{i}"),
    ("decoder.conv_blocks.{i}.*", "out", "vq.decoder.block.{i}"),
    ("decoder.conv_out", "out", "vq.decoder.conv_out"),
]
HF_LLAMA = [  # transformers' Llama and its likes (Emu3, Janus's language_model, Chameleon): prefix the module names with your wrapper's
    ("model.layers.0", "in", "gpt.embed"),
    ("model.layers.{i}", "out", "gpt.block.{i}"),
    ("model.layers.{i}.self_attn.o_proj", "in", "gpt.block.{i}.attn"),
    ("model.layers.{i}.post_attention_layernorm", "in", "gpt.block.{i}.h"),
    ("model.layers.{i}.mlp.down_proj", "in", "gpt.block.{i}.ffn"),
]


def predictions(prefix, grid, eol=False, ids=slice(None)):
    """For HF_LLAMA: the rows that predict the codes of a grid (h, w) behind a prefix of so many ids, eol behind each row of codes or not; ids: those of codes."""
    at = [prefix - 1 + y * (grid[1] + bool(eol)) + x for y in range(grid[0]) for x in range(grid[1])]
    return [("model.norm", "out", "gpt.norm", lambda x: x[at][:, None]), ("lm_head", "out", "gpt.logits", lambda x: x[at][:, None, ids])]


def write_trace(path, tensors, metadata=None):
    """A safetensors file of named tensors, in their own types."""
    header, blobs, at = {"__metadata__": {k: str(v) for k, v in (metadata or {}).items()}}, [], 0
    for name, x in tensors.items():
        x = x.detach().cpu().contiguous()
        if x.dtype not in TYPES:
            x = x.to(torch.int64)
        flat = x.view(torch.int16) if x.dtype in (torch.bfloat16, torch.float16) else x  # numpy has no bfloat16; the bits are what counts
        blob = flat.numpy().tobytes()
        header[name] = {"dtype": TYPES[x.dtype], "shape": list(x.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def read_file(path):
    """All tensors of a safetensors file, and its metadata."""
    types = {name: dtype for dtype, name in TYPES.items()}
    with open(path, "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        data = f.read()
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, t in header.items():
        blob = bytearray(data[t["data_offsets"][0] : t["data_offsets"][1]])
        tensors[name] = torch.frombuffer(blob, dtype=types[t["dtype"]]).reshape(t["shape"]) if blob else torch.zeros(t["shape"])
    return tensors, metadata


def one(x, name):
    """The tensor of one image: no tuple, no batch axis."""
    while isinstance(x, (tuple, list)):
        x = x[0]
    rank = 3 if name.startswith("vq.") else 2
    return x[0] if x.dim() == rank + 1 else x


def rows(store, name, x):
    """Appends the rows of x, for tensors of your own code that are no module's: rows(store, "gpt.block.0.q", q[0])."""
    store.setdefault(name, []).append(x.detach().clone())


def trace(model, run, path, table, inputs=None, metadata=None, store=None):
    """Calls run() with hooks on the model's modules, and writes what they saw, and the inputs, to `path`."""
    store, handles, finish = {} if store is None else store, [], {}

    def hook(what, name, last):
        def look(module, given, output):
            x = what(given, output) if callable(what) else one(given if what == "in" else output, name)
            if last or name.startswith("vq."):
                store.pop(name, None)
            rows(store, name, x)

        return look

    for module_name, module in model.named_modules():
        for pattern, what, name, *whole in table:
            last = pattern.endswith("*")
            form = re.escape(pattern.rstrip("*")).replace(r"\{i\}", r"(\d+)") + (".*" if last else "")
            found = re.fullmatch(form, module_name)
            if found:
                full = name.replace("{i}", found.group(1)) if "{i}" in name else name
                finish[full] = whole[0] if whole else lambda x: x
                handles.append(module.register_forward_hook(hook(what, full, last)))
    try:
        with torch.no_grad():
            result = run()
    finally:
        for handle in handles:
            handle.remove()
    tensors = dict(inputs or {})
    for name, parts in store.items():
        tensors[name] = finish.get(name, lambda x: x)(parts[0] if len(parts) == 1 else torch.cat(parts))
    write_trace(path, tensors, metadata)
    return result
