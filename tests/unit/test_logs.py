"""The reference lists exactly the logged actions, with their levels."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/logs.md"
LEVELS = {"debug", "info", "warning", "error"}
ACTION = re.compile(r"[a-z_]+\.[a-z_]+")


def documented() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `([a-z_.]+)` \| ([a-z, ]+) \|", PAGE.read_text(), re.MULTILINE)
    return {action: set(levels.split(", ")) for action, levels in rows if "." in action}


def method_of(call: ast.Call) -> ast.Attribute | None:
    """The method of `log.level(...)` and of `partial(log.level, ...)`; None where no attribute is called."""
    is_partial = isinstance(call.func, ast.Name) and call.func.id == "partial"
    called = call.args[0] if is_partial and call.args else call.func
    return called if isinstance(called, ast.Attribute) else None


def logged(tree: ast.AST) -> Iterator[tuple[str, ast.expr, ast.Call]]:
    """Level, action and call of each line that a module logs."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and (logs := method_of(call)) is not None and logs.attr in LEVELS:
            for keyword in call.keywords:
                if keyword.arg == "action":
                    yield logs.attr, keyword.value, call


def constants(tree: ast.AST) -> set[str]:
    return {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


@cache
def modules() -> dict[Path, ast.AST]:
    return {path: ast.parse(path.read_text()) for path in sorted((ROOT / "dispatcher").rglob("*.py"))}


def found() -> dict[str, set[str]]:
    """Actions of all modules with their levels. If an action is no literal, all texts of its module are tried."""
    actions: dict[str, set[str]] = defaultdict(set)
    for tree in modules().values():
        for level, value, _ in logged(tree):
            if isinstance(value, ast.Constant):
                actions[value.value].add(level)
    unexplained = documented().keys() - actions.keys()
    for path, tree in modules().items():
        words = constants(tree)
        for level, value, _ in logged(tree):
            made: set[str] = set()
            if isinstance(value, ast.JoinedStr):
                prefix = "".join(part.value for part in value.values if isinstance(part, ast.Constant))
                made = {f"{prefix}{word}" for word in words if re.fullmatch(r"[a-z_]+", word)}
            elif isinstance(value, ast.Name):
                made = words
            else:
                assert isinstance(value, ast.Constant), f"{path}: write the action as a literal"
            for action in made & unexplained:
                actions[action].add(level)
    return actions


def test_every_action_is_documented_with_its_levels():
    assert found() == documented()


def test_every_line_has_an_action():
    for path, tree in modules().items():
        calls = {
            call
            for call in ast.walk(tree)
            if isinstance(call, ast.Call)
            and (logs := method_of(call)) is not None
            and logs.attr in {*LEVELS, "exception", "critical"}
            and isinstance(logs.value, ast.Name)
            and logs.value.id == "log"
        }
        assert calls == {call for _, _, call in logged(tree)}, path


def test_actions_have_one_style():
    for action in found():
        assert ACTION.fullmatch(action), action
