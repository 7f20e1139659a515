"""The one reader of settings: every type from text, JSON and TOML, right or an ArgumentError that names the setting."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfgm_fast.cli.options import assignments
from pfgm_fast.errors import ArgumentError
from pfgm_fast.methods import METHODS
from pfgm_fast.presets import PRESETS
from pfgm_fast.training import RunConfig, TrainConfig
from pfgm_fast.training.config import read_file
from pfgm_fast.training.settings import fields_of, merged


def _one(pair: str) -> object:
    """The value of a single assignment."""
    value: object = assignments([pair])
    while isinstance(value, dict):
        (value,) = value.values()
    return value


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        *((f"train.flip={text}", False) for text in ("False", "false", "no", "off", "0", "NO")),
        *((f"train.compile={text}", True) for text in ("True", "yes", "on", "1")),
        ("method.name=pfgmpp", "pfgmpp"),
        ("train.lr=1e-4", 1e-4),
        ("train.lr=1", 1.0),
        ("train.steps=1e3", 1000),
        ("train.steps=1_000", 1000),
        ("train.field_charges=none", None),
        ("train.field_charges=12", 12),
        ("train.ema=0.9,0.99", (0.9, 0.99)),
        ("train.ema=0.9", (0.9,)),
        ("network.multipliers=(1,2,2)", (1, 2, 2)),
        ("network.multipliers=[1, 2]", (1, 2)),
        ("network.multipliers=1,2,", (1, 2)),
        ("network.attention=()", ()),
        ("train.precision=bfloat16", "bfloat16"),
        ("data=no", "no"),
        ("data=1", "1"),
        ("data=a=b", "a=b"),
        ("size=16", 16),
        ("size=16x16", 16),
        ("size=16x20", (16, 20)),
        ("size=none", None),
        ("method.sigma=0.02", 0.02),
        ("method=none", None),
    ],
)
def test_text_is_read_by_the_settings_type(pair: str, value: object) -> None:
    found = _one(pair)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("train.flip=maybe", r"train\.flip must be true or false \(bool\); got 'maybe'"),
        ("train.steps=1.5", r"train\.steps must be an integer \(int\); got '1\.5'"),
        ("train.lr=fast", r"train\.lr must be a number \(float\); got 'fast'"),
        ("train.lr=nan", r"train\.lr must be a number"),
        ("train.ema=a,b", r"train\.ema must be numbers, such as"),
        ("network.multipliers=(1,2", r"network\.multipliers must be integers"),
        ("train.precision=half", r"train\.precision must be one of float32, bfloat16, auto; got 'half'"),
        ("train.field_charges=all", r"train\.field_charges must be an integer \(int\) or none"),
        ("train.learning_rate=1", r"train: unknown setting 'learning_rate'"),
        ("train.filp=1", r"unknown setting 'filp' \(did you mean 'flip'\?\)"),
        ("methods.sigma=1", r"unknown setting 'methods' \(did you mean 'method'\?\)"),
        ("method.aug_dim=3", r"method: unknown setting 'aug_dim'"),
        ("method.name=pfg", r"method\.name must be one of .*did you mean 'pfgm'"),
        ("train=3", r"train is a group of settings"),
        ("train.lr.x=3", r"train\.lr is one setting"),
        ("size=0", r"size must be a size N or HxW"),
        ("nonsense", r"--set takes name=value"),
    ],
)
def test_what_does_not_fit_names_setting_type_and_value(pair: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        assignments([pair])


@pytest.mark.parametrize(
    "values",
    [
        {"train": {"flip": "False"}},
        {"train": {"flip": 1}},
        {"train": {"steps": True}},
        {"train": {"steps": 1.5}},
        {"train": {"steps": "7"}},
        {"train": {"lr": "1e-4"}},
        {"train": {"ema": 0.9}},
        {"train": {"precision": 32}},
        {"train": []},
        {"network": {"multipliers": "12"}},
        {"method": {"name": ["pfgm"]}},
        {"method": {"sigma": "0.1"}},
        {"method": {"name": "pfgm", "sigma": -1.0}},
        {"data": 3},
        {"colour": 1},
    ],
)
def test_typed_values_are_checked_too(values: dict) -> None:
    with pytest.raises(ArgumentError):
        RunConfig.from_dict({"data": "digits", **values})


def test_the_class_itself_checks_types() -> None:
    for bad in ({"flip": "False"}, {"steps": "3"}, {"lr": None}, {"seed": 2**70}, {"compile": "no"}):
        with pytest.raises(ArgumentError, match=next(iter(bad))):
            TrainConfig(**bad)  # type: ignore[arg-type]
    assert TrainConfig(lr=1, ema=[0.5]).ema == (0.5,)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_takes_every_setting_of_its_method(name: str) -> None:
    """method.sigma=… on each preset, also where the method is left to the data; another name begins anew."""
    base = PRESETS[name].to_dict()
    method = PRESETS[name].method or {"name": "pfgm"}
    setting, kept = ("sigma", "m_exp") if method["name"] == "pfgm" else ("rho", "sigma_max")
    changed = RunConfig.from_dict(merged(base, assignments([f"method.{setting}=0.02"], base)))
    assert changed.method is not None
    assert (changed.method["name"], changed.method[setting]) == (method["name"], 0.02)
    assert changed.method.get(kept) == method.get(kept)
    other = assignments(["method.beta_min=0.2", "method.name=vp"], base)
    assert RunConfig.from_dict(merged(base, other)).method == {"name": "vp", "beta_min": 0.2}
    assert RunConfig.from_dict(json.loads(json.dumps(base))) == PRESETS[name]


def test_a_file_of_settings(tmp_path: Path) -> None:
    toml, plain = tmp_path / "run.toml", tmp_path / "run.json"
    toml.write_text(
        'preset = "mnist"\nsize = "8x12"\n[train]\nsteps = 7\nema = [0.5]\n[method]\nsigma = 0.02\n'
    )
    plain.write_text(
        json.dumps(
            {
                "preset": "mnist",
                "size": "8x12",
                "train": {"steps": 7, "ema": [0.5]},
                "method": {"sigma": 0.02},
            }
        )
    )
    assert read_file(toml) == read_file(plain)
    config = RunConfig.from_dict({"data": "x", **read_file(toml)})
    assert (config.size, config.train.steps, config.train.ema) == ((8, 12), 7, (0.5,))
    for path, content in ((toml, "steps = "), (toml, '{"a":'), (plain, '{"a":'), (plain, "[1]")):
        path.write_text(content)
        with pytest.raises(ArgumentError, match="--config"):
            read_file(path)
    with pytest.raises(ArgumentError, match="cannot be read"):
        read_file(tmp_path / "none.toml")


def _names() -> list[str]:
    names = ["data", "size", "preset", "method", "train", "network", "dataset"]
    names += [f"train.{name}" for name in fields_of(TrainConfig)]
    names += [f"network.{name}" for name in fields_of(type(PRESETS["digits"].network))]
    return names + [f"method.{name}" for kind in METHODS.values() for name in ("name", *fields_of(kind))]


TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "none", "True", "no", "inf", "-inf", "nan", "1e400", "9" * 5000, "0", "-1", "1.5", "(", "()", "[1,2", "{"]),
    st.sampled_from(["{}", '{"steps": 1}', '{"name": []}', "[" * 5000, '{"a":' * 3000, "１２", "1,,2", "(1,(2,3))", *METHODS]),
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.integers(-3, 99), max_size=4).map(str),
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
PLENTY = settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))


@PLENTY
@given(st.lists(st.tuples(st.sampled_from(_names()) | st.text(max_size=8), TEXTS), min_size=1, max_size=3))
def test_any_text_is_a_config_of_the_right_types_or_one_error(pairs: list[tuple[str, str]]) -> None:
    base = PRESETS["mnist"].to_dict()
    try:
        config = RunConfig.from_dict(merged(base, assignments([f"{n}={t}" for n, t in pairs], base)))
    except ArgumentError as error:
        assert len(str(error)) < 1200
        return
    _right(config)


@PLENTY
@given(st.dictionaries(st.sampled_from(_names()), JSON, min_size=1, max_size=3))
def test_any_json_is_a_config_of_the_right_types_or_one_error(values: dict) -> None:
    nested: dict = {"data": "digits"}
    for name, value in values.items():
        group, _, key = name.partition(".")
        if key and isinstance(nested.setdefault(group, {}), dict):
            nested[group][key] = value
        elif not key:
            nested[group] = value
    try:
        config = RunConfig.from_dict(nested)
    except ArgumentError:
        return
    _right(config)


def _right(config: RunConfig) -> None:
    """Of the annotated types, and the same after its file."""
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for field in dataclasses.fields(TrainConfig):
        value = getattr(config.train, field.name)
        kinds = {
            "bool": bool,
            "int": int,
            "float": float,
            "tuple[float, ...]": tuple,
            "int | None": (int, type(None)),
            "str | None": (str, type(None)),
            "float | None": (float, type(None)),
        }
        kind = kinds.get(str(field.type), str)
        assert isinstance(value, kind)
        assert kind is bool or not isinstance(value, bool)
