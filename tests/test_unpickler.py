"""Checkpoints that would run something: nothing runs, nothing is imported, and the refusal names what was found."""

from __future__ import annotations

import io
import operator
import os
import pickle
import subprocess
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfgm_fast import compat
from pfgm_fast.compat import edm, poisson_flow, score_sde, unpickler, vocabulary
from pfgm_fast.errors import CheckpointError
from pfgm_fast.nn import UNetConfig, denoiser
from tests.edm_files import as_theirs, persistent, write_snapshot, write_state


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.function, self.args, self.state = function, args, state

    def __reduce__(self) -> Any:
        return (self.function, self.args) if self.state is None else (self.function, self.args, self.state)

    def __call__(self) -> None:
        """Pickle wants functions to be callable; this is one that a call gives."""


def attacks(marker: Path) -> dict[str, Any]:
    """Name → an object whose pickle, read by `pickle.load`, makes the marker file (or calls what could)."""
    touch = f"touch {marker}"
    python = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Calls(os.system, touch),
        "subprocess": Calls(subprocess.check_call, ["touch", str(marker)]),
        "Popen": Calls(subprocess.Popen, ["touch", str(marker)]),
        "eval": Calls(eval, f"__import__('os').system({touch!r})"),
        "exec": Calls(exec, python),
        "open": Calls(open, str(marker), "w"),
        "import": Calls(__import__, "os"),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "operator": Calls(operator.attrgetter("system"), Calls(__import__, "os")),
        "methodcaller": Calls(operator.methodcaller("touch"), marker),
        "chain": Calls(Calls(operator.attrgetter, "system"), Calls(__import__, "os")),
        "map": Calls(list, Calls(map, os.system, [touch])),
        "nested": {"a": [{"b": ({"c": Calls(os.system, touch)},)}]},
        "in OrderedDict": OrderedDict([("x", Calls(os.system, touch))]),
        "as state": Calls(OrderedDict, state=Calls(os.system, touch)),
        "path": Calls(Path.touch, marker),
        "torch.load": Calls(torch.load, str(marker)),
        "torch function": Calls(torch.from_file, str(marker), True, 4),
        "torch hub": Calls(torch.hub.load, "a/b", "c"),
        "numpy": Calls(np.save, str(marker), 0),
        "pickle": Calls(pickle.loads, pickle.dumps(Calls(os.system, touch))),
        "pip": Calls(_NAMES["pip._internal.main"], ["--version"]),
        "unknown class called": Calls(_NAMES["somewhere.Module"], touch),
    }


class _Named:
    """A function that pickles by a name, whether or not there is such a module."""

    def __init__(self, name: str) -> None:
        self.__module__, self.__qualname__ = name.rsplit(".", 1)

    def __call__(self) -> None:
        """As above."""


_NAMES = {name: _Named(name) for name in ("pip._internal.main", "somewhere.Module")}


class _Pickler(pickle._Pickler):  # the Python one: `save_global` without looking the name up
    def save(self, value: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(value, _Named):
            self.write(b"c" + f"{value.__module__}\n{value.__qualname__}\n".encode())
        else:
            super().save(value, save_persistent_id)


_module = types.SimpleNamespace(__name__="pickle", Pickler=_Pickler, dump=pickle.dump, dumps=pickle.dumps)
"""For torch.save."""


def dumped(value: Any, protocol: int) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol).dump(value)
    return file.getvalue()


NAMES = list(attacks(Path("unused")))


FORBIDDEN = {
    "exec",
    "compile",
    "import",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
}
_watching: list[str] | None = None


def _audit(event: str, args: Any) -> None:
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if _watching is not None and (event in FORBIDDEN or writes):
        _watching.append(f"{event} {args!r}"[:200])


sys.addaudithook(_audit)


@contextmanager
def nothing_happens(marker: Path) -> Iterator[None]:
    """Within, the interpreter runs no text, imports no module, starts no process and opens no file for writing; no marker appears."""
    global _watching
    _watching = events = []
    try:
        yield
    finally:
        _watching = None
    assert events == []
    assert not marker.exists()


READERS = (
    unpickler.load,
    edm.load_checkpoint,
    compat.load_any,
    score_sde.load_checkpoint,
    poisson_flow.load_checkpoint,
)


def refuses(path: Path, marker: Path) -> None:
    for reader in READERS:
        with nothing_happens(marker), pytest.raises(CheckpointError, match=r"refused: it (names|calls) "):
            reader(path)


@pytest.fixture(scope="module", autouse=True)
def _ready(tmp_path_factory) -> None:
    """What the readers import when they are first called is imported."""
    path = tmp_path_factory.mktemp("ready") / "x"
    path.write_bytes(pickle.dumps(1))
    for reader in READERS[1:]:
        with pytest.raises(CheckpointError):
            reader(path)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_runs(tmp_path, name: str) -> None:
    """By every protocol, alone and in zip archives and files of before 1.6."""
    marker, path = tmp_path / "ran", tmp_path / "evil"
    evil = attacks(marker)[name]
    for protocol in (0, 2, 4, 5):
        path.write_bytes(dumped({"ema": evil}, protocol))
        refuses(path, marker)
    for zipped in (True, False):
        content = {"model": {"module.all_modules.0.weight": torch.zeros(2)}, "more": evil}
        torch.save(content, path, pickle_module=_module, _use_new_zipfile_serialization=zipped)
        refuses(path, marker)


def test_the_attacks_would_run_elsewhere(tmp_path) -> None:
    """Otherwise the tests above could not fail: pickle itself makes the file."""
    for name in ("os.system", "exec", "nested", "as state", "pickle", "map"):
        marker = tmp_path / name.replace(" ", "-")
        with suppress(pickle.UnpicklingError):
            pickle.loads(dumped(attacks(marker)[name], 2))
        assert marker.exists(), name


def test_beside_and_inside_a_good_network(tmp_path) -> None:
    marker = tmp_path / "ran"
    net = denoiser(UNetConfig(1, 4, 4, (1,), 1, ()))
    good = as_theirs(net, {}, {}, f"open({str(marker)!r}, 'w').close()")
    write_snapshot(tmp_path / "good.pkl", good)
    assert (
        edm.load_checkpoint(tmp_path / "good.pkl").label_dim == 0
    )  # its source text is evil too, and only text
    write_snapshot(tmp_path / "beside.pkl", good, loss=Calls(os.system, f"touch {marker}"))
    inside = as_theirs(net, {}, {"sigma_data": Calls(os.system, f"touch {marker}")})
    write_state(tmp_path / "inside.pt", inside, inside)
    for file in ("beside.pkl", "inside.pt"):
        with pytest.raises(CheckpointError, match=r"refused: it names (posix|nt)\.system"):
            edm.load_checkpoint(tmp_path / file)
    assert not marker.exists()


def test_a_storage_s_bytes_are_no_way_in(tmp_path) -> None:
    """torch.storage._load_from_bytes takes a whole file of its own: there nothing but storages is allowed."""
    marker = tmp_path / "ran"
    inner = pickle.dumps(Calls(os.system, f"touch {marker}"), 2)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Calls(torch.storage._load_from_bytes, inner), 4))
    with pytest.raises(CheckpointError, match="refused: it names"):
        unpickler.load(tmp_path / "evil.pkl")
    twice = pickle.dumps(Calls(torch.storage._load_from_bytes, inner), 2)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Calls(torch.storage._load_from_bytes, twice), 4))
    with pytest.raises(CheckpointError, match=r"refused: it names torch\.storage\._load_from_bytes"):
        unpickler.load(tmp_path / "evil.pkl")
    assert not marker.exists()


@pytest.mark.parametrize(
    "body",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n(N}U\x04callcos\nsystem\nstb.",  # state of an allowed function
        b"ctorch._utils\n_rebuild_tensor_v2\n}U\x04callU\x01xsb.",
        b"cposix\nsystem\n.",
        b"ctorch._utils\n_rebuild_tensor_v2.call.__globals__\n.",  # dotted names are not followed
        b"ccollections\nOrderedDict.__init__.__globals__\n.",
        b"cpfgm_fast.compat.vocabulary\nALLOWED\n(tR.",
        b"(isomewhere\nModule\n.I1\n(S'x'\nisomewhere\nModule\n.",
        b"csomewhere\nModule\n(I1\ntR.",
        b"csomewhere\nModule\n}U\x06ORIGINU\x01xsb.",  # state of a class
        b"ctorch\nFloatStorage\n}U\x05dtypeU\x01xsb.",
        b"\x82\x01.",  # copyreg's extension registry
        b"P0\n.",
        b"(S'storage'\nNS'0'\nS'cpu'\nI4\ntQ.",
        b"\x80\x04j\xff\xff\xff\x7f.",  # memo that is not there
    ],
)
def test_opcodes_by_hand(tmp_path, body: bytes) -> None:
    """State on functions and classes, dotted names, instances of protocol 0, persistent ids: all refused, nothing changed."""
    before = dict(vars(vocabulary.ALLOWED["torch._utils", "_rebuild_tensor_v2"]))
    (tmp_path / "evil.pkl").write_bytes(b"\x80\x02" + body if not body.startswith(b"\x80") else body)
    try:
        loaded = unpickler.load(tmp_path / "evil.pkl")
    except CheckpointError:
        pass
    else:
        assert isinstance(loaded, unpickler.StandIn)
        assert body.startswith(b"(isomewhere")
    assert vars(vocabulary.ALLOWED["torch._utils", "_rebuild_tensor_v2"]) == before


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [(0, (5,), (1,)), (1, (4,), (1,)), (0, (2,), (4,)), (-1, (2,), (1,)), (0, (2, 2), (-1, 1)), (0, (10**6, 10**6), (0, 0)),
     (0, (2.0,), (1,)), (0, (True,), (1,)), (0, (2, 2), (1,))],
)  # fmt: skip
def test_tensors_lie_within_their_storage(tmp_path, offset: int, shape: tuple, stride: tuple) -> None:
    """Nothing is read from beside it, and no small file becomes a large tensor."""
    storage = torch.arange(4.0)._typed_storage()
    call = Calls(torch._utils._rebuild_tensor_v2, storage, offset, shape, stride, False, OrderedDict())
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(call, 4))
    with pytest.raises(CheckpointError, match=r"tensor|x.pkl"):
        unpickler.load(tmp_path / "x.pkl")


def test_what_honest_files_hold_comes_back(tmp_path) -> None:
    """Views, dtypes, parameters, NumPy's numbers and arrays, sets, bytes: in both formats of torch.save, and by pickle's protocols."""
    base = torch.arange(12, dtype=torch.float64)
    content = {
        "view": base.view(3, 4).T,
        "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(),
        "whole": torch.arange(3),
        "flags": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "numbers": [
            1,
            2.5,
            float("inf"),
            10**30,
            True,
            None,
            "text",
            b"bytes",
            (1, (2,)),
            {3, 4},
            bytearray(b"ab"),
        ],
        "order": OrderedDict(a=1, b=[OrderedDict()]),
    }

    def same(found: Any) -> None:
        for key, value in content.items():
            if isinstance(value, torch.Tensor):
                read = found[key].read()
                assert read.dtype == value.dtype
                assert torch.equal(read, value)
        assert found["size"] == (1, 2)
        assert (found["dtype"], found["device"]) == (torch.float16, "cpu")
        assert found["numbers"] == content["numbers"]
        assert found["order"] == content["order"]

    path = tmp_path / "file"
    for zipped in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        same(unpickler.load(path))
    for protocol in (2, 3, 4, 5):
        path.write_bytes(
            pickle.dumps({**content, "np": np.float64(2.5), "array": np.arange(6.0).reshape(2, 3)}, protocol)
        )
        found = unpickler.load(path)
        same(found)
        assert found["np"] == 2.5
        assert (found["array"].value == np.arange(6.0).reshape(2, 3)).all()
    with pytest.raises(CheckpointError, match="refused: numbers of NumPy's type 'O8'"):
        path.write_bytes(pickle.dumps(np.array([object], dtype=object), 4))
        unpickler.load(path)


def test_archives_are_held_to_their_sizes(tmp_path) -> None:
    """A storage that is shorter than its tensors say, and another byte order."""
    import zipfile

    torch.save({"x": torch.zeros(100)}, tmp_path / "good.pt")
    for name, changed in (("data/0", b"\0" * 8), ("byteorder", b"big")):
        with (
            zipfile.ZipFile(tmp_path / "good.pt") as source,
            zipfile.ZipFile(tmp_path / "bad.pt", "w") as target,
        ):
            for entry in source.namelist():
                target.writestr(entry, changed if entry.endswith(name) else source.read(entry))
        with pytest.raises(CheckpointError, match=r"bytes for 100 elements|big-endian"):
            unpickler.load(tmp_path / "bad.pt")


def test_source_text_is_never_read(tmp_path) -> None:
    """Not even looked at: it may be anything."""
    for source in ("raise SystemExit", 7, None, b"\xff"):
        top = persistent("Nothing", {"_modules": {}}, source)  # type: ignore[arg-type]
        write_snapshot(tmp_path / "x.pkl", top)
        assert unpickler.load(tmp_path / "x.pkl")["ema"].name == "Nothing"
