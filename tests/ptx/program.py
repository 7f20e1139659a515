"""PTX text → kernels."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_WIDTH = {
    "pred": 1,
    "b8": 1,
    "u8": 1,
    "s8": 1,
    "b16": 2,
    "u16": 2,
    "s16": 2,
    "f16": 2,
    "b32": 4,
    "u32": 4,
    "s32": 4,
    "f32": 4,
}
_WIDTH |= {"b64": 8, "u64": 8, "s64": 8, "f64": 8}


@dataclass(frozen=True)
class Instruction:
    """opcode: its parts, `("add", "s32")`. operands: as written. guard: (predicate, wanted value) or None. line: of the text."""

    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    guard: tuple[str, bool] | None
    line: str


@dataclass
class Kernel:
    """parameters: name → (offset, bytes) in the order of the launch. registers: name → bytes. labels: name → index of an instruction.
    shared, local: name → (offset, bytes); extern names have 0 bytes."""

    name: str
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)
    registers: dict[str, int] = field(default_factory=dict)
    predicates: set[str] = field(default_factory=set)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    shared: dict[str, tuple[int, int]] = field(default_factory=dict)
    local: dict[str, tuple[int, int]] = field(default_factory=dict)


def parse(text: str) -> dict[str, Kernel]:
    """Every kernel of a PTX module, by its (mangled) name."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    shared: dict[str, tuple[int, int]] = {}
    kernels = {}
    entry = re.compile(r"\.entry\s+([\w$.]+)\s*\(([^)]*)\)([^{]*)\{")
    place = 0
    for variable in re.finditer(
        r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d*)\]", re.sub(r"\{.*?\n\}", "", text, flags=re.S)
    ):
        align, name, size = int(variable[1]), variable[2], int(variable[3] or 0)
        place = (place + align - 1) // align * align
        shared[name] = (place, size)
        place += size
    for found in entry.finditer(text):
        kernel = Kernel(found[1], shared=dict(shared))
        _parameters(kernel, found[2])
        _body(kernel, text[found.end() : _closing(text, found.end())])
        kernels[kernel.name] = kernel
    return kernels


def _closing(text: str, start: int) -> int:
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
    raise ValueError("a kernel's body does not end")


def _parameters(kernel: Kernel, text: str) -> None:
    offset = 0
    for line in filter(None, (part.strip() for part in text.split(","))):
        align = re.search(r"\.align\s+(\d+)\s+\.b8", line)
        array = re.search(r"([\w$]+)\[(\d+)\]$", line)
        if array:
            size, name, step = int(array[2]), array[1], int(align[1]) if align else 1
        else:
            kind = re.search(r"\.param\s+\.(\w+)", line)
            assert kind is not None, line
            size = step = _WIDTH[kind[1]]
            name = line.split()[-1]
        offset = (offset + step - 1) // step * step
        kernel.parameters[name] = (offset, size)
        offset += size


_REGISTER = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.S)
_INSTRUCTION = re.compile(r"(?:@(!?)(%[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)


def _body(kernel: Kernel, text: str) -> None:
    # Braces that are not vectors only open scopes; what inline assembly names in one is renamed, so that names are distinct.
    text = _with_distinct_names(text)
    text = re.sub(r"(^|[;\n}:])\s*\{(?=\s*(\.reg|\n|$))", r"\1", text)
    local = 0
    for raw in re.split(r";", _without_scopes(text)):
        statement = raw.strip()
        while label := re.match(r"([$\w]+):\s*", statement):
            kernel.labels[label[1]] = len(kernel.instructions)
            statement = statement[label.end() :]
        statement = re.sub(r"^(\.loc[^\n]*\n\s*)+", "", statement + "\n").strip()
        while label := re.match(r"([$\w]+):\s*", statement):
            kernel.labels[label[1]] = len(kernel.instructions)
            statement = re.sub(r"^(\.loc[^\n]*\n\s*)+", "", statement[label.end() :] + "\n").strip()
        if not statement or statement.startswith((".pragma", ".loc", ".file")):
            continue
        register = _REGISTER.match(statement)
        if register:
            _declare(kernel, register[1], register[2])
            continue
        if statement.startswith(".local"):
            found = re.match(r"\.local\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", statement)
            assert found is not None, statement
            kernel.local[found[2]] = (local, int(found[3]))
            local += (int(found[3]) + 15) // 16 * 16
            continue
        instruction = _INSTRUCTION.fullmatch(statement)
        if not instruction:
            raise ValueError(f"not understood: {statement!r}")
        guard = (instruction[2], instruction[1] != "!") if instruction[2] else None
        operands = _operands(instruction[4])
        opcode = tuple(instruction[3].split("."))
        kernel.instructions.append(Instruction(opcode, operands, guard, " ".join(statement.split())))


_SCOPE = re.compile(r"\{(?=\s*\.reg)((?:[^{}]|\{[^{}]*\})*)\}")


def _with_distinct_names(text: str) -> str:
    """The registers and labels of innermost scopes, each with the scope's number behind it."""
    number = 0

    def renamed(scope: re.Match[str]) -> str:
        nonlocal number
        number += 1
        body = scope[1]
        registers = re.findall(r"\.reg\s+\.\w+\s+([a-zA-Z_]\w*)\s*;", body)
        labels = re.findall(r"^\s*([a-zA-Z_]\w*):", body, re.M)
        for name in [*registers, *labels]:
            mark = "%" if name in registers else ""
            body = re.sub(rf"(?<![\w%$.]){name}(?!\w)", f"{mark}{name}__{number}", body)
        return "{" + body + "}"

    return _SCOPE.sub(renamed, text)


def _operands(text: str) -> tuple[str, ...]:
    """Split at the commas that are in no brackets."""
    parts, depth, begin = [], 0, 0
    for at, char in enumerate(text):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append(text[begin:at])
            begin = at + 1
    return tuple(part.strip() for part in [*parts, text[begin:]] if part.strip())


def _without_scopes(text: str) -> str:
    """Drop closing braces of scopes: those that close no vector."""
    out, inside = [], False
    for char in text:
        if char == "{":
            inside = True
        if char == "}":
            if not inside:
                continue
            inside = False
        out.append(char)
    return "".join(out)


def _declare(kernel: Kernel, kind: str, names: str) -> None:
    for name in names.split(","):
        many = re.fullmatch(r"\s*(%[\w$]+)<(\d+)>\s*", name)
        every = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name.strip()]
        for one in every:
            kernel.registers[one] = _WIDTH[kind]
            if kind == "pred":
                kernel.predicates.add(one)
