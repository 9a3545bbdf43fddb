"""No function of ours has a static variable that is initialised at its first call.

Such an initialiser runs under a lock. A thread that gives the GIL up in it waits for the GIL with that lock,
and another for the lock with the GIL; and the child of a fork at that moment finds the lock taken for good.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in ("csrc", "torchgil/include", "torchgil/template", "examples", "docs")
    for path in (ROOT / folder).rglob("*")
    if path.name.removesuffix(".tpl").endswith((".cpp", ".h"))
)
NO_CODE = re.compile(
    r'//[^\n]*|/\*.*?\*/|^[ \t]*#(?:[^\n\\]|\\.)*|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'', re.M | re.S
)
OUTSIDE = re.compile(r"(extern$|\b(namespace|class|struct|union|enum)\b[^()=]*$)")
FIRST_CALL = re.compile(
    r"(static|thread_local)\b(?!.*\b(constexpr|constinit)\b)|.*\b(once_flag|call_once)\b", re.S
)


def found_in(text: str) -> list[str]:
    """The statements within functions that make such a variable."""
    found, scopes, statement = [], [], ""
    for part in re.split(r"([{};])", NO_CODE.sub(" ", text)):
        if part == "{":
            scopes.append(bool(OUTSIDE.search(statement.strip())))
        elif part not in "};":
            statement = " ".join(part.split())
            if not all(scopes) and FIRST_CALL.match(statement):
                found.append(statement)
            continue
        elif part == "}" and scopes:
            scopes.pop()
        statement = ""
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_static_variable_is_initialised_at_a_first_call(path: Path) -> None:
    assert found_in(path.read_text()) == []


def test_such_variables_are_found() -> None:
    """The positive control of the reader above."""
    bad = [
        "namespace a { int f() { static const int x = g(); return x; } }",
        "struct S { int f() const { if (a) { static auto x{g()}; } } };",
        "void f() { static std::once_flag once; }",
        "const int x = [] { static T y; return y; }();",
        "void f() {\n  thread_local std::string s;\n}",
        'extern "C" { void f() { static int x = g("}"); } }',
    ]
    good = [
        "namespace a { static const int x = g(); }",
        "struct S { static int f(int x); static constexpr int kX = 1; };",
        'void f() { static constexpr char kText[] = "static int x = g();"; }',
        "void f() { /* static int x; */ g(static_cast<int>(1)); } // static int y = 1;",
        "class S final : public T { static int x; };",
    ]
    assert all(found_in(text) for text in bad)
    assert not any(found_in(text) for text in good)
