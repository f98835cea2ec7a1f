"""The report (schema ``velora-report/1``) as data classes; docs/report.md defines every key.

A size with an open dimension is None, and beside it ``<name>_symbolic`` holds the expression. Keys that this version
does not know are kept in ``extra``; ``Report.raw`` is the whole object as it came.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Type, TypeVar, Union

from ._binary import VeloraError

Dim = Union[int, str]  # a number, or an expression over the graph's symbols
Amount = Optional[int]
Symbolic = Optional[str]
R = TypeVar("R", bound="Record")

SCHEMA = "velora-report/1"


@dataclass(frozen=True)
class Record:
    """An object of the report: its keys are the fields, and those that the command leaves out have default values."""

    extra: Mapping[str, Any]  # keys that are not fields

    @classmethod
    def parse(cls: Type[R], value: Any) -> R:
        """From a decoded JSON object.

        Raises:
            VeloraError: it is no object, or a key is missing.
        """
        if not isinstance(value, dict):
            raise VeloraError(f"the report has {value!r} where a {cls.__name__} was expected")
        known: Dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name == "extra":
                continue
            if field.name in value:
                known[field.name] = cls.field_value(field.name, value[field.name])
            elif field.default is field.default_factory is dataclasses.MISSING:
                raise VeloraError(f"the report's {cls.__name__} has no key {field.name!r}: is the command of another version?")
        return cls(extra={k: v for k, v in value.items() if k not in known}, **known)

    @classmethod
    def field_value(cls, name: str, value: Any) -> Any:
        """A field from what stands in the JSON."""
        part = _PARTS.get((cls.__name__, name))
        if part is None or value is None:
            return value
        return [part.parse(item) for item in value] if isinstance(value, list) else part.parse(value)


@dataclass(frozen=True)
class Fidelity(Record):
    """How near an approximate gradient is to the exact one."""

    cosine: Optional[float]
    norm_ratio: Optional[float]


@dataclass(frozen=True)
class Reader(Record):
    """A node by name and operator."""

    node: str
    op: str


@dataclass(frozen=True)
class KeptAlive(Reader):
    """A backward reader that still needs a tensor, and why."""

    why: str


@dataclass(frozen=True)
class Totals(Record):
    """Sums over the graph; bytes, floating-point operations and counts."""

    saved_bytes_before: Amount
    saved_bytes_after: Amount
    peak_bytes_before: Amount
    peak_bytes_after: Amount
    weight_grad_flops_before: Amount
    weight_grad_flops_after: Amount
    counted_per_layer_bytes_before: Amount
    counted_per_layer_bytes_after: Amount
    parameter_bytes_before: Amount
    parameter_bytes_after: Amount
    gradient_bytes_before: Amount
    gradient_bytes_after: Amount
    adamw_bytes_before: Amount
    adamw_bytes_after: Amount
    step_bytes_before: Amount
    step_bytes_after: Amount
    sites: int
    sites_rewritten: int
    saved_bytes_before_symbolic: Symbolic = None
    saved_bytes_after_symbolic: Symbolic = None
    peak_bytes_before_symbolic: Symbolic = None
    peak_bytes_after_symbolic: Symbolic = None
    weight_grad_flops_before_symbolic: Symbolic = None
    weight_grad_flops_after_symbolic: Symbolic = None
    counted_per_layer_bytes_before_symbolic: Symbolic = None
    counted_per_layer_bytes_after_symbolic: Symbolic = None
    parameter_bytes_before_symbolic: Symbolic = None
    parameter_bytes_after_symbolic: Symbolic = None
    gradient_bytes_before_symbolic: Symbolic = None
    gradient_bytes_after_symbolic: Symbolic = None
    adamw_bytes_before_symbolic: Symbolic = None
    adamw_bytes_after_symbolic: Symbolic = None
    step_bytes_before_symbolic: Symbolic = None
    step_bytes_after_symbolic: Symbolic = None
    fidelity: Optional[Fidelity] = None


@dataclass(frozen=True)
class Layer(Record):
    """A weight-gradient contraction and what became of it."""

    param: str
    kind: str
    node: str
    activation: str
    shape: Optional[List[Dim]]
    dtype: Optional[str]
    decision: str
    reason: str
    message: str
    groups: Optional[int]
    sub_token_size: Optional[int]
    init: Optional[str]
    gradient: Optional[str]
    saved_bytes_before: Amount
    saved_bytes_after: Amount
    freed_bytes: Amount
    kept_alive_by: List[KeptAlive]
    saved_bytes_before_symbolic: Symbolic = None
    saved_bytes_after_symbolic: Symbolic = None
    freed_bytes_symbolic: Symbolic = None
    fidelity: Optional[Fidelity] = None

    @property
    def rewritten(self) -> bool:
        """Whether its gradient is computed from the compressed activation."""
        return self.decision == "rewritten"


@dataclass(frozen=True)
class Hoisted(Record):
    """A piece of backward work that moved into the forward half."""

    nodes: List[Reader]
    tensor: str
    bytes_before: Amount
    bytes_after: Amount
    unlocked: List[str]
    bytes_before_symbolic: Symbolic = None
    bytes_after_symbolic: Symbolic = None


@dataclass(frozen=True)
class Saved(Record):
    """A saved activation, before the rewrite."""

    tensor: str
    shape: Optional[List[Dim]]
    dtype: Optional[str]
    bytes: Amount
    readers: List[Reader]
    rewritable: bool
    bytes_symbolic: Symbolic = None


@dataclass(frozen=True)
class Preset(Record):
    """What a choice of `select` would do."""

    preset: str
    sites_rewritten: int
    saved_bytes_after: Amount
    freed_bytes: Amount
    counted_per_layer_bytes: Amount
    saved_bytes_after_symbolic: Symbolic = None
    freed_bytes_symbolic: Symbolic = None
    counted_per_layer_bytes_symbolic: Symbolic = None


@dataclass(frozen=True)
class Trial(Record):
    """What another number of groups would do."""

    groups: int
    sites_rewritten: int
    saved_bytes_after: Amount
    cosine: Optional[float]
    norm_ratio: Optional[float]
    layers: List[Dict[str, Any]]
    saved_bytes_after_symbolic: Symbolic = None


@dataclass(frozen=True)
class Report(Record):
    """What the command found and did."""

    schema: str
    tool_version: str
    model: str
    dims: Dict[str, int]
    groups_default: Optional[int]
    totals: Totals
    layers: List[Layer]
    hoisted: List[Hoisted]
    saved: List[Saved]
    presets: List[Preset] = dataclasses.field(default_factory=list)
    sweep: List[Trial] = dataclasses.field(default_factory=list)
    data: Optional[Dict[str, Any]] = None
    timeline: Optional[Dict[str, Any]] = None
    plan: Optional[Dict[str, Any]] = None  # the plan of the whole step, where one was asked for
    raw: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_json(cls, text: Union[str, bytes]) -> Report:
        """From what ``--json`` writes.

        Raises:
            VeloraError: it is no report of this schema.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise VeloraError(f"the report is no JSON: {error}") from error
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema != SCHEMA:
            raise VeloraError(f"the report has the schema {schema!r}, expected {SCHEMA!r}")
        return dataclasses.replace(cls.parse(value), raw=value)

    @property
    def rewritten(self) -> List[Layer]:
        """The layers that were rewritten."""
        return [layer for layer in self.layers if layer.rewritten]


_PARTS: Dict[Any, Type[Record]] = {
    ("Totals", "fidelity"): Fidelity,
    ("Layer", "fidelity"): Fidelity,
    ("Layer", "kept_alive_by"): KeptAlive,
    ("Hoisted", "nodes"): Reader,
    ("Saved", "readers"): Reader,
    ("Report", "totals"): Totals,
    ("Report", "layers"): Layer,
    ("Report", "hoisted"): Hoisted,
    ("Report", "saved"): Saved,
    ("Report", "presets"): Preset,
    ("Report", "sweep"): Trial,
}
