"""PTX in which functions stand where they are called: the PTX executor knows no calls."""

from __future__ import annotations

import itertools
import re

_FUNCTION = re.compile(r"^\.func\s+(?:\([^)]*\)\s*)?([\w$]+)\s*\([^)]*\)[^;{]*(?:;|\{(.*?)^\})", re.M | re.S)
_CALL = re.compile(r"\{ // callseq (\d+), \d+\n(.*?)\} // callseq \1\n", re.S)
_TARGET = re.compile(r"call(?:\.uni)?\s+(?:\(\w+\),\s*)?([\w$]+)[^;]*;")
_STORE = re.compile(r"st\.param(?:\.v[24])?\.[a-z](\d+)\s+\[([\w$]+)(?:\+(\d+))?\],\s*\{?([^;}]*)\}?;")
_LOAD = re.compile(r"ld\.param(?:\.v[24])?\.[a-z](\d+)\s+\{?([^;\[}]*)\}?,\s*\[([\w$]+)(?:\+(\d+))?\];")


def without_calls(text: str) -> str:
    """The kernel of ``text`` alone, which calls nothing; arguments and results of functions are registers."""
    functions = {name: body for name, body in _FUNCTION.findall(text) if body}
    numbers = itertools.count()

    def expanded(text: str) -> str:
        while (call := _CALL.search(text)) is not None:
            name = _target(call.group(2)).group(1)
            code = _in_place(call.group(2), expanded(functions[name]), f"call{next(numbers)}_")
            text = text[: call.start()] + code + text[call.end() :]
        return text

    return expanded(_FUNCTION.sub("", text))


def _target(call: str) -> re.Match[str]:
    target = _TARGET.search(call)
    assert target is not None, call
    return target


def _in_place(call: str, body: str, prefix: str) -> str:
    assert "__local_depot" not in body, "a function with local memory would need a place of its own there"
    target = _target(call)
    before = re.sub(r"^\s*\.param[^;]*;\n", "", call[: target.start()], flags=re.M)
    for kind in set(re.findall(r"\.reg\s+\.\w+\s+%(\w+)<", body)):
        body = re.sub(rf"%{kind}(?=\d+\b|<)", f"%{prefix}{kind}", body)
    body = body.replace("$L__", f"$L__{prefix}").replace("ret;", f"bra $L__{prefix}end;")
    parts = [before, body, f"$L__{prefix}end:\n", call[target.end() :]]
    places: set[str] = set()

    def place(space: str, offset: int) -> str:
        number = space.rpartition("_param_")[2].removeprefix("param")  # of the argument, as caller and function call it
        register = f"%{prefix}{'result' if number.endswith('retval0') else 'argument' + number}_{offset}"
        places.add(register)
        return register

    def store(match: re.Match[str]) -> str:
        bits, space, offset, values = match.groups()
        moves = {"64": "mov.b64", "32": "cvt.u64.u32", "16": "cvt.u64.u16", "8": "cvt.u64.u16"}
        return " ".join(
            f"{moves[bits]} {place(space, int(offset or 0) + i * int(bits) // 8)}, {value.strip()};"
            for i, value in enumerate(values.split(","))
        )

    def load(match: re.Match[str]) -> str:
        bits, values, space, offset = match.groups()
        moves = {"64": "mov.b64", "32": "cvt.u32.u64", "16": "cvt.u16.u64", "8": "cvt.u16.u64"}
        out = ""
        for i, value in enumerate(values.split(",")):
            out += f"{moves[bits]} {value.strip()}, {place(space, int(offset or 0) + i * int(bits) // 8)};"
            out += f" and.b16 {value.strip()}, {value.strip()}, 255;" if bits == "8" else ""
        return out

    moved = [_LOAD.sub(load, _STORE.sub(store, part)) for part in parts]
    return "".join(f".reg .b64 {register};\n" for register in sorted(places)) + "".join(moved)
