"""Which fields of which settings sections does the code read? Answered from the source text, without running it.

What: that some `.name` is read somewhere says nothing about `PretrainSettings.name`; what counts is a read from a value
that is known to be of that section.
How: a small inference of classes over the syntax trees of all modules. A value's classes come from annotations of
parameters, attributes, properties and results, from assignments (`rules = settings.gopher`, `self._settings, x =
settings, y`), from loops over them, and through chains such as `run.settings.dedup.max_ram`. It is insensitive to the
order of statements: a name has the classes of all that is ever assigned to it in its function. `getattr` with a name
that is a literal, an element of a literal tuple, or an f-string (its holes match anything) is a read.
`stage.settings` is the section of the package that asks, because one Stage serves them all.
What does not count: validators, which judge a value and do nothing with it; and `model_dump(mode="json")`, which
records or compares settings. A plain `model_dump()` hands on every value, so it reads every field.
Cost: about a second for all of scripts/.
Trap: what the inference cannot follow is no read, so code that it misses makes a false alarm, never a false peace; an
annotation is the remedy.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

Key = tuple[str, str]
"""A class: its module and its name."""
Read = tuple[Key, str]
"""A class, and a regular expression for the names of the fields that are read from it."""

NOTHING: frozenset[Key] = frozenset()
_VALIDATORS = {"field_validator", "model_validator"}
_SAME = {"sorted", "list", "tuple", "set", "reversed", "iter", "next", "enumerate", "zip", "dict", "type", "min", "max"}
_SAME_METHODS = {"values", "items", "get", "pop", "copy", "model_copy", "model_validate", "model_construct"}


@dataclass(frozen=True)
class Binding:
    """What a name or attribute stands for: an annotation, a value, an item of a value, an instance, a definition."""

    kind: str
    node: ast.AST
    scope: "Scope"


@dataclass(eq=False)
class ClassInfo:
    """A class definition: what its attributes are bound to and which methods it has."""

    key: Key
    node: ast.ClassDef
    scope: "Scope"
    attributes: dict[str, list[Binding]] = field(default_factory=lambda: defaultdict(list))
    methods: dict[str, ast.FunctionDef] = field(default_factory=dict)


@dataclass(eq=False)
class Scope:
    """A module, a class body or a function; `body_of` and `method_of` are the class in the latter two."""

    module: str
    parent: "Scope | None" = None
    body_of: ClassInfo | None = None
    method_of: ClassInfo | None = None
    judges: bool = False
    bindings: dict[str, list[Binding]] = field(default_factory=lambda: defaultdict(list))


def _name_of(decorator: ast.expr) -> str:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


class Program:
    """The modules of a program, {dotted name: source text}, and what can be said about their values.

    packages: the names among them that are packages; own: the classes that `special` attributes have, given the module
    that asks, by (class, attribute).
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        packages: Iterable[str] = (),
        special: Mapping[tuple[Key, str], Callable[[str], Iterable[Key]]] | None = None,
    ):
        self._packages, self._special = set(packages), dict(special or {})
        self._modules: dict[str, Scope] = {}
        self._imports: dict[str, dict[str, tuple[str, str]]] = {}
        self._classes: dict[Key, ClassInfo] = {}
        self._attributes: list[tuple[ast.Attribute, Scope]] = []
        self._calls: list[tuple[ast.Call, Scope]] = []
        self._known: dict[int, frozenset[Key]] = {}
        self._open: set[int] = set()
        self._cut = False
        for name, text in sources.items():
            self._modules[name], self._imports[name] = Scope(name), {}
            self._collect(ast.parse(text), self._modules[name])

    # -- what is written where -------------------------------------------------------------------------------------

    def _collect(self, node: ast.AST, scope: Scope) -> None:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    self._collect_function(child, scope)
                    continue
                case ast.ClassDef():
                    info = ClassInfo((scope.module, child.name), child, scope)
                    self._classes[info.key] = info
                    scope.bindings[child.name].append(Binding("class", child, scope))
                    self._collect(child, Scope(scope.module, scope, body_of=info))
                    continue
                case ast.ImportFrom():
                    target = self._target(child, scope.module)
                    names = {alias.asname or alias.name: (target, alias.name) for alias in child.names}
                    self._imports[scope.module].update(names)
                case ast.Assign():
                    for target in child.targets:
                        self._bind(target, "value", child.value, scope)
                case ast.AnnAssign():
                    self._bind(child.target, "annotation", child.annotation, scope)
                case ast.NamedExpr():
                    self._bind(child.target, "value", child.value, scope)
                case ast.For() | ast.AsyncFor() | ast.comprehension():
                    self._bind(child.target, "item", child.iter, scope)
                case ast.withitem() if child.optional_vars is not None:
                    self._bind(child.optional_vars, "value", child.context_expr, scope)
                case ast.Attribute() if isinstance(child.ctx, ast.Load):
                    self._attributes.append((child, scope))
                case ast.Call():
                    self._calls.append((child, scope))
            self._collect(child, scope)

    def _collect_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> None:
        decorators = {_name_of(decorator) for decorator in node.decorator_list}
        method_of = scope.body_of or scope.method_of
        inner = Scope(scope.module, scope, None, method_of, scope.judges or bool(decorators & _VALIDATORS))
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in arguments:
            if argument.annotation is not None:
                inner.bindings[argument.arg].append(Binding("annotation", argument.annotation, scope))
        if scope.body_of is not None:
            scope.body_of.methods[node.name] = node
            if arguments and "staticmethod" not in decorators:
                inner.bindings[arguments[0].arg].append(Binding("instance", scope.body_of.node, scope))
        else:
            scope.bindings[node.name].append(Binding("function", node, scope))
        self._collect(node, inner)

    def _target(self, node: ast.ImportFrom, module: str) -> str:
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        above = parts[: len(parts) - node.level + (module in self._packages)]
        return ".".join([*above, node.module] if node.module else above)

    def _bind(self, target: ast.expr, kind: str, value: ast.expr, scope: Scope) -> None:
        match target:
            case ast.Name():
                scope.bindings[target.id].append(Binding(kind, value, scope))
                if scope.body_of is not None:
                    scope.body_of.attributes[target.id].append(Binding(kind, value, scope))
            case ast.Attribute(value=ast.Name(id="self")) if scope.method_of is not None:
                scope.method_of.attributes[target.attr].append(Binding(kind, value, scope))
            case ast.Starred():
                self._bind(target.value, kind, value, scope)
            case ast.Tuple() | ast.List():
                pairs = kind == "value" and isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts)
                for place, part in enumerate(target.elts):
                    self._bind(part, "value" if pairs else "item", value.elts[place] if pairs else value, scope)

    # -- which classes a value can have ----------------------------------------------------------------------------

    def classes_of(self, node: ast.AST, scope: Scope) -> frozenset[Key]:
        """Return the classes that an expression can be an instance of, or hold instances of."""
        if id(node) in self._known:
            return self._known[id(node)]
        if id(node) in self._open:  # it depends on itself: x = x or y
            self._cut = True
            return NOTHING
        self._open.add(id(node))
        found = frozenset(self._infer(node, scope))
        self._open.discard(id(node))
        if not self._cut:
            self._known[id(node)] = found
        if not self._open:
            self._cut = False
        return found

    def _infer(self, node: ast.AST, scope: Scope) -> Iterator[Key]:
        match node:
            case ast.Name():
                for binding in self._resolve(node.id, scope):
                    yield from self._classes_of_binding(binding)
            case ast.Attribute():
                for key in self.classes_of(node.value, scope):
                    yield from self._attribute(key, node.attr, scope.module)
            case ast.Call():
                yield from self._result(node, scope)
            case ast.Subscript() | ast.Starred() | ast.Await() | ast.NamedExpr() | ast.DictComp():
                yield from self.classes_of(node.value, scope)
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp():
                yield from self.classes_of(node.elt, scope)
            case ast.BoolOp() | ast.Dict():
                for value in node.values:
                    yield from self.classes_of(value, scope)
            case ast.IfExp():
                yield from self.classes_of(node.body, scope) | self.classes_of(node.orelse, scope)
            case ast.BinOp():
                yield from self.classes_of(node.left, scope) | self.classes_of(node.right, scope)
            case ast.List() | ast.Tuple() | ast.Set():
                for element in node.elts:
                    yield from self.classes_of(element, scope)

    def _classes_of_binding(self, binding: Binding) -> Iterable[Key]:
        match binding.kind:
            case "annotation":
                return self._annotated(binding.node, binding.scope)
            case "value" | "item":
                return self.classes_of(binding.node, binding.scope)
            case "instance":
                return {(binding.scope.module, binding.node.name)}
        return NOTHING

    def _resolve(self, name: str, scope: Scope | None) -> list[Binding]:
        """Return what a name is bound to, seen from a scope: its functions outwards, its module, what that imports."""
        at = scope
        while at is not None:
            if name in at.bindings and (at.body_of is None or at is scope):
                return at.bindings[name]
            at = at.parent
        return self._imported(name, scope.module, frozenset())

    def _imported(self, name: str, module: str, passed: frozenset[str]) -> list[Binding]:
        target, original = self._imports.get(module, {}).get(name, ("", ""))
        if target not in self._modules or target in passed:
            return []
        bound = self._modules[target].bindings
        return bound[original] if original in bound else self._imported(original, target, passed | {module})

    def _annotated(self, node: ast.AST | None, scope: Scope) -> Iterator[Key]:
        match node:
            case ast.Constant(value=str()):
                yield from self._annotated(ast.parse(node.value, mode="eval").body, scope)
            case ast.Name():
                yield from (self._key(each) for each in self._resolve(node.id, scope) if each.kind == "class")
            case ast.Subscript(value=ast.Name(id="Callable" | "type" | "Literal")):
                return
            case ast.Subscript():
                yield from self._annotated(node.value, scope)
                yield from self._annotated(node.slice, scope)
            case ast.BinOp():
                yield from self._annotated(node.left, scope)
                yield from self._annotated(node.right, scope)
            case ast.Tuple() | ast.List():
                for element in node.elts:
                    yield from self._annotated(element, scope)

    @staticmethod
    def _key(binding: Binding) -> Key:
        return binding.scope.module, binding.node.name

    def _ancestry(self, key: Key) -> Iterator[ClassInfo]:
        info = self._classes.get(key)
        if info is not None:
            yield info
            for base in info.node.bases:
                for above in self._annotated(base, info.scope):
                    yield from self._ancestry(above)

    def _attribute(self, key: Key, name: str, module: str) -> Iterable[Key]:
        """Return the classes of an attribute of an instance of a class, as seen from a module."""
        for info in self._ancestry(key):
            if (info.key, name) in self._special:
                return self._special[info.key, name](module)
            if name in info.attributes:
                return {found for each in info.attributes[name] for found in self._classes_of_binding(each)}
            if name in info.methods:
                method = info.methods[name]
                is_property = {"property", "cached_property"} & {_name_of(each) for each in method.decorator_list}
                return self._annotated(method.returns, info.scope) if is_property else NOTHING
        return NOTHING

    def _result(self, node: ast.Call, scope: Scope) -> Iterator[Key]:
        """Yield the classes of what a call returns."""
        match node.func:
            case ast.Name(id="getattr"):
                for key in self.classes_of(node.args[0], scope):
                    for name in self._names(node.args[1], scope):
                        yield from self._attribute(key, name, scope.module)
            case ast.Name(id=name) if name in _SAME:
                for argument in node.args:
                    yield from self.classes_of(argument, scope)
            case ast.Name(id=name):
                for each in self._resolve(name, scope):
                    if each.kind == "class":
                        yield self._key(each)
                    elif each.kind == "function":
                        yield from self._annotated(each.node.returns, each.scope)
            case ast.Attribute(value=owner, attr=name):
                owners = set(self.classes_of(owner, scope))
                if isinstance(owner, ast.Name):
                    owners |= {self._key(each) for each in self._resolve(owner.id, scope) if each.kind == "class"}
                if name in _SAME_METHODS:
                    yield from owners
                for key in owners:
                    for info in self._ancestry(key):
                        if name in info.methods:
                            yield from self._annotated(info.methods[name].returns, info.scope)
                            break

    # -- reads -----------------------------------------------------------------------------------------------------

    def reads(self, names: Iterable[str]) -> set[Read]:
        """Return what is read from which class, as far as the fields `names` are concerned."""
        wanted, found = set(names), set()
        for node, scope in self._attributes:
            if node.attr in wanted and not scope.judges:
                found |= {(key, node.attr) for key in self.classes_of(node.value, scope)}
        for call, scope in self._calls:
            if scope.judges:
                continue
            match call:
                case ast.Call(func=ast.Name(id="getattr"), args=[owner, name, *_]):
                    patterns = self._names(name, scope)
                case ast.Call(func=ast.Attribute(value=owner, attr="model_dump")) if not _is_json(call):
                    patterns = {".*"}
                case _:
                    continue
            found |= {(key, pattern) for key in self.classes_of(owner, scope) for pattern in patterns}
        return found

    def _names(self, node: ast.AST, scope: Scope, passed: frozenset[ast.AST] = frozenset()) -> set[str]:
        """Return regular expressions for the strings that an expression can be; none when that is not known."""
        if node in passed:  # a, b = b, a
            return set()
        passed |= {node}
        match node:
            case ast.Constant(value=str()):
                return {re.escape(node.value)}
            case ast.JoinedStr():
                parts = (re.escape(p.value) if isinstance(p, ast.Constant) else ".+" for p in node.values)
                return {"".join(parts)}
            case ast.Tuple() | ast.List() | ast.Set():
                return {name for element in node.elts for name in self._names(element, scope, passed)}
            case ast.Name():
                bound = self._resolve(node.id, scope)
                named = [each for each in bound if each.kind in ("value", "item")]
                return {name for each in named for name in self._names(each.node, each.scope, passed)}
        return set()


def _is_json(call: ast.Call) -> bool:
    return any(keyword.arg == "mode" and ast.unparse(keyword.value) == "'json'" for keyword in call.keywords)
