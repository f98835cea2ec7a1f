"""The options of the command as keyword arguments.

Every name is that of the option with ``-`` as ``_``, but for the three that negate: ``inline``, ``hoist`` and ``pin``
are plain truth values.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

if TYPE_CHECKING:
    from typing import Literal, TypedDict

    StrPath = Union[str, "os.PathLike[str]"]
    Init = Literal["batch-average", "first-batch", "running-average", "svd", "random", "uniform", "none"]

    class SourceOptions(TypedDict, total=False):
        """What every command that takes a training graph wants to know of it."""

        loss: Optional[str]  # the loss output, where it cannot be told
        grad: Optional[Mapping[str, str]]  # gradient outputs by parameter, where they cannot be told
        dims: Optional[Mapping[str, int]]  # sizes of symbolic dimensions
        allow_unknown_fields: bool  # drop fields newer than the tool's schema
        html: Optional[StrPath]  # also write the report as HTML
        verbose: bool  # say on standard error what is done
        groups: Optional[int]  # sub-tokens per token; 32
        sub_token_size: Optional[int]  # instead of groups

    class OptimizeOptions(SourceOptions, total=False):
        """Keyword arguments of `optimize`; absent or None is the command's default."""

        init: Optional[Init]  # kind of direction
        scale: Optional[float]  # factor on approximated gradients
        storage: Optional[Literal["activation", "f16", "bf16", "int8"]]
        rank: Optional[int]  # directions for each sub-token
        directions: Optional[Literal["shared", "group"]]
        decay: Optional[float]  # of a running average
        gradients: Optional[Literal["full", "factored"]]
        adapter: Optional[Literal["f32", "bf16", "int4"]]
        seed: Optional[int]  # of random directions
        select: Optional[Literal["freeable", "paper", "value", "down", "all"]]
        include: Optional[Union[str, Sequence[str]]]  # regular expressions on names of parameters
        exclude: Optional[Union[str, Sequence[str]]]
        min_bytes: Optional[int]  # leave smaller tensors alone
        plan: Optional[StrPath]  # settings by layer, TOML
        emit_plan: Optional[StrPath]  # write the settings used
        budget: Union[int, str, None]  # bytes that a step may hold, as in "6GiB"
        target_saving: Union[float, str, None]  # part of the peak to be saved, as in 0.4 or "40%"
        max_slowdown: Union[float, str, None]  # part of its time that a step may take longer
        min_cosine: Optional[float]  # compress no layer whose gradient would be further from the exact one
        fidelity: Optional[StrPath]  # a report of inspect with data, for min_cosine
        exact: bool  # compress nothing; False
        recompute: Optional[Literal["none", "cheap", "layers", "sqrt"]]
        profile: Optional[StrPath]  # what `run --profile` measured of this machine
        inline: bool  # standard operators instead of functions; False
        hoist: bool  # move work into the forward half; True
        pin: bool  # force the schedule; True
        external_data: Optional[Literal["keep", "copy", "inline"]]
        verify_each: bool  # check the graph after every pass
        print_after: Optional[str]  # print the graph after a pass, to standard error
        time_passes: bool  # print times of passes, to standard error

    class InspectOptions(SourceOptions, total=False):
        """Keyword arguments of `inspect`; absent or None is the command's default."""

        sweep: Union[bool, Sequence[int], None]  # other numbers of groups; True: powers of two
        data: Optional[StrPath]  # measure fidelity on these samples, npz or safetensors
        batch: Optional[int]  # samples in the batch
        params: Optional[StrPath]  # values of parameters
        init_params: Optional[Literal["normal", "kaiming"]]
        seed: Optional[int]  # of drawn parameters

else:
    # Type checkers alone read them: `typing` of Python 3.9 has no such thing for keyword arguments.
    OptimizeOptions = InspectOptions = Dict[str, Any]


def path_argument(path: StrPath) -> str:
    """A path as the command takes it: `-` is a file of that name here, not a stream.

    Raises:
        TypeError: it is no path.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"expected a path of type str, found {type(text).__name__}")
    return os.path.join(os.curdir, text) if text == "-" else text


def _value(option: str) -> Callable[[Any], List[str]]:
    return lambda value: [f"{option}={value}"]


def _path(option: str) -> Callable[[Any], List[str]]:
    return lambda value: [f"{option}={path_argument(value)}"]


def _flag(option: str) -> Callable[[Any], List[str]]:
    return lambda value: [option] if value else []


def _negated(option: str) -> Callable[[Any], List[str]]:
    return lambda value: [] if value else [option]


def _pairs(option: str) -> Callable[[Any], List[str]]:
    return lambda value: [f"{option}={name}={size}" for name, size in value.items()]


def _each(option: str) -> Callable[[Any], List[str]]:
    return lambda value: [f"{option}={item}" for item in ([value] if isinstance(value, str) else value)]


def _sweep(value: Any) -> List[str]:
    if value is True:
        return ["--sweep"]
    return [f"--sweep={','.join(map(str, value))}"] if value else []


_SOURCE: Dict[str, Callable[[Any], List[str]]] = {
    "loss": _value("--loss"),
    "grad": _pairs("--grad"),
    "dims": _pairs("--dim"),
    "allow_unknown_fields": _flag("--allow-unknown-fields"),
    "html": _path("--html"),
    "verbose": _flag("--verbose"),
    "groups": _value("--groups"),
    "sub_token_size": _value("--sub-token-size"),
}
OPTIMIZE: Dict[str, Callable[[Any], List[str]]] = {
    **_SOURCE,
    **{
        name: _value("--" + name.replace("_", "-"))
        for name in (
            *("init", "scale", "storage", "rank", "directions", "decay", "gradients", "adapter"),
            *("seed", "select", "min_bytes", "external_data", "print_after"),
            *("budget", "target_saving", "max_slowdown", "min_cosine", "recompute"),
        )
    },
    "include": _each("--include"),
    "exclude": _each("--exclude"),
    "plan": _path("--plan"),
    "emit_plan": _path("--emit-plan"),
    "fidelity": _path("--fidelity"),
    "profile": _path("--profile"),
    "exact": _flag("--exact"),
    "inline": _flag("--inline"),
    "hoist": _negated("--no-hoist"),
    "pin": _negated("--no-pin"),
    "verify_each": _flag("--verify-each"),
    "time_passes": _flag("--time-passes"),
}
INSPECT: Dict[str, Callable[[Any], List[str]]] = {
    **_SOURCE,
    "sweep": _sweep,
    "data": _path("--data"),
    "batch": _value("--batch"),
    "params": _path("--params"),
    "init_params": _value("--init-params"),
    "seed": _value("--seed"),
}
# What these print on standard error was asked for.
CHATTY = ("verbose", "time_passes", "print_after")


def arguments(
    function: str, known: Mapping[str, Callable[[Any], List[str]]], options: Mapping[str, Any]
) -> Tuple[List[str], bool]:
    """The command's arguments for keyword arguments, and whether they ask it to talk.

    Raises:
        TypeError: there is no such option.
    """
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"{function}() got an unexpected keyword argument {unknown[0]!r}")
    words = [word for name, value in options.items() if value is not None for word in known[name](value)]
    return words, any(options.get(name) for name in CHATTY)
