"""The verdicts as files: gates.json for programs, gates.md for people, gates.junit.xml for continuous integration."""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import Any

from .gate_file import GateFile
from .verdict import Verdict

# XML 1.0 section 2.2 knows no way to write these characters, not even as entities.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_json(file: GateFile, verdicts: Sequence[Verdict], only: str | None = None) -> dict[str, Any]:
    """Return the content of gates.json: the overall verdict, one per group, one per gate; `only`: the group judged."""
    return {
        "only": only,
        "passed": all(verdict.passed for verdict in verdicts),
        "description": file.description,
        "failed": [verdict.gate.name for verdict in verdicts if not verdict.passed],
        "groups": {group: _group(file, verdicts, group) for group in dict.fromkeys(v.gate.group for v in verdicts)},
        "gates": [_gate(verdict) for verdict in verdicts],
    }


def _group(file: GateFile, verdicts: Sequence[Verdict], group: str) -> dict[str, Any]:
    failed = [verdict.gate.name for verdict in verdicts if verdict.gate.group == group and not verdict.passed]
    return {"passed": not failed, "failed": failed, "promotes_to": None if failed else file.promotes_to.get(group)}


def _gate(verdict: Verdict) -> dict[str, Any]:
    gate = verdict.gate
    metric = verdict.metric if isinstance(verdict.metric, dict) else {}
    return {
        "name": gate.name,
        "group": gate.group,
        "metric": gate.metric,
        "demand": gate.demand(),
        "direction": gate.direction,
        "threshold": gate.threshold,
        "use": gate.use,
        "equals": gate.equals,
        "observed": verdict.observed,
        "value": metric.get("value", metric.get("difference")),
        "low": metric.get("low"),
        "high": metric.get("high"),
        "n": metric.get("n"),
        "passed": verdict.passed,
        "reason": verdict.reason,
    }


def as_json_text(content: dict[str, Any]) -> str:
    """Return gates.json as text; a number that is not finite (only in `value`, `low`, `high`) becomes null."""
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value


def as_markdown(file: GateFile, verdicts: Sequence[Verdict], only: str | None = None) -> str:
    """Return gates.md: one table, failures told apart by word and not by colour."""
    passed = sum(verdict.passed for verdict in verdicts)
    part = "" if only is None else f", only the group {only}"
    lines = [f"# Gates: {'PASSED' if passed == len(verdicts) else 'FAILED'} ({passed} of {len(verdicts)}{part})", ""]
    if file.description:
        lines += [file.description, ""]
    lines += ["| verdict | group | gate | metric | demanded | observed and why |", "|---|---|---|---|---|---|"]
    for verdict in verdicts:
        gate = verdict.gate
        cells = ["pass" if verdict.passed else "**FAIL**", gate.group, gate.name, f"`{gate.metric}`", gate.demand()]
        lines.append("| " + " | ".join(_cell(text) for text in [*cells, verdict.reason]) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def as_junit(verdicts: Sequence[Verdict], only: str | None = None) -> bytes:
    """Return gates.junit.xml (the schema CI servers read): a test case per gate, class name gates.<group>.

    only: the group judged, which the suite's name then says.
    """
    failures = sum(not verdict.passed for verdict in verdicts)
    counts = {"tests": str(len(verdicts)), "failures": str(failures), "errors": "0", "skipped": "0"}
    suites = ElementTree.Element("testsuites", counts)
    name = "gates" if only is None else f"gates (only {only})"
    suite = ElementTree.SubElement(suites, "testsuite", {"name": _xml(name), **counts})
    for verdict in verdicts:
        gate = verdict.gate
        names = {"classname": _xml(f"gates.{gate.group}"), "name": _xml(gate.name)}
        case = ElementTree.SubElement(suite, "testcase", names)
        if not verdict.passed:
            failure = ElementTree.SubElement(case, "failure", {"message": _xml(verdict.reason), "type": "gate"})
            failure.text = _xml(f"{gate.metric}: {verdict.reason}")
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True) + b"\n"


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
