"""Checkpoints as people have them, for test_import_cases.sh and test_import_families.sh: python3 checkpoints.py cases FOLDER
or python3 checkpoints.py families FOLDER TSAR. Plain Python: torch and numpy are stood in for by modules of their names, so that the real
pickle module writes what torch.save writes. Prints a line for each case: file, what must come of it, arguments."""
import collections, fractions, io, json, os, pathlib, pickle, random, struct, subprocess, sys, types, zipfile

# ---------------------------------------------------------------------------------------------- modules that are not here


def stand_in(module, name, base=object, **members):
    """A class or function MODULE.NAME that pickle can refer to."""
    parts = module.split(".")
    for n in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:n]), types.ModuleType(".".join(parts[:n])))
    value = type(name, (base,), dict(members, __module__=module))
    setattr(sys.modules[module], name, value)
    return value


def function(module, name):
    stand_in(module, name)
    made = lambda *a: None
    made.__module__, made.__qualname__, made.__name__ = module, name, name
    setattr(sys.modules[module], name, made)
    return made


STORAGES = {t: stand_in("torch", n) for t, n in (("F32", "FloatStorage"), ("F64", "DoubleStorage"), ("F16", "HalfStorage"), ("I64", "LongStorage"),
                                                 ("I8", "CharStorage"), ("U8", "ByteStorage"), ("C64", "ComplexFloatStorage"), ("Q8", "QInt8Storage"),
                                                 ("BF16", "BFloat16Storage"))}
SIZE = {"F32": 4, "F64": 8, "F16": 2, "BF16": 2, "I64": 8, "I8": 1, "U8": 1, "C64": 8, "Q8": 1}
REBUILD = function("torch._utils", "_rebuild_tensor_v2")
QUANTISED = function("torch._utils", "_rebuild_qtensor")


class Storage:
    def __init__(self, kind, data):
        self.kind, self.data = kind, data


class Tensor:
    """Elements of a storage; floats as their bytes."""

    def __init__(self, shape, data, kind="F32", rebuild=REBUILD, storage=None):
        self.shape, self.kind, self.rebuild = tuple(shape), kind, rebuild
        self.storage = storage or Storage(kind, data)

    def __reduce__(self):
        stride, n = [], 1
        for extent in reversed(self.shape):
            stride.insert(0, n)
            n *= extent
        return self.rebuild, (self.storage, 0, self.shape, tuple(stride), False, collections.OrderedDict())


class Pickler(pickle._Pickler):  # the one in Python: protocol 1 writes persistent ids of any kind, too
    def __init__(self, file, protocol, legacy, storages):
        super().__init__(file, protocol)
        self.legacy, self.storages = legacy, storages

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        if value not in self.storages:
            self.storages.append(value)
        n = len(value.data) // SIZE[value.kind]
        return ("storage", STORAGES[value.kind], str(self.storages.index(value)), "cpu", n) + ((None,) if self.legacy else ())


def dump(value, protocol, legacy, storages):
    file = io.BytesIO()
    Pickler(file, protocol, legacy, storages).dump(value)
    return file.getvalue()


def save(path, value, protocol=2, legacy=False, folder="archive", extra=(), behind=b""):
    storages = []
    if legacy:
        body = b"".join(dump(v, protocol, True, storages) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, value))
        body += dump([str(i) for i in range(len(storages))], protocol, True, storages)
        for s in storages:
            body += struct.pack("<q", len(s.data) // SIZE[s.kind]) + s.data
    else:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as z:
            z.writestr(folder + "/data.pkl", dump(value, protocol, False, storages))
            for i, s in enumerate(storages):
                z.writestr("%s/data/%d" % (folder, i), s.data)
            z.writestr(folder + "/version", "3\n")
            for name, text in extra:
                z.writestr(zipfile.ZipInfo(folder + "/" + name), text, zipfile.ZIP_DEFLATED)
        body = file.getvalue()
    open(path, "wb").write(body + behind)


def write_safetensors(path, tensors, meta=None, twice=None):
    """tensors: name to (dtype, shape, bytes)."""
    header, at = [], 0
    for name, (dtype, shape, data) in tensors.items():
        header.append('"%s":{"dtype":"%s","shape":%s,"data_offsets":[%d,%d]}' % (name, dtype, json.dumps(list(shape)), at, at + len(data)))
        if name == twice:
            header.append(header[-1])
        at += len(data)
    text = ("{" + ",".join(['"__metadata__":' + json.dumps(meta or {"format": "pt"})] + header) + "}").encode()
    open(path, "wb").write(struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values()))


def read_safetensors(path):
    data = open(path, "rb").read()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + n])
    return header.pop("__metadata__", {}), {
        k: (v["dtype"], v["shape"], data[8 + n + v["data_offsets"][0] : 8 + n + v["data_offsets"][1]]) for k, v in header.items()
    }


# ----------------------------------------------------------------------------------------------------------- the cases

random.seed(7)
TINY = {"tok_embeddings.weight": [8, 16], "cls_embedding.embedding_table.weight": [3, 16], "norm.weight": [16], "output.weight": [8, 16]}
for name, shape in (("attention_norm", [16]), ("attention.wqkv", [48, 16]), ("attention.wo", [16, 16]), ("ffn_norm", [16]), ("feed_forward.w1", [8, 16]),
                    ("feed_forward.w3", [8, 16]), ("feed_forward.w2", [16, 8])):
    TINY["layers.0.%s.weight" % name] = shape
VALUES = {name: [random.uniform(-1, 1) for _ in range(shape[0] * (shape[1] if len(shape) > 1 else 1))] for name, shape in TINY.items()}


def tiny(kind="F32", rename=lambda n: n, only=lambda n: True):
    code = {"F32": "f", "F64": "d", "F16": "e"}[kind]
    return collections.OrderedDict((rename(n), Tensor(TINY[n], struct.pack("<%d%s" % (len(v), code), *v), kind)) for n, v in VALUES.items() if only(n))


def zeros(shape, kind, rebuild=REBUILD):
    n = 1
    for extent in shape:
        n *= extent
    return Tensor(shape, bytes(n * SIZE[kind]), kind, rebuild)


def cases(folder):
    def case(name, expect, arguments="", **how):
        value = how.pop("value")
        save(os.path.join(folder, name), value, **how)
        print(name, expect, arguments, sep="\t")

    def text(name, content, expect, arguments=""):
        open(os.path.join(folder, name), "wb").write(content)
        print(name, expect, arguments, sep="\t")

    case("good.pt", "same", value={"model": tiny()})
    for protocol in (1, 2, 3, 4, 5):
        case("zip%d.pt" % protocol, "same", value={"model": tiny(), "big": 2**40, "small": -3, "lr": 0.5, "yes": True}, protocol=protocol)
        case("legacy%d.pt" % protocol, "same", value={"model": tiny(), "big": -(2**40), "yes": True, "no": None}, protocol=protocol, legacy=True)
    # a tensor beside the state dict
    case("loss.pt", "same", value={"model": tiny(), "best": zeros([], "F32")})
    case("generator.pt", "same", value={"rng_state": zeros([5056], "U8"), "model": tiny()})
    case("optimizer.pt", "same", value={"optimizer": {"state": {0: {"exp_avg": zeros([16], "F32")}}, "param_groups": [{"lr": 1}]}, "model": tiny()})
    # values of other classes
    counter, array, scalar = collections.Counter([3, 3]), function("numpy.core.multiarray", "_reconstruct"), function("numpy.core.multiarray", "scalar")
    call = lambda f, *a: type("Call", (), {"__reduce__": lambda self: (f, a)})()
    node = stand_in("omegaconf.dictconfig", "DictConfig")()
    node.__dict__["_content"] = {"lr": 1}
    case("counter.pt", "same", value={"model": tiny(), "milestones": counter}, protocol=4)
    case("numpy.pt", "same", value={"model": tiny(), "a": call(array, (0,), b"b"), "b": call(scalar, "f8", b"12345678")})
    case("path.pt", "same", value={"args": {"out": pathlib.PurePosixPath("a/b")}, "model": tiny()})
    case("complex.pt", "same", value={"model": tiny(), "z": 1 + 2j})
    case("omegaconf.pt", "same", value={"config": node, "model": tiny(), "callbacks": {"a": stand_in("lightning.callbacks", "Saver")()}})
    case("system.pt", "same", value={"model": tiny(), "x": call(function("os_stand_in", "system"), "touch was_run")})
    case("set.pt", "same", value={"model": tiny(), "x": {1, 2}, "y": frozenset([3]), "z": bytearray(b"abc")}, protocol=5)
    case("defaultdict.pt", "same", value={"weights": collections.defaultdict(list, tiny())})
    case("inert_weight.pt", "3 tensor gpt.norm.weight is no tensor there but torch._utils._rebuild_qtensor",
         value=dict(tiny(only=lambda n: n != "norm.weight"), **{"norm.weight": Tensor([16], bytes(16), "Q8", QUANTISED)}))
    # where the weights lie
    for key in ("module", "state_dict", "ema", "model_state_dict", "net", "params_ema", "generator"):
        case("under_%s.pt" % key, "same", value={"epoch": 3, key: tiny()})
    case("nested.pt", "same", value={"model": {"state_dict": tiny()}})
    case("top.pt", "same", value=tiny())
    other = collections.OrderedDict((n, zeros(s, "F32")) for n, s in TINY.items())
    case("rivals.pt", "same", value={"ema": other, "model": tiny()})
    case("from_ema.pt", "same", "from=ema", value={"ema": tiny(), "model": other})
    case("from_path.pt", "same", "from=model.state_dict", value={"model": {"state_dict": tiny()}, "ema": other})
    case("from_wrong.pt", "2 from=emma: the command line names", "from=emma", value={"ema": tiny(), "model": other})
    case("nothing.pt", "3 the keys on top are epoch, lr, note", value={"epoch": 1, "lr": 2, "note": "x"})
    case("unknown.pt", "3 they are called a.weight, b.weight, c.weight, d.weight, e.weight ...",
         value={"model": {k + ".weight": zeros([2], "F32") for k in "abcdefg"}})
    case("all_quantised.pt", "3 the keys on top are tok_embeddings.weight (an object: torch._utils._rebuild_qtensor)",
         value={n: zeros(s, "Q8", rebuild=QUANTISED) for n, s in TINY.items()})
    sparse = function("torch._utils", "_rebuild_sparse_tensor")
    case("sparse.pt", "3 tensor gpt.tok_embeddings.weight is no tensor there but torch._utils._rebuild_sparse_tensor",
         value={n: zeros(s, "F32", rebuild=sparse) if len(s) == 2 else zeros(s, "F32") for n, s in TINY.items()})
    module = stand_in("project.models", "GPT")()
    module.__dict__.update(training=False)
    case("module.pt", "3 its top is an object of class project.models.GPT", value=module)
    case("module_in_dict.pt", "3 the keys on top are model (an object: project.models.GPT), epoch", value={"model": module, "epoch": 1})
    case("one_number.pt", "3 its top is no dictionary", value=5)
    # archives
    case("colon.pt", "same", value={"model": tiny()}, folder="run_12:30:05")
    case("padded.pt", "same", value={"model": tiny()}, behind=b"\n" * 513)
    case("script.pt", "3 is a TorchScript archive", value=stand_in("__torch__", "M")(), extra=[("constants.pkl", "x" * 99), ("code/__torch__.py", "y" * 999)])
    # names
    for prefix in ("model.", "module.", "_orig_mod.", "module._orig_mod.", "_forward_module.model.", "model._fsdp_wrapped_module.", "net.module.",
                   "_orig_mod._forward_module.module.model.", "gen_vision_model.", "transformer."):
        case("prefix_%s.pt" % prefix.strip("._").replace(".", "-"), "same", value=tiny(rename=lambda n: prefix + n))
    for inner in ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module._checkpoint_wrapped_module.", "_orig_mod."):
        case("inner_%s.pt" % inner.strip("._").replace(".", "-"), "same", value=tiny(rename=lambda n: n.replace("layers.0.", "layers.0." + inner)))
    deep = "layers.0." + "x" * 130
    case("long_names.pt", "3 belongs to no part of this model", value=dict(tiny(), **{deep + "a": zeros([1], "F32"), deep + "b": zeros([1], "F32")}))
    case("long_names_dropped.pt", "same", "drop=layers.0.xxx", value=dict(tiny(), **{deep + "a": zeros([1], "F32"), deep + "b": zeros([1], "F32")}))
    case("drop.pt", "same", "drop=head. drop=teacher.", value=dict(tiny(), **{"head.w": zeros([1], "F32"), "teacher.w": zeros([1], "F32")}))
    case("drop_nothing.pt", "2 drop=head.: the command line names", "drop=head.", value=tiny())
    case("loss_weights.pt", "same", value=dict(tiny(), **{"loss.discriminator.main.0.weight": zeros([4], "F32")}))
    # what no weight can be
    case("complex_freqs.pt", "same", value=dict(tiny(), freqs_cis=zeros([4, 2], "C64")))
    case("complex_freqs_legacy.pt", "same", value=dict(tiny(), freqs_cis=zeros([4, 2], "C64"), scales=zeros([3], "Q8")), legacy=True)
    case("tracked.pt", "same", value=dict(tiny(), **{"bn.num_batches_tracked": zeros([], "I64")}))
    case("int8.pt", "3 tensor gpt.tok_embeddings.weight has dtype I8", value={n: zeros(s, "I8") for n, s in TINY.items()})
    # a class table without a row for no class
    case("null.pt", "0 the last of the 3 rows of classes", value=tiny())
    case("no_null.pt", "0", "num_classes=3", value=tiny())
    # wrong values of the command line
    for wrong in ("n_head=x", "grid_h=0", "norm_eps=-1", "n_kv_head=3", "rope=3d", "arch=vqgan", "dim=32"):
        case("wrong_%s.pt" % wrong.replace("=", "_"), "2 " + wrong, wrong, value=tiny())
    case("wrong_n_head_3.pt", "2 the command line: n_head=3 does not fit", "n_head=3", value=tiny())
    # other people's files
    plain = {n: ("F32", TINY[n], struct.pack("<%df" % len(v), *v)) for n, v in VALUES.items()}
    for name, tensors, twice, expect in (("plain", plain, None, "same"), ("twice", plain, "norm.weight", "3 twice"),
                                         ("c64", dict(plain, freqs_cis=("C64", [4, 2], bytes(64))), None, "same"),
                                         ("f8", dict(plain, **{"norm.weight": ("F8_E4M3", [16], bytes(16))}), None, "3 tensor gpt.norm.weight has dtype F8_E4M3")):
        write_safetensors(os.path.join(folder, name + ".safetensors"), tensors, twice=twice)
        print(name + ".safetensors", expect, "", sep="\t")
    text("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345678\n", "3 is a Git LFS pointer")
    text("page.pt", b"\n <!DOCTYPE html><html><head><title>Sign in</title></head></html>", "3 is an HTML page")
    text("empty.pt", b"", "3 is empty")
    text("message.bin", b"Entry not found", "3 is a text, \"Entry not found\"")
    text("message.pt", b"{\"error\": \"Repository not found\"}", "3 is a text, \"{")
    for protocol in 2, 3, 4, 5:
        text("plain%d.pkl" % protocol, pickle.dumps({"a.weight": [1.5, 2.5]}, protocol), "3 is a plain pickle")
    text("packed.pt", b"\x1f\x8b\x08\x00" + bytes(60), "3 is compressed with gzip")
    # rounding from F64: values just beside the middle of two neighbours, where rounding to float first would end on the middle
    def near(x):
        bits = struct.unpack("<I", struct.pack("<f", x))[0] & 0xFFFF0000 if abs(x) < 1e30 else 0
        pairs = [(abs(fractions.Fraction(struct.unpack("<f", struct.pack("<I", b))[0]) - fractions.Fraction(x)), b >> 16 & 1, b >> 16)
                 for b in (bits - 0x10000 if bits & 0x7FFFFFFF else bits, bits, bits + 0x10000)]
        return min(pairs)[2]

    wide, narrow = collections.OrderedDict(), {}
    for n, shape in TINY.items():
        values = [(1 + k / 128 + 1 / 256 + e * 2.0**-40) * s for k in range(8) for e in (-1, 0, 1) for s in (1, -1, 2.0**-30)]
        values = (values * 20)[: len(VALUES[n])]
        wide[n] = Tensor(shape, struct.pack("<%dd" % len(values), *values), "F64")
        narrow[n] = ("BF16", shape, struct.pack("<%dH" % len(values), *map(near, values)))
    save(os.path.join(folder, "wide.pt"), wide)
    write_safetensors(os.path.join(folder, "narrow.safetensors"), narrow)
    # shards
    names = sorted(TINY)
    os.mkdir(os.path.join(folder, "bin"))
    for k in (0, 1):
        save(os.path.join(folder, "bin", "pytorch_model-%d.bin" % k), tiny(only=lambda n: names.index(n) % 2 == k))
    index = {"metadata": {"total_size": 1}, "weight_map": {n: "pytorch_model-%d.bin" % (names.index(n) % 2) for n in names}}
    json.dump(index, open(os.path.join(folder, "bin", "pytorch_model.bin.index.json"), "w"))
    print("bin", "same", "", sep="\t")
    print("bin/pytorch_model.bin.index.json", "same", "", sep="\t")


# -------------------------------------------------------------------------------------------------------- the families


def numbers_of(tensor):
    dtype, shape, data = tensor
    rows = shape[0]
    width = len(data) // rows
    return [data[i * width : (i + 1) * width] for i in range(rows)]


def halves(rows, hd):
    """Hugging Face's order of rows: within each head the even ones, then the odd ones."""
    return [rows[h + j] for h in range(0, len(rows), hd) for j in list(range(0, hd, 2)) + list(range(1, hd, 2))]


def tensor_of(rows, shape, like=("F32",)):
    return (like[0], shape, b"".join(rows))


def hugging_face(meta, weights, names, per_head=False):
    """A Llama under Hugging Face's names."""
    H, K, d = int(meta["n_head"]), int(meta["n_kv_head"]), int(meta["dim"])
    hd, g, out = d // H, int(meta.get("qk_norm", 0)), collections.OrderedDict()
    for name, tensor in weights.items():
        if not name.startswith("gpt."):
            continue
        short = name[4:]
        if short.endswith("attention.wqkv.weight"):
            rows, base = numbers_of(tensor), "model." + short.replace("attention.wqkv.weight", "self_attn.")
            for part, first, n, turn in (("q", 0, H, 1), ("k", H, K, 1), ("v", H + K, K, 0)):
                mine = rows[first * hd : (first + n) * hd]
                out[base + part + "_proj.weight"] = tensor_of(halves(mine, hd) if turn else mine, [n * hd, d], tensor)
        elif "_norm." in short and ".attention." in short:
            items = [tensor[2][i : i + 4] for i in range(0, len(tensor[2]), 4)]
            rows = [halves(items[r * hd : (r + 1) * hd], hd) for r in range(g)]
            n = (H if ".q_norm." in short else K) if per_head else g
            out["model." + short.replace("attention.", "self_attn.")] = tensor_of([b"".join(rows[h * g // n]) for h in range(n)], [n, hd])
        else:
            for a, b in names:
                if short.endswith(a) or (a.endswith(".") and a in short):
                    out[short.replace(a, b) if b.startswith(("model.", "lm_head", "gen_")) else "model." + short.replace(a, b)] = tensor
                    break
            else:
                raise SystemExit("no name for " + name)
    return out


LLAMA = [("tok_embeddings.weight", "model.embed_tokens.weight"), ("attention_norm.weight", "input_layernorm.weight"),
         ("ffn_norm.weight", "post_attention_layernorm.weight"), ("attention.wo.weight", "self_attn.o_proj.weight"),
         ("feed_forward.w1.weight", "mlp.gate_proj.weight"), ("feed_forward.w3.weight", "mlp.up_proj.weight"),
         ("feed_forward.w2.weight", "mlp.down_proj.weight"), ("norm.weight", "model.norm.weight"), ("output.weight", "lm_head.weight")]
GEN = [("image_embed.tok_embeddings.weight", "gen_embed.weight"), ("image_embed.fc1.", "gen_aligner.layers.0."), ("image_embed.fc2.", "gen_aligner.layers.2."),
       ("image_head.fc1.", "gen_head.output_mlp_projector."), ("image_head.fc2.", "gen_head.vision_head.")]


def taming(weights, levels):
    """A VQGAN under taming-transformers' names, with Emu3's nested modules where it has them."""
    import re
    out, temporal = collections.OrderedDict(), any(".time_conv." in n for n in weights)
    for name, tensor in weights.items():
        if not name.startswith("vq."):
            continue
        short = name[3:]
        short = re.sub(r"^encoder\.conv_blocks\.(\d+)\.res\.", r"encoder.down.\1.block.", short)
        short = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", short)
        short = re.sub(r"^decoder\.conv_blocks\.(\d+)\.", lambda m: "decoder.up.%d." % (levels - 1 - int(m.group(1))), short)
        short = re.sub(r"^(decoder\.up\.\d+)\.res\.", r"\1.block.", short)
        for a, b in (("mid.0.", "mid.block_1."), ("mid.1.", "mid.attn_1."), ("mid.2.", "mid.block_2.")):
            short = short.replace(a, b)
        if temporal:
            short = re.sub(r"(time_conv\.\d+)\.", r"\1.conv.conv.", short)
            short = re.sub(r"(time_res_stack\.\d+\.conv[12])\.", r"\1.conv.", short)
            short = re.sub(r"^(post_)?quant_conv\.", lambda m: m.group(0) + "conv.", short)
            if short.startswith("decoder.") and "time_" not in short:
                short = re.sub(r"(norm1|norm2|norm|norm_out)\.(weight|bias)$", r"\1.norm_layer.\2", short)
        out[short] = tensor
    return out


def repeat_rows(path, n, kept):
    """Norms of keys with n rows of which `kept` differ: row j becomes row j * kept // n * (n // kept), in the file."""
    weights = read_safetensors(path)[1]
    data = open(path, "rb").read()
    for name, (dtype, shape, values) in weights.items():
        if ".k_norm." in name:
            rows = [values[i : i + len(values) // n] for i in range(0, len(values), len(values) // n)]
            data = data.replace(values, b"".join(rows[j * kept // n * (n // kept)] for j in range(n)))
    open(path, "wb").write(data)
    return read_safetensors(path)[1]


def t5(weights, heads, width):
    out = collections.OrderedDict()
    for name, tensor in weights.items():
        if not name.startswith("t5."):
            continue
        parts = name.split(".")
        block = "encoder.block.%s." % parts[2] if parts[1] == "layers" else ""
        if name.endswith("wqkv.weight"):
            rows, n = numbers_of(tensor), heads * width
            for k, part in enumerate("qkv"):
                out[block + "layer.0.SelfAttention.%s.weight" % part] = tensor_of(rows[k * n : (k + 1) * n], [n, tensor[1][1]])
            continue
        for a, b in (("t5.tok_embeddings.weight", "shared.weight"), ("t5.norm.weight", "encoder.final_layer_norm.weight"),
                     ("t5.position_bias.weight", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
                     ("attention.wo.weight", "layer.0.SelfAttention.o.weight"), ("attention_norm.weight", "layer.0.layer_norm.weight"),
                     ("ffn_norm.weight", "layer.1.layer_norm.weight"), ("w1.weight", "layer.1.DenseReluDense.wi_0.weight"),
                     ("w3.weight", "layer.1.DenseReluDense.wi_1.weight"), ("w2.weight", "layer.1.DenseReluDense.wo.weight")):
            if name.endswith(a):
                out[block + b] = tensor
                break
    return out


def janus_models(janus, vq, synth, publish, llama_config, told, folder):
    """Janus-1.3B is one safetensors file with a whole language_config; Pro-1B one pickle and Pro-7B two with an index, in bfloat16, whose language_config
    leaves out what LlamaConfig has as its defaults: with 32 heads all of it but the layers and the vocabulary (QUIRKS-janus 1 and 9)."""
    both = dict(vq, **janus)
    both["vq_l2_norm"] = "1"
    pro = dict(both, dim="64", n_head="32", n_kv_head="32", text_template="janus-pro")

    def published(name, keys, dtype):
        weights = synth(name, keys, dtype)
        tensors = hugging_face(keys, weights, GEN + LLAMA)
        tensors = collections.OrderedDict((n if n.startswith("gen_") else "language_model." + n, t) for n, t in tensors.items())
        tensors.update((n.replace("vq.", "gen_vision_model.", 1), t) for n, t in weights.items() if n.startswith("vq."))
        for n in ("language_model.lm_head.weight", "vision_model.vision_tower.norm.weight", "vision_model.vision_tower.blocks.0.attn.qkv.bias",
                  "aligner.layers.0.weight"):
            tensors[n] = ("F32", [4], bytes(16))
        return tensors

    def config(keys, language):
        mlp = lambda width: {"cls": "MlpProjector", "params": {"depth": 2, "input_dim": width, "n_embed": int(keys["dim"]), "projector_type": "mlp_gelu"}}
        head = {"image_token_embed": int(keys["image_head"]), "image_token_size": int(keys["codebook_size"]), "n_embed": int(keys["dim"])}
        return {"aligner_config": dict(mlp(1024), model_type="aligner"), "gen_aligner_config": dict(mlp(8), model_type="gen_aligner"),
                "gen_head_config": {"cls": "vision_head", "model_type": "gen_head", "params": head}, "architectures": ["MultiModalityCausalLM"],
                "gen_vision_config": {"cls": "VQ-16", "model_type": "gen_vision", "params": {"image_token_size": 16384, "n_embed": 8}},
                "language_config": language, "model_type": "multi_modality", "torch_dtype": "bfloat16", "transformers_version": "4.33.1",
                "vision_config": {"cls": "CLIPVisionTower", "params": {"image_size": 384, "select_layer": -1}}}

    ids = told(janus, "grid_h", "grid_w", "bos", "pad", "boi")
    publish("janus", published("janus", both, "f32"), config(both, llama_config(janus, "llama")))
    print("janus", ids, sep="\t")
    sizes = {"hidden_size": 64, "intermediate_size": 24, "num_attention_heads": 32, "num_key_value_heads": 32}
    language = {"max_position_embeddings": 16384, "model_type": "llama", "num_hidden_layers": 2, "torch_dtype": "bfloat16", "vocab_size": 40}
    for name, parts, more in (("janus_pro_1b", 1, sizes), ("janus_pro_7b", 2, {})):
        tensors = published(name, pro, "bf16")
        names, place = list(tensors), os.path.join(folder, name)
        files = ["pytorch_model.bin"] if parts == 1 else ["pytorch_model-%05d-of-%05d.bin" % (k + 1, parts) for k in range(parts)]
        os.mkdir(place)
        json.dump(config(pro, dict(language, **more)), open(os.path.join(place, "config.json"), "w"))
        for k, file in enumerate(files):
            save(os.path.join(place, file), collections.OrderedDict((n, Tensor(tensors[n][1], tensors[n][2], tensors[n][0])) for n in names[k::parts]))
        index = {"metadata": {"total_size": 1}, "weight_map": {n: files[i % parts] for i, n in enumerate(names)}}
        if parts > 1:
            json.dump(index, open(os.path.join(place, "pytorch_model.bin.index.json"), "w"))
        print(name, ids + " text_template=janus-pro", sep="\t")


def families(folder, tsar):
    """For each family a synthetic model NAME.model and the same weights in NAME, as they are published."""
    idle = {"rope": "1d", "dim": "32", "n_layer": "2", "n_head": "4", "n_kv_head": "4", "ffn_hidden": "24", "norm_eps": "1e-05", "rope_base": "10000"}
    lumina = dict(idle, arch="lumina-mgpt", vocab_size="64", image_base="4", codebook_size="24", qk_norm="1", norm_order="pre", eol="40", bos="0", sep="41",
                  boi="42", eoi="43", size_base="44", size_unit="2", grid_h="4", grid_w="4")
    grouped = dict(lumina, n_head="8", n_kv_head="4", qk_norm="2", norm_order="post", norm_eps="1e-06", rope_base="5000")
    alone = dict(grouped, n_kv_head="8", qk_norm="8")
    repeated = dict(grouped, n_kv_head="2", qk_norm="8")
    emu3 = dict(idle, arch="emu3", n_kv_head="2", rope_base="1000000", vocab_size="64", image_base="40", codebook_size="24", grid_h="3", grid_w="4", pad="30",
                eol="31", eof="32", bos="33", eos="34", img="35", boi="36", eoi="37")
    janus = dict(idle, arch="janus", norm_eps="1e-06", vocab_size="40", codebook_size="24", image_embed="8", image_head="16", grid_h="4", grid_w="4", bos="0",
                 pad="1", boi="2")
    vq = {"vq_ch": "4", "vq_ch_mult": "1,2,2", "vq_res_blocks": "1", "vq_z_channels": "6", "vq_embed_dim": "6", "vq_l2_norm": "0", "vq_groups": "32",
          "vq_pixels": "down", "codebook_size": "24", "grid_h": "4", "grid_w": "4"}
    vq["vq_ch"] = "32"
    text = {"t5_vocab": "1700", "t5_dim": "16", "t5_n_layer": "2", "t5_n_head": "3", "t5_head_dim": "6", "t5_ffn_hidden": "20", "t5_buckets": "8",
            "t5_max_distance": "20", "t5_norm_eps": "1e-06"}

    def synth(name, keys, dtype="f32"):
        path = os.path.join(folder, name + ".model")
        subprocess.run([tsar, "synth", "-o", path, "--quiet", "--dtype", dtype, "seed=5"] + ["%s=%s" % k for k in keys.items()], check=True)
        return read_safetensors(path)[1]

    def told(keys, *names):
        return " ".join("%s=%s" % (n, keys[n]) for n in names)

    def publish(name, tensors, config=None, shards=1):
        place = os.path.join(folder, name)
        os.mkdir(place)
        if config:
            json.dump(config, open(os.path.join(place, "config.json"), "w"))
        names = list(tensors)
        if shards == 1:
            write_safetensors(os.path.join(place, "model.safetensors"), tensors)
            return
        for k in range(shards):
            write_safetensors(os.path.join(place, "model-%d.safetensors" % k), {n: tensors[n] for n in names[k::shards]})
        index = {"weight_map": {n: "model-%d.safetensors" % (names.index(n) % shards) for n in names}}
        json.dump(index, open(os.path.join(place, "model.safetensors.index.json"), "w"))

    def llama_config(keys, model_type, **more):
        names = {"hidden_size": "dim", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "num_key_value_heads": "n_kv_head",
                 "intermediate_size": "ffn_hidden", "vocab_size": "vocab_size"}
        return dict({a: int(keys[b]) for a, b in names.items()}, rms_norm_eps=float(keys["norm_eps"]), rope_theta=float(keys["rope_base"]), rope_scaling=None,
                    hidden_act="silu", model_type=model_type, **more)

    ids = ("codebook_size", "sep", "boi", "eoi", "eol", "size_base", "grid_h", "grid_w")
    for name, keys, per_head, shards in (("lumina", lumina, False, 2), ("lumina_grouped", grouped, False, 1), ("lumina_per_head", grouped, True, 1),
                                         ("lumina_each", alone, True, 1), ("lumina_repeated", repeated, True, 1)):
        weights = synth(name, keys)
        if name == "lumina_repeated":
            weights = repeat_rows(os.path.join(folder, name + ".model"), 8, 2)
        config = llama_config(keys, "chameleon", swin_norm=keys["norm_order"] == "post", model_parallel_size=int(keys["qk_norm"]), attention_bias=False)
        publish(name, hugging_face(keys, weights, LLAMA, per_head), config, shards)
        print(name, told(keys, *ids), sep="\t")
    meta = collections.OrderedDict((n[4:].replace("q_norm", "q_normalization").replace("k_norm", "k_normalization"), t)
                                   for n, t in synth("meta", lumina).items())
    for n in [n for n in meta if n.endswith("wqkv.weight")]:
        rows, d = numbers_of(meta.pop(n)), int(lumina["dim"])
        for k, part in enumerate("qkv"):
            meta[n.replace("wqkv", "w" + part)] = tensor_of(rows[k * d : (k + 1) * d], [d, d])
    os.mkdir(os.path.join(folder, "meta"))
    save(os.path.join(folder, "meta", "consolidated.pth"), collections.OrderedDict((n, Tensor(t[1], t[2])) for n, t in meta.items()))
    print("meta", told(lumina, *ids), sep="\t")
    names = ("pad", "bos", "eos", "img", "boi", "eoi", "eol", "eof")
    publish("emu3", hugging_face(emu3, synth("emu3", emu3), LLAMA), llama_config(emu3, "Emu3", **{n + "_token_id": int(emu3[n]) for n in names}), 3)
    print("emu3", told(emu3, "codebook_size", "grid_h", "grid_w"), sep="\t")
    janus_models(janus, vq, synth, publish, llama_config, told, folder)
    weights = taming(synth("vqgan", dict(vq, vq_attn="mid")), 3)
    os.mkdir(os.path.join(folder, "vqgan"))
    save(os.path.join(folder, "vqgan", "pytorch_model.bin"), {"epoch": 1, "state_dict": dict({n: Tensor(t[1], t[2]) for n, t in weights.items()},
                                                                                      **{"loss.logvar": zeros([1], "F32")})})
    print("vqgan", told(vq, "grid_h", "grid_w"), sep="\t")
    keys = dict(vq, vq_temporal="4")
    weights = taming(synth("emu3_vq", keys), 3)
    for n in [n for n in weights if n.endswith("running_var")]:
        weights[n.replace("running_var", "num_batches_tracked")] = ("I64", [], bytes(8))
    publish("emu3_vq", weights, {"model_type": "Emu3VisionVQ", "ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "z_channels": 6, "embed_dim": 6,
                                 "codebook_size": 24, "temporal_downsample_factor": 4, "double_z": False})
    print("emu3_vq", told(vq, "grid_h", "grid_w"), sep="\t")
    weights = t5(synth("t5", text), 3, 6)
    shared = weights["shared.weight"]
    config = {"model_type": "t5", "d_model": 16, "num_layers": 2, "num_heads": 3, "d_kv": 6, "d_ff": 20, "vocab_size": 1700, "relative_attention_num_buckets": 8,
              "relative_attention_max_distance": 20, "layer_norm_epsilon": 1e-06, "feed_forward_proj": "gated-gelu"}
    os.mkdir(os.path.join(folder, "t5"))
    json.dump(config, open(os.path.join(folder, "t5", "config.json"), "w"))
    one = Storage("F32", shared[2])
    state = {n: Tensor(t[1], t[2]) for n, t in weights.items()}
    state["shared.weight"] = Tensor(shared[1], None, storage=one)
    state["encoder.embed_tokens.weight"] = Tensor(shared[1], None, storage=one)
    state["decoder.block.0.layer.0.SelfAttention.q.weight"] = state["lm_head.weight"] = zeros([2, 2], "F32")
    save(os.path.join(folder, "t5", "pytorch_model.bin"), state)
    print("t5", "", sep="\t")


if __name__ == "__main__":
    {"cases": cases, "families": families}[sys.argv[1]](*sys.argv[2:])
