#!/usr/bin/env python3
"""Proves the catalogue of mistakes: each line of mistakes.tsv (case, tensor, mistake, text of reference.py, what takes its place) is made in a copy of the numpy
reference, run in float32, and must be told at that case and tensor; the reference without a mistake must pass every case in float64, float32 and float16.

    mutations.py SUITE [--table]     --table: the table of README.md, with every case that tells the mistake"""
import json
import os
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import check  # noqa: E402


def module_of(source):
    scope = {"__name__": "mutated", "__file__": os.path.join(HERE, "reference.py")}
    exec(compile(source, "reference.py", "exec"), scope)
    return scope


class Suite:
    def __init__(self, folder):
        with open(os.path.join(folder, "manifest.json")) as f:
            self.cases = {e["name"]: e for e in json.load(f)["cases"]}
        self.folder, self.files = folder, {}

    def file(self, name):
        if not name.endswith(".safetensors"):
            return {}, {}
        if name not in self.files:
            self.files[name] = check.read(os.path.join(self.folder, name))
        return self.files[name]

    def verdicts(self, scope, name, dtype, modes=("staged", "whole")):
        """{mode: (first wrong tensor or None, words)} of one case."""
        entry, out = self.cases[name], {}
        case, settings = self.file(entry["file"])
        for mode in modes if entry["kind"] == "trace" else ("whole",):
            try:
                tensors = scope["run_case"](case, settings, *self.file(entry["model"]), entry["kind"], np.dtype(dtype), mode, os.path.join(self.folder, entry["model"]))
            except Exception as e:
                out[mode] = ("crash", f"{type(e).__name__}: {e}")
                continue
            theirs = {k: v.astype(np.float64 if v.dtype.kind == "f" else np.int64) for k, v in tensors.items()}
            r = check.judge_case(case, theirs, mode, {"float64": "f64", "float32": "f32", "float16": "f16"}[dtype], True, entry["kind"] == "rules")
            out[mode] = (r["first"], next((t["words"] for t in r["tensors"] if t.get("first")), ""))
        return out


def main():
    table = "--table" in sys.argv
    suite, passed, failed = Suite(sys.argv[1]), 0, 0
    with open(os.path.join(HERE, "reference.py")) as f:
        source = f.read()
    right = module_of(source)
    for dtype in ("float64", "float32", "float16"):
        for name, entry in suite.cases.items():
            if dtype == "float16" and (entry["free"] or entry["kind"] in ("rules", "text")):
                continue
            wrong = {m: v for m, v in suite.verdicts(right, name, dtype).items() if v[0]}
            passed, failed = passed + (not wrong), failed + bool(wrong)
            for mode, (tensor, words) in wrong.items():
                print(f"FAILED the reference in {dtype}, {name} {mode}: {tensor}: {words}")
    with open(os.path.join(HERE, "mistakes.tsv")) as f:
        mistakes = [[t.replace("\\n", "\n") for t in line.rstrip("\n").split("\t")] for line in f if line.strip()]
    if table:
        print("| mistake | case | first tensor | other cases |\n| --- | --- | --- | --- |")
    for name, tensor, mistake, old, new in mistakes:
        if source.count(old) != 1:
            print(f"FAILED {mistake}: its text stands {source.count(old)} times in reference.py: {old}")
            failed += 1
            continue
        scope = module_of(source.replace(old, new))
        told = suite.verdicts(scope, name, "float32")
        first, words = told.get("staged", told["whole"])
        right_place = first == tensor and all(v[0] for v in told.values())
        passed, failed = passed + right_place, failed + (not right_place)
        if not right_place:
            print(f"FAILED {mistake}: {name} should tell {tensor}, and tells {told}")
        elif table:
            others = [n for n, e in suite.cases.items() if n != name and (e["kind"] == "text") == (suite.cases[name]["kind"] == "text") and any(v[0] for v in suite.verdicts(scope, n, "float32", ("staged",)).values())]
            print(f"| {mistake} | {name} | {tensor} | {', '.join(others)} |", flush=True)
    print(f"{passed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
