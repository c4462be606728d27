"""Mutation testing: changes the source one small thing at a time and counts what the tests notice. Outside CI.

    python tests/contracts/mutate.py dpo_jax/losses              # every mutant; goes on where it stopped
    python tests/contracts/mutate.py dpo_jax --sample 200        # as many, drawn at random with a seed
    python tests/contracts/mutate.py dpo_jax/losses --survivors  # those that survived, once more
    python tests/contracts/mutate.py dpo_jax/losses --report     # what is known so far

`[tool.mutate.tests]` in pyproject.toml says which tests concern a file: arguments of pytest, the quickest first, until
one fails. Each mutant is a fork of a process that has imported the libraries but has not started JAX's backend, whose
threads would not live through a fork; compiled programs are shared on disk. Nothing is written into the source: an
import hook hands the changed module to the child.

Other tools were tried. mutmut replaces functions by wrappers, which have no keyword defaults (the tests read them) and
leave decorated functions, annotations (the ranges of knobs) and tables alone; cosmic-ray pays for the imports of each
mutant anew and edits the checkout.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import shlex
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutate"]

OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "--tb=line", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
BINARY |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
BINARY |= {ast.BitXor: ast.BitAnd, ast.RShift: ast.LShift, ast.LShift: ast.RShift}
COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
COMPARE |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
NAMES = {"sum": "mean", "mean": "sum", "max": "min", "min": "max", "maximum": "minimum", "minimum": "maximum"}
NAMES |= {"any": "all", "all": "any", "float32": "bfloat16", "log1p": "expm1", "expm1": "log1p", "exp": "exp2"}
NAMES |= {"Positive": "NotNegative", "NotNegative": "Positive", "Smoothing": "Share", "chosen": "rejected"}
NAMES |= {"rejected": "chosen", "chosen_tokens": "rejected_tokens", "rejected_tokens": "chosen_tokens"}
SYMMETRIC = {"maximum", "minimum", "promote_types", "assert_equal"}


class Mutant(NamedTuple):
    """One change of one file: its name says where and what; the node's place in the tree, and which replacement."""

    path: str
    name: str
    place: int
    which: int

    def tree(self) -> ast.Module:
        """The changed module."""
        tree = ast.parse((ROOT / self.path).read_text())
        parent, field, index, old = list(_places(tree))[self.place]
        new = list(replacements(old))[self.which]
        setattr(parent, field, new) if index is None else getattr(parent, field).__setitem__(index, new)
        return ast.fix_missing_locations(tree)


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that may stand in place of one."""

    def changed(**fields: Any) -> ast.AST:
        return ast.copy_location(type(node)(**{**dict(ast.iter_fields(node)), **fields}), node)

    match node:
        case ast.BinOp(op=op) if type(op) in BINARY:
            yield changed(op=BINARY[type(op)]())
            if isinstance(op, ast.Mult | ast.Div | ast.Add | ast.Sub):
                yield node.left
        case ast.AugAssign(op=op) if type(op) in BINARY:
            yield changed(op=BINARY[type(op)]())
        case ast.UnaryOp(operand=operand) if not isinstance(node.op, ast.UAdd):
            yield operand
        case ast.Compare(ops=[op]) if type(op) in COMPARE:
            yield changed(ops=[COMPARE[type(op)]()])
        case ast.BoolOp(op=op):
            yield changed(op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.Constant(value=bool(value)):
            yield changed(value=not value)
        case ast.Constant(value=int(value) | float(value)):
            yield changed(value=value + 1)
        case ast.Constant(value=str(value)):
            yield changed(value=value + "XX")
        case ast.IfExp(test=test) | ast.If(test=test):
            yield changed(test=ast.UnaryOp(ast.Not(), test))
        case ast.Call(args=args, keywords=keywords):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if len(args) >= 2 and name not in SYMMETRIC and not any(isinstance(arg, ast.Starred) for arg in args):
                yield changed(args=[*args[:-2], args[-1], args[-2]])
            if len(args) == 1 and not keywords and not isinstance(args[0], ast.Starred | ast.GeneratorExp):
                yield args[0]
            for i in range(len(keywords)):
                yield changed(keywords=keywords[:i] + keywords[i + 1 :])
        case ast.Attribute(attr=name) if name in NAMES:
            yield changed(attr=NAMES[name])
        case ast.Name(id=name, ctx=ast.Load()) if name in NAMES:
            yield changed(id=NAMES[name])
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield ast.copy_location(ast.Pass(), node)


def _places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Nodes with parent, field and index; no docstrings, texts of errors or imports."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Assert | ast.JoinedStr | ast.Raise):
        return
    for field, value in ast.iter_fields(node):
        if field == "returns":  # nobody reads it
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if isinstance(child, ast.AST) and not docstring:
                yield node, field, index, child
                yield from _places(child)


def mutants(path: str) -> list[Mutant]:
    made, tree = [], ast.parse((ROOT / path).read_text())
    known = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    known |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for place, (*_, old) in enumerate(_places(tree)):
        for which, new in enumerate(replacements(old)):
            if isinstance(new, ast.Name) and isinstance(old, ast.Name) and new.id not in known:
                continue  # a name that the file does not import would be noticed by any test
            name = f"{path}:{old.lineno}:{old.col_offset}: {_short(old)} -> {_short(new)}"
            made.append(Mutant(path, name, place, which))
    return made


def _short(node: ast.AST) -> str:
    text = ast.unparse(node).split("\n")[0]
    return text if len(text) < 70 else f"{text[:40]} ... {text[-25:]}"


class _Hook(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the module of a mutant from its tree instead of its file."""

    def __init__(self, mutant: Mutant):
        self.mutant, self.module = mutant, mutant.path.removesuffix(".py").replace("/", ".")

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name == self.module:
            return importlib.util.spec_from_file_location(name, ROOT / self.mutant.path, loader=self)
        return None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.mutant.tree(), module.__file__, "exec"), module.__dict__)


def tests_of(path: str) -> list[str]:
    """The tests that concern a file: those of the longest prefix of its path in the settings."""
    prefix = max((prefix for prefix in SETTINGS["tests"] if path.startswith(prefix)), key=len)
    return [test.replace("{module}", path.removesuffix(".py").replace("/", ".")) for test in SETTINGS["tests"][prefix]]


def run(mutant: Mutant | None, commands: list[str], output: Path, seconds: int) -> str:
    """`survived`, or how it was noticed: `killed`, `import` (nothing runs) or `time`."""
    child = os.fork()
    if child == 0:
        with output.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        if mutant is not None:
            sys.meta_path.insert(0, _Hook(mutant))
        import pytest

        for tests in commands:
            if code := pytest.main([*OPTIONS, *shlex.split(tests)]):
                os._exit(code)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "time" if os.WTERMSIG(status) in (24, 9) else "killed"
    return {0: "survived", 1: "killed"}.get(os.WEXITSTATUS(status), "import")


def wilson(killed: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    z, share = 1.96, killed / of
    centre, half = share + z * z / (2 * of), z * (share * (1 - share) / of + z * z / (4 * of * of)) ** 0.5
    return (centre - half) / (1 + z * z / of), (centre + half) / (1 + z * z / of)


def report(wanted: list[Mutant], verdicts: dict[str, str]) -> None:
    rows: dict[str, Counter[str]] = {}
    for mutant in wanted:
        if verdict := verdicts.get(mutant.name):
            rows.setdefault(mutant.path, Counter())[verdict] += 1
    total: Counter[str] = sum(rows.values(), Counter())
    print("| file | mutants | killed | share |\n| --- | ---: | ---: | ---: |")
    for path, found in [*sorted(rows.items()), ("all", total)]:
        killed = found.total() - found["survived"]
        print(f"| {path} | {found.total()} | {killed} | {killed / max(found.total(), 1):.1%} |")
    low, high = wilson(total.total() - total["survived"], max(total.total(), 1))
    print(f"{total.total()} of {len(wanted)} tried; 95 % interval {low:.1%} to {high:.1%}. Survivors:")
    print(*sorted(m.name for m in wanted if verdicts.get(m.name) == "survived"), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", nargs="+", help="files or folders of the package")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn uniformly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--survivors", action="store_true", help="run those that survived once more")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--work", type=Path, default=ROOT / ".mutation", help="verdicts and compiled programs")
    args = parser.parse_args()
    known = [path for place in SETTINGS["files"] for path in [ROOT / place, *(ROOT / place).rglob("*.py")]]
    files = sorted(str(path.relative_to(ROOT)) for path in known if path.is_file() and path.name != "__init__.py")
    wanted = [mutant for path in files if path.startswith(tuple(args.where)) for mutant in mutants(path)]
    random.Random(args.seed).shuffle(wanted)  # what is done when it is stopped is a sample, too
    wanted = wanted[: args.sample]
    args.work.mkdir(exist_ok=True)
    book, verdicts = args.work / "verdicts.jsonl", {}
    if book.exists():
        verdicts = dict(json.loads(line) for line in book.read_text().splitlines())
    if not args.report:
        _prepare(args.work)
        todo = [m for m in wanted if m.name not in verdicts or (args.survivors and verdicts[m.name] == "survived")]
        for tests in dict.fromkeys(line for mutant in todo for line in tests_of(mutant.path)):
            if run(None, [tests], args.work / "clean.txt", 600) != "survived":
                sys.exit(f"{tests}: fail without any change, see {args.work / 'clean.txt'}")
        for done, mutant in enumerate(todo):
            start = time.perf_counter()
            verdict = run(mutant, tests_of(mutant.path), args.work / "last.txt", SETTINGS["cpu_seconds"])
            verdicts[mutant.name] = verdict
            with book.open("a") as file:
                print(json.dumps([mutant.name, verdict]), file=file)
            print(f"{done + 1}/{len(todo)} {verdict:8} {time.perf_counter() - start:5.1f} s {mutant.name}", flush=True)
    report(wanted, verdicts)


def _prepare(work: Path) -> None:
    """Imports what all children need, with JAX's compiled programs on disk."""
    os.environ["PYTEST_XDIST_WORKER"] = "mutate"  # conftest.py leaves the cache alone
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(work / "programs"), "OPENBLAS_NUM_THREADS": "1"}
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    for module in ("tests.conftest", "pytest", *SETTINGS["imports"]):
        importlib.import_module(module)


if __name__ == "__main__":
    main()
