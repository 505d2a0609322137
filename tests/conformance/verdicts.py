#!/usr/bin/env python3
"""What check.py says of files with a known change: each kind of verdict, and its exit status.

    verdicts.py SUITE RIGHT     RIGHT: what reference.py SUITE RIGHT --dtype float16 wrote"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import check  # noqa: E402
from reference import write  # noqa: E402

suite, right = sys.argv[1:3]
counts = {True: 0, False: 0}


def expect(what, case, change, verdict, tensor, status, *flags):
    """The right file of a case, changed by `change(tensors)`, must be told so."""
    tensors = {k: v.astype(np.float16) if v.dtype == np.float64 else v for k, v in check.read(os.path.join(right, case + ".safetensors"))[0].items()}
    change(tensors)
    with tempfile.TemporaryDirectory() as folder:
        write(os.path.join(folder, case + ".safetensors"), tensors)
        run = subprocess.run([sys.executable, os.path.join(HERE, "check.py"), suite, folder, "--only", case, "--json", "-", *flags], capture_output=True, text=True)
        told = {t["name"]: t["verdict"] for c in json.loads(run.stdout)["cases"] for t in c["tensors"]}
    ok = run.returncode == status and told.get(tensor) == verdict
    counts[ok] += 1
    if not ok:
        print(f"FAILED {what}: {told.get(tensor)}, status {run.returncode}; it should be {verdict}, {status}")


def put(name, index, value):
    return lambda tensors: tensors[name].__setitem__(index, value)


case = check.read(os.path.join(suite, "cases/greedy-s1.safetensors"))[0]
ties = np.where(case["ties/f16/codes"] == 0, np.inf, case["ties/f16/codes"])
near, far = (tuple(int(i) for i in np.unravel_index(np.argmin(np.abs(ties - at)), ties.shape)) for at in (0.5, 3))
assert ties[near] <= 1 < ties[far]
expect("nothing changed", "greedy-s1", lambda t: None, "same", "logits", 0, "--all")
expect("a code that float16 cannot decide", "greedy-s1", put("codes", near[:2], near[2]), "near-tie", "codes", 0)
expect("a code that it can", "greedy-s1", put("codes", far[:2], far[2]), "differs", "codes", 1)
expect("a code that is none", "greedy-s1", put("codes", (0, 0), 4000), "differs", "codes", 1)
expect("another pass", "zipar-s1", put("step_of", (1, 1), 0), "differs", "step_of", 1)
expect("one element", "c2i", put("gpt.block.1", (3, 3), 9.0), "differs", "gpt.block.1", 1)
expect("a number that is none", "c2i", put("gpt.block.1", (3, 3), np.nan), "differs", "gpt.block.1", 1)
expect("a batch axis", "c2i", lambda t: t.update({"gpt.norm": t["gpt.norm"][None]}), "misshapen", "gpt.norm", 1)
expect("transposed", "c2i", lambda t: t.update({"gpt.norm": t["gpt.norm"].T.copy()}), "misshapen", "gpt.norm", 1)
expect("floats for codes", "greedy-s1", lambda t: t.update({"codes": t["codes"].astype(np.float16)}), "misshapen", "codes", 1)
expect("an unknown name", "c2i", lambda t: t.update({"gpt.blocks.1": t["gpt.block.1"]}), "unknown", "gpt.blocks.1", 1)
expect("a tensor that is missing", "c2i", lambda t: t.pop("gpt.norm"), "missing", "gpt.norm", 0)
expect("the same where all must be there", "c2i", lambda t: t.pop("gpt.norm"), "missing", "gpt.norm", 1, "--all")
expect("float16 judged as float32", "c2i", lambda t: None, "differs", "gpt.block.1", 1, "--precision", "f32")
picture = check.read(os.path.join(suite, "cases/vq16.safetensors"))[0]
expect("a byte within what float16 lets it be", "vq16", put("pixels", (0, 0, 0), int(picture["low/f16/pixels"][0, 0, 0])), "same", "pixels", 0)
expect("a byte beyond", "vq16", put("pixels", (0, 0, 0), int(picture["high/f16/pixels"][0, 0, 0]) - 128), "differs", "pixels", 1)
codes = np.where(picture["ties/whole/f16/vq.codes"] == 0, np.inf, picture["ties/whole/f16/vq.codes"])
at = tuple(int(i) for i in np.unravel_index(np.argmin(codes), codes.shape))
expect("a codeword that float16 cannot decide", "vq16", put("vq.codes", at[:2], at[2]), "near-tie", "vq.codes", 0)
expect("a codeword far away", "vq16", put("vq.codes", at[:2], int(np.argmax(np.where(codes[at[:2]] < 1e30, codes[at[:2]], 0)))), "differs", "vq.codes", 1)
with tempfile.TemporaryDirectory() as folder:
    ok = subprocess.run([sys.executable, os.path.join(HERE, "check.py"), folder, folder], capture_output=True).returncode == 3
    counts[ok] += 1
    print(f"{counts[True]} passed, {counts[False]} failed")
sys.exit(counts[False] > 0)
