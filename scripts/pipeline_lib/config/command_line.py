"""The command line of a numbered script: the fields of its own section as flags, and five that all scripts share.

A stage that can scale out takes the fields of the section `scale_out` as flags too, such as `--engine slurm`.
`--optimizer.lr 3e-4` sets a nested field; `--max-steps` and `--max_steps` are the same flag; a boolean field answers to
`--flag` and `--no-flag`, as does a choice that has "on" and "off" in it. Only what the user typed overrides the YAML,
so a default can never undo a setting.
"""

import argparse
import difflib
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic.fields import FieldInfo

from pipeline_lib.stage.errors import UserError

from .base import PROJECT_ROOT, Section, alternatives
from .load import NEAR_ENOUGH, build, lay_over, leaves, load_config, parse_value
from .run import RunConfig

DEFAULT_CONFIG = PROJECT_ROOT / "configs" / "demo.yaml"


@dataclass(frozen=True)
class Options:
    """What the command line and the YAML say together.

    origins: where each value that is not a default came from, by dotted name; arguments: the flags that lead another
    script to the same run; typed_settings: the settings typed as flags, without which this script would make something
    else; own_arguments: these and its other flags typed, with which it goes on with the same work; extra: values of the
    flags that only this script has.
    """

    config: RunConfig
    origins: dict[str, str]
    run_folder: Path
    force: bool
    plan: bool
    arguments: str
    typed_settings: str
    own_arguments: str
    extra: dict[str, Any]


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows one spelling per flag: `--max_steps` answers to `--max-steps` too, and saying so each time is noise."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        shown = [option for option in action.option_strings if len(option) == 2 or option == action.option_strings[0]]
        return f"{', '.join(shown)} {self._format_args(action, action.dest)}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the flags")


def read_command_line(
    section: str,
    description: str,
    argv: list[str],
    extra_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    scales_out: bool = False,
) -> Options:
    """Parse the flags of the script that runs `section`. Raises UserError on unknown flags and bad values."""
    parser = _Parser(description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
    common = parser.add_argument_group("run")
    common.add_argument("--config", "-c", default=str(DEFAULT_CONFIG), metavar="YAML", help="the run's configuration")
    common.add_argument("--run-dir", metavar="FOLDER", help="where the run's outputs go (default: runs/<run name>)")
    common.add_argument("--force", action="store_true", help="run even if the outputs are up to date")
    common.add_argument("--plan", action="store_true", help="say what would be done and what it would cost; do nothing")
    common.add_argument("--seed", type=int, metavar="int", help="seed of every random choice (default: the YAML's)")
    if extra_arguments:
        extra_arguments(parser.add_argument_group("instead of running"))
    places: dict[str, str] = {}
    sections = {section: "settings of this stage"} | ({"scale_out": "who does the work"} if scales_out else {})
    for owner, title in sections.items():
        group = parser.add_argument_group(f"{title} (section `{owner}` of the YAML)")
        flags = _add_flags(group, RunConfig.model_fields[owner].annotation, "")
        places |= {name: f"{owner}.{name}" for name in flags}
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse(unknown[0], parser)
    values = vars(known)
    typed = {name: values.pop(name) for name in list(values) if name in places}
    shared = {name: values.pop(name) for name in ("config", "run_dir", "force", "plan", "seed")}
    return _assemble(places, shared, typed, values)


def _assemble(places: dict[str, str], shared: dict[str, Any], typed: dict[str, Any], extra: dict[str, Any]) -> Options:
    """Lay the typed flags over the YAML; places: the dotted name of the setting behind each flag."""
    config_path = Path(shared["config"])
    loaded = load_config(config_path)  # judged without the flags first, so that a flag cannot be blamed for the file
    merged, origins = dict(loaded.values), dict(loaded.origins)
    if typed:
        flags = {
            leaf: f"--{name}"
            for name, value in typed.items()
            for leaf in (places[name], *leaves(value, f"{places[name]}."))
        }
        merged, origins = lay_over(merged, origins, _nest({places[name]: typed[name] for name in typed}), flags)
    if shared["seed"] is not None:
        merged["seed"] = shared["seed"]
        origins["seed"] = "--seed"
    config = build(RunConfig, merged, [])
    run_folder = Path(shared["run_dir"]).resolve() if shared["run_dir"] else run_folder_of(config, config_path)
    arguments = run_arguments(config_path, run_folder if shared["run_dir"] else None)
    if shared["seed"] is not None:
        arguments += f" --seed {shared['seed']}"
    spelled = {name: _spell_value(value, _annotation_at(places[name])) for name, value in typed.items()}
    settings = _as_flags(spelled)
    own = settings + _as_flags({name: value for name, value in extra.items() if isinstance(value, str)})
    return Options(config, origins, run_folder, shared["force"], shared["plan"], arguments, settings, own, extra)


def _as_flags(values: dict[str, str]) -> str:
    return "".join(f" --{name} {shlex.quote(value)}" for name, value in values.items())


def _annotation_at(place: str) -> Any:
    """Return the type of the setting with this dotted name."""
    annotation: Any = RunConfig
    for name in place.split("."):
        annotation = annotation.model_fields[name].annotation
    return annotation


def _spell_value(value: Any, annotation: Any) -> str:
    """Return the text that the flag of a field of this type reads back as `value`."""
    as_it_is = isinstance(value, str) and (_is_text(annotation) or parse_value(value) == value)
    return value if as_it_is else json.dumps(value)


def run_arguments(config_path: Path, run_folder: Path | None) -> str:
    """Return the flags that lead a script to a run, with a space before; run_folder: where it lies, if elsewhere."""
    chosen = f" --run-dir {shlex.quote(_short(run_folder))}" if run_folder else ""
    return f" --config {shlex.quote(_short(config_path))}{chosen}"


def run_folder_of(config: RunConfig, config_path: Path) -> Path:
    """Return the default folder of a run: runs/ and the YAML's name, unless `run:` says otherwise."""
    return PROJECT_ROOT / "runs" / (config.run or config_path.stem)


def _short(path: Path) -> str:
    absolute = path.resolve()
    return str(absolute.relative_to(PROJECT_ROOT)) if absolute.is_relative_to(PROJECT_ROOT) else str(absolute)


def _nest(typed: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in typed.items():
        *parents, last = name.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested


def _add_flags(group: argparse._ArgumentGroup, section: type[Section], prefix: str) -> set[str]:
    """Add one flag per field below `section` and return their dotted names."""
    names: set[str] = set()
    for key, field in section.model_fields.items():
        name = f"{prefix}{key}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            names |= _add_flags(group, field.annotation, f"{name}.")
            continue
        names.add(name)
        spellings = list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))
        if (switch := _switch_values(field.annotation)) is not None:
            negative = [f"--no-{name.replace('_', '-')}"]
            group.add_argument(
                *spellings,
                dest=name,
                nargs="?",
                const=switch[0],
                type=parse_value,
                default=argparse.SUPPRESS,
                metavar="true|false" if switch[0] is True else _spell_type(field.annotation),
                help=_help(field),
            )
            group.add_argument(
                *negative,
                dest=name,
                action="store_const",
                const=switch[1],
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )
        else:
            reader = str if _is_text(field.annotation) else parse_value
            group.add_argument(
                *spellings,
                dest=name,
                type=reader,
                default=argparse.SUPPRESS,
                metavar=_spell_type(field.annotation),
                help=_help(field),
            )
    return names


def _help(field: FieldInfo) -> str:
    default = (
        "required"
        if field.is_required()
        else f"default: {_spell_default(field.get_default(call_default_factory=True))}"
    )
    text = " ".join((field.description or "").split())
    return f"{text} ({default})".replace("%", "%%")


def _spell_default(value: Any) -> str:
    if isinstance(value, Section):
        value = value.model_dump(mode="json")
    elif isinstance(value, list | tuple):
        value = [item.model_dump(mode="json") if isinstance(item, Section) else item for item in value]
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _switch_values(annotation: Any) -> tuple[Any, Any] | None:
    """Return what `--name` alone and `--no-name` mean: of a boolean, or of a choice that has "on" and "off"."""
    parts = alternatives(annotation)
    if parts == [bool]:
        return True, False
    if len(parts) == 1 and get_origin(parts[0]) is Literal and {"on", "off"} <= set(get_args(parts[0])):
        return "on", "off"
    return None


def _is_text(annotation: Any) -> bool:
    return annotation is str


def _spell_type(annotation: Any) -> str:
    spelled = []
    for part in alternatives(annotation):
        if get_origin(part) is Literal:
            spelled.append("|".join(str(choice) for choice in get_args(part)))
        else:
            spelled.append(getattr(part, "__name__", "value") if get_origin(part) is None else "[...]")
    return "|".join(spelled)


def _refuse(argument: str, parser: argparse.ArgumentParser) -> NoReturn:
    flag = argument.split("=")[0]
    if not flag.startswith("-"):
        raise UserError(f"unexpected argument {argument!r}; flags start with --, see {parser.prog} --help")
    known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    inside = [option for option in known if option.endswith(f".{flag.lstrip('-')}")]  # --lr for --optimizer.lr
    nearest = inside or difflib.get_close_matches(flag, known, n=1, cutoff=NEAR_ENOUGH)
    hint = f"; did you mean {nearest[0]}?" if nearest else f"; {parser.prog} --help lists the flags"
    raise UserError(f"unknown flag {flag}{hint}")
