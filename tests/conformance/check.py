#!/usr/bin/env python3
"""Holds a folder of another implementation's tensors against the conformance suite. numpy alone.

    check.py SUITE THEIRS [--only PATTERN] [--precision f64|f32|f16|bf16] [--all] [--json FILE] [-v]

THEIRS holds CASE.safetensors (a whole run, from the inputs on) and CASE.staged.safetensors (each stage from the suite's own given/* before it), either or both,
with the names of the case. Status 0: nothing differs; 1: something does (--all: or is missing); 3: the suite or a file cannot be read."""
import argparse
import fnmatch
import hashlib
import json
import os
import struct
import sys

import numpy as np

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1"}
ROUNDOFF = {"bf16": 2.0**-8, "f16": 2.0**-11, "f32": 2.0**-24}  # u of SPEC 10
TENSOR, ROW, ELEMENT, F64 = 3, 6, 12, 1e-10  # its rule: how many times the noise; of RMS(y) in F64
PARTS = ("gpt.", "vq.", "fine.", "t5.")


def read(path):
    """The tensors of a safetensors file, floats widened to double, and its metadata."""
    with open(path, "rb") as f:
        data = f.read()
    try:
        return parse(data)
    except (ValueError, KeyError, TypeError, struct.error) as e:
        raise ValueError(f"{path} is no safetensors file that this program reads: {type(e).__name__}: {e}") from e


def parse(data):
    n = struct.unpack("<Q", data[:8])[0]
    header, tensors = json.loads(data[8 : 8 + n]), {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        x = np.frombuffer(data[8 + n + t["data_offsets"][0] : 8 + n + t["data_offsets"][1]], TYPES[t["dtype"]]).reshape(t["shape"])
        if t["dtype"] == "BF16":
            x = (x.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = x.astype(np.float64 if t["dtype"] in ("F64", "F32", "F16", "BF16") else np.int64)
    return tensors, header.get("__metadata__", {})


def precision_of(tensors):
    """The narrowest type that holds every number of the file's own float tensors."""
    holds = {"bf16": True, "f16": True, "f32": True}
    with np.errstate(over="ignore"):
        for name, x in tensors.items():
            if name.startswith(("input.", "given/", "uniform/")) or x.dtype != np.float64:
                continue
            x = x[np.isfinite(x)]
            f = x.astype(np.float32)
            exact = bool((f == x).all())
            holds["f32"] &= exact
            holds["bf16"] &= exact and not (f.view(np.uint32) & 0xFFFF).any()
            holds["f16"] &= exact and bool((f.astype(np.float16).astype(np.float64) == x).all())
    return next((p for p in holds if holds[p]), "f64")


def rms(x, axis=None):
    return np.sqrt(np.mean(np.square(x), axis=axis))


def misshapen(x, y):
    return "misshapen", f"shape {list(x.shape)}, the case has {list(y.shape)}" + (": drop the batch axis" if x.shape == (1, *y.shape) else "")


def judge_floats(x, y, figures, p):
    """verdict, RMS and largest error in units of RMS(y), the limit of the first, where it is worst; figures: k, N, N_r of each row."""
    if x.shape != y.shape:
        return misshapen(x, y)
    unit = rms(y) or 1.0
    if not np.isfinite(x).all():
        return "differs", f"not finite at {np.unravel_index(np.argmin(np.isfinite(x)), x.shape)}"
    d = np.abs(x - y)
    at = tuple(int(i) for i in np.unravel_index(np.argmax(d), d.shape))
    if p == "f64":
        excess, limit = d.max() / (F64 * unit), F64
    else:
        k, N, rows = figures[0], figures[1], figures[2:]
        d_r, y_r = d.reshape(len(rows), -1), y.reshape(len(rows), -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = [rms(d) / (TENSOR * k * N), (rms(d_r, 1) / (ROW * k * rows)).max(), (d_r / (ELEMENT * k * (rows[:, None] + ROUNDOFF[p] * np.abs(y_r)))).max()]
        excess, limit = np.nanmax(parts) if d.any() else 0.0, TENSOR * k * N / unit
    words = f"rms {rms(d) / unit:.1e}, max {d.max() / unit:.1e} at {list(at)}: {x[at]:.9g}, it should be {y[at]:.9g}; limit {limit:.1e}"
    return ("differs", f"{excess:.3g} times its limit; {words}") if excess > 1 else ("identical" if not d.any() else "same", words)


def judge_integers(name, x, y, case, mode, p):
    """Codes that are not the case's are near-ties where ties/* says that p cannot decide them; bytes may be what conv_out at its limits gives."""
    if x.shape != y.shape:
        return misshapen(x, y)
    wrong = np.argwhere(x != y)
    if len(wrong) == 0:
        return "identical", ""
    at = tuple(int(i) for i in wrong[0])
    words = f"{len(wrong)} of {x.size} differ, first at {list(at)}: {x[at]}, it should be {y[at]}"
    if name == "pixels" and p != "f64":
        return ("same" if ((x >= case[f"low/{p}/pixels"]) & (x <= case[f"high/{p}/pixels"])).all() else "differs"), words
    ties = case.get(f"ties/{mode}/{p}/{name}", case.get(f"ties/{p}/{name}"))
    if ties is None or p == "f64":
        return "differs", words
    if ties.ndim == y.ndim + 1:  # [..., codes]: how far each code is
        inside = (x >= 0) & (x < ties.shape[-1])
        far = np.where(inside, np.take_along_axis(ties, np.clip(x, 0, ties.shape[-1] - 1)[..., None], -1)[..., 0], np.inf)
    else:
        far = np.where(x == y, 0, ties)
    return ("near-tie" if (far <= 1).all() else "differs"), words


def judge_case(case, theirs, mode, precision, everything, rules=False):
    """One file: verdicts in the order of the case. precision None: the narrowest that holds its numbers; of rules, which have no parts, each tensor's own."""
    p = precision or precision_of(theirs)
    wanted = {n[len(mode) + 1 :]: x for n, x in case.items() if n.startswith(mode + "/")}
    if mode == "whole":
        wanted.update({n: case[n] for n in ("codes", "coarse", "step_of") if n in case})
    results = []
    for name, y in wanted.items():
        if name not in theirs:
            verdict, words = "missing", ""
        elif (theirs[name].dtype == np.float64) != (y.dtype == np.float64):
            verdict, words = "misshapen", "floats and integers are exchanged"
        elif y.dtype == np.float64:
            p = precision or precision_of({name: theirs[name]}) if rules else p
            verdict, words = judge_floats(theirs[name], y, case.get(f"noise/{mode}/{p}/{name}"), p)
        else:
            verdict, words = judge_integers(name, theirs[name], y, case, mode, p)
        results.append({"name": name, "verdict": verdict, "words": words})
    results += [{"name": n, "verdict": "unknown", "words": "the case has no such tensor"} for n in theirs if n.startswith(PARTS) and n not in wanted]
    bad = ("differs", "misshapen", "unknown") + (("missing",) if everything else ())
    first = next((r for r in results if r["verdict"] in bad), None)
    if first:
        first["first"] = True
    return {"mode": mode, "precision": p, "verdict": "differs" if first else "same", "first": first["name"] if first else None, "tensors": results}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite"), parser.add_argument("theirs")
    parser.add_argument("--only", default="*", help="names of cases, * for any letters")
    parser.add_argument("--precision", choices=["f64", "f32", "f16", "bf16"], help="what theirs was computed in (the narrowest that holds its numbers)")
    parser.add_argument("--all", action="store_true", help="what is missing counts as a difference")
    parser.add_argument("--json", help="the verdicts as one JSON object into this file, - is standard output")
    parser.add_argument("-v", action="store_true", help="a line for every tensor")
    args = parser.parse_args()
    out = open(os.devnull, "w") if args.json == "-" else sys.stdout
    with open(os.path.join(args.suite, "manifest.json")) as f:
        manifest = json.load(f)
    report, counts = [], {}
    for entry in manifest["cases"]:
        if not fnmatch.fnmatch(entry["name"], args.only):
            continue
        path = os.path.join(args.suite, entry["file"])
        with open(path, "rb") as f:
            if hashlib.sha256(f.read()).hexdigest() != entry["sha256"]:
                raise ValueError(f"{path} is not the file of the manifest: its sha256 differs")
        case, found = read(path)[0], False
        for mode, ending in (("staged", ".staged.safetensors"), ("whole", ".safetensors")):
            file = os.path.join(args.theirs, entry["name"] + ending)
            if not os.path.exists(file):
                continue
            theirs, found = read(file)[0], True
            result = judge_case(case, theirs, mode, args.precision, args.all, entry["kind"] == "rules")
            if entry["free"] and result["precision"] in ("f16", "bf16"):
                result.update(verdict="not judged", first=None, tensors=[])
            report.append({"case": entry["name"], **result})
            n = sum(t["verdict"] not in ("missing", "unknown") for t in result["tensors"])
            print(f"{entry['name']:24} {mode:7} {result['precision']:5} {result['verdict'].replace('differs', 'DIFFERS'):10} {n} tensors", file=out)
            for t in result["tensors"]:
                counts[t["verdict"]] = counts.get(t["verdict"], 0) + 1
                if args.v or t["verdict"] not in ("identical", "same", "missing") or (args.all and t["verdict"] == "missing"):
                    print(f"    {t['name']:32} {t['verdict']}{': ' if t['words'] else ''}{t['words']}{'  <== first' if t.get('first') else ''}", file=out)
                if t.get("first"):
                    known = [c["mistake"] for c in entry["catches"] if c["told at"] == t["name"]]
                    print(f"        mistakes that this tensor tells: {'; '.join(known)}" if known else "", end="\n" if known else "", file=out)
        if not found:
            report.append({"case": entry["name"], "verdict": "missing", "first": None, "tensors": []})
    missing = [r["case"] for r in report if r["verdict"] == "missing"]
    if missing:
        print(f"not run: {', '.join(missing)}", file=out)
    wrong = sum(r["verdict"] == "differs" for r in report)
    print(f"{sum(r['verdict'] == 'same' for r in report)} same, {wrong} differ, {len(missing)} cases not run; tensors: {counts}", file=out)
    if args.json:
        text = json.dumps({"suite": manifest["version"], "cases": report, "counts": counts, "differ": wrong, "missing": missing}, indent=1)
        print(text) if args.json == "-" else open(args.json, "w").write(text + "\n")
    return 1 if wrong or (args.all and missing) else 0 if len(report) > len(missing) else 3


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError, KeyError) as e:
        print(f"check.py: {type(e).__name__}: {e}", file=sys.stderr)
        sys.exit(3)
