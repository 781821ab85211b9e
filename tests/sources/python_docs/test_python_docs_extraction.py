"""The syntax tree says what the living object says: docstrings and parameters against import and inspect."""

import ast
import contextlib
import importlib
import inspect
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.sources.python_docs.extraction import Item, NotParsed, extract, may_have_docstrings

STANDARD_MODULES = ("json.decoder", "textwrap", "argparse", "collections", "fractions", "pathlib", "statistics", "ast")


def of(source: str, module: str = "package.module") -> dict[str, Item]:
    return {item.name.removeprefix(f"{module}."): item for item in extract(source.encode("utf-8"), module).items}


def living_object(module: types.ModuleType, path: str) -> object:
    found: object = module
    for name in path.split("."):
        found = inspect.getattr_static(found, name)
    return found.__func__ if isinstance(found, (staticmethod, classmethod)) else found


def written_in(module: types.ModuleType, found: object) -> bool:
    if isinstance(found, type):
        return any(written_in(module, part) for part in vars(found).values() if not isinstance(part, type))
    function = found.fget if isinstance(found, property) else found
    return isinstance(function, types.FunctionType) and function.__code__.co_filename == module.__file__


@pytest.mark.parametrize("name", STANDARD_MODULES)
def test_docstrings_of_a_standard_module_are_those_of_the_imported_objects(name: str):
    module = importlib.import_module(name)
    extracted = extract(Path(module.__file__).read_bytes(), name)
    assert extracted.docstring == (inspect.cleandoc(module.__doc__).strip() if module.__doc__ else "")
    compared = 0
    for item in extracted.items:
        path = item.name.removeprefix(f"{name}.")
        try:
            found = living_object(module, path)
        except AttributeError:
            continue  # deleted again by the module, or defined for another platform
        if written_in(module, found):  # not replaced by a C implementation
            assert item.docstring == inspect.cleandoc(found.__doc__).strip(), path
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("name", STANDARD_MODULES)
def test_parameters_of_a_standard_module_are_those_that_inspect_sees(name: str):
    module = importlib.import_module(name)
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    compared = 0
    for item in extract(Path(module.__file__).read_bytes(), name).items:
        path = item.name.removeprefix(f"{name}.")
        if item.kind not in ("function", "method"):
            continue
        found = inspect.getattr_static(module, path.split(".")[0], None)
        for part in path.split(".")[1:]:
            found = inspect.getattr_static(found, part, None)
        static = isinstance(found, staticmethod) and not path.endswith(".__new__")
        found = getattr(found, "__func__", found)
        if not isinstance(found, types.FunctionType) or found.__module__ != name or hasattr(found, "__wrapped__"):
            continue
        seen = [stars.get(p.kind, "") + p.name for p in inspect.signature(found).parameters.values()]
        assert list(item.parameters) == (seen[1:] if item.kind == "method" and not static else seen), path
        compared += 1
    assert compared >= 1


ARGUMENTS = st.sampled_from(["a", "bb", "self_", "naïve", "x1"])
DEFAULTS = st.sampled_from(
    ["1", "-2.5e3", "'é'", '"""a\nb"""', "None", "(1,\n     2)", "f(x, *y)", "{'a': [1]}", "lambda q: q"]
)


@st.composite
def parameter_lists(draw: st.DrawFn) -> str:
    names = draw(st.lists(ARGUMENTS, unique=True, max_size=5))
    shown, defaults_began = [], False
    for name in names:
        defaults_began = defaults_began or draw(st.booleans())
        annotation = draw(st.sampled_from(["", ": int", ": dict[str, 'é']"]))
        shown.append(f"{name}{annotation}" + (f" = {draw(DEFAULTS)}" if defaults_began else ""))
    if draw(st.booleans()) and shown:
        shown.insert(draw(st.integers(1, len(shown))), "/")
    if draw(st.booleans()):
        shown += ["*rest", "k1=3", "k2"]
    elif draw(st.booleans()):
        shown += ["*", "k3", "k4=''"]
    return ", ".join(shown + (["**options"] if draw(st.booleans()) else []))


@given(parameter_lists(), st.sampled_from(["", " -> 'list[é]'"]))
def test_a_written_signature_parses_back_to_the_same_parameters(parameters: str, returns: str):
    source = f"é = 1\ndef function({parameters}){returns}:\n    '''Words.'''\n"
    item = of(source)["function"]
    wanted = ast.parse(source).body[1]
    full = ast.parse(f"{item.header.replace('package.module.', '')}: pass").body[0]
    assert ast.dump(full.args) == ast.dump(wanted.args)
    assert (full.returns is None) == (wanted.returns is None)
    for argument in ast.walk(wanted.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    assert ast.dump(ast.parse(f"{item.signature}: pass").body[0].args) == ast.dump(wanted.args)


def test_defaults_that_are_long_or_cannot_be_written_become_dots():
    numbers = ", ".join(map(str, range(60)))
    nested = "-" * 80 + "1"
    chain = "+".join(["a"] * 600)
    item = of(f"def f(a=[{numbers}], b=(1,  # one\n 2), c={nested}, d={chain}):\n    'Words.'")["f"]
    assert item.signature == "def f(a=..., b=(1, 2), c=..., d=...)"


def test_only_reachable_names_are_items():
    items = of('''
"""The module."""
def outer():
    """Outer."""
    def inner():
        """Not API."""
class Thing(Base, metaclass=Meta):
    """A thing."""
    def method(self, x): """Does it."""
    @staticmethod
    def static(x): """No self."""
    @classmethod
    def made(cls, x): """From a class."""
    @functools.cached_property
    def size(self): """Its size."""
    @size.setter
    def size(self, value): """Not the first docstring."""
    class Part:
        """A part."""
        async def fetch(self, *urls): """Fetches."""
try:
    import fast
except ImportError:
    if True:
        def fallback(): """Slow."""
    else:
        def fallback(): """Never seen."""
else:
    with fast.lock:
        def quick(): """Fast."""
def silent(): pass
''')
    assert {name: item.kind for name, item in items.items()} == {
        "outer": "function", "Thing": "class", "Thing.method": "method", "Thing.static": "method",
        "Thing.made": "method", "Thing.size": "property", "Thing.Part": "class", "Thing.Part.fetch": "method",
        "fallback": "function", "quick": "function",
    }  # fmt: skip
    assert items["Thing"].signature == "class Thing(Base)"
    assert items["Thing"].header == "class package.module.Thing(Base)"
    assert items["Thing.size"].docstring == "Its size."
    assert items["fallback"].docstring == "Slow."
    assert (
        items["Thing.static"].parameters == items["Thing.made"].parameters == items["Thing.method"].parameters == ("x",)
    )
    assert items["Thing.Part.fetch"].parameters == ("*urls",)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"def f(:\n    '''x'''", "SyntaxError"),
        (b"print 'python 2'  # '''", "SyntaxError"),
        (b"'''a\x00b'''", None),
        (b"# coding: no-such-code\n'''x'''", "SyntaxError"),
        (b"'''\xff\xfe'''", "SyntaxError"),
        (b"'''x'''\n" + b"(" * 5000, "SyntaxError"),
        (b"'''x'''\nx = " + b"-" * 100_000 + b"1", None),
    ],
)
def test_a_file_that_does_not_parse_names_its_reason(source: bytes, reason: str | None):
    with pytest.raises(NotParsed) as caught:
        extract(source, "broken")
    assert reason is None or str(caught.value) == reason


@given(st.binary(max_size=200))
def test_no_bytes_whatever_raise_anything_else(data: bytes):
    with contextlib.suppress(NotParsed):
        extract(b"'''" + data, "random")


def test_the_declared_encoding_is_obeyed():
    source = "# -*- coding: latin-1 -*-\ndef f(é='ü', n=(1,\n  2)):\n    '''Größe.'''\n".encode("latin-1")
    item = extract(source, "m").items[0]
    assert (item.docstring, item.signature) == ("Größe.", "def f(é='ü', n=(1, 2))")


def test_a_docstring_always_fits_into_utf8():
    item = of("def f():\n    'Half \\ud800 a pair and a \\x00.'")["f"]
    assert item.docstring.encode("utf-8") == b"Half ? a pair and a ."


def test_nothing_is_executed_and_no_warning_escapes(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    marker = tmp_path / "executed"
    source = (
        f"open({str(marker)!r}, 'w')\ndef f(x=open({str(marker)!r}, 'w')):\n    '''An \\escape \\d.'''\nx = 1 is 1\n"
    )
    assert extract(source.encode(), "m").items
    assert not marker.exists()
    assert not recwarn.list


def test_the_cheap_check_skips_only_files_without_triple_quotes():
    assert not may_have_docstrings(b"TABLE = [1, 2, 3]\n")
    assert may_have_docstrings(b"'''x'''") and may_have_docstrings(b'"""x"""')
