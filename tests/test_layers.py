"""The house rules that no tool checks: imports point down, stages do not know each other, one module prints."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "harness").rglob("*.py"))
STAGES = ("data", "train", "export", "score")
LEVELS = (
    {"errors"},
    {"core"},
    {"suite"},
    {*STAGES},
    {"engine"},
    {"board"},
    {"promote"},
    {"terminal", "slice_tables", "schedule_tables", "console", "session"},
    {"cli_mac"},
    {"cli_promote"},
    {"cli_run", "cli_store"},
    {"cli"},
    {"__main__"},
)
"""From the bottom up; a part imports its own level and those below it."""
HEAVY = {
    "torch", "transformers", "mlflow", "onnxruntime", "onnx", "onnxscript", "onnx_asr", "pandas", "numpy", "nemo",
    "datasets", "evaluate", "jiwer", "num2words", "safetensors", "soundfile", "soxr", "psutil", "pywhispercpp",
    "tensorboard", "accelerate", "pynvml", "ray", "gguf", "lightning", "lhotse", "omegaconf", "hydra", "sentencepiece",
    "pyarrow", "scipy", "threadpoolctl", "jinja2", "optuna", "peft", "bitsandbytes", "plotly", "playwright",
}  # fmt: skip
PRINTING = {"cli.py", "terminal.py"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from harness.score import scores` imports harness.score.scores.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_level_imports(tree: ast.Module) -> Iterator[str]:
    """What importing a file imports: not what stands in functions or under `if TYPE_CHECKING`."""
    for node in tree.body:
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            skipped = {id(inner) for item in ast.walk(node) if is_function(item) for inner in ast.walk(item)}
            kept = [item for item in ast.walk(node) if id(item) not in skipped and isinstance(item, ast.stmt)]
            yield from imports(ast.Module([item for item in kept if isinstance(item, ast.Import | ast.ImportFrom)], []))


def is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def part(module: str) -> str:
    """`harness.score.wer.pool` → `score`; the package itself, with its version, is below everything."""
    return [*module.split("."), ""][1]


def level(found: str) -> int:
    return next((number for number, parts in enumerate(LEVELS) if found in parts), -1)


def upward(source: str, modules: Iterator[str]) -> list[str]:
    """The imports among `modules` that a file of the part `source` must not have."""
    ours = [module for module in modules if module.split(".")[0] == "harness"]
    return [
        module
        for module in ours
        if level(part(module)) > level(source)
        or (source in STAGES and part(module) in STAGES and part(module) != source)
    ]


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {name(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def test_every_part_has_its_level(trees: dict[str, ast.Module]) -> None:
    parts = {Path(file).parts[1].removesuffix(".py") for file in trees}
    assert parts - {"__init__"} == set().union(*LEVELS)


def test_imports_point_down(trees: dict[str, ast.Module]) -> None:
    wrong = {
        file: found
        for file, tree in trees.items()
        if (found := upward(Path(file).parts[1].removesuffix(".py"), imports(tree))) and file != "harness/__init__.py"
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("source", "line", "wrong"),
    [
        ("score", "from harness.train import weights", True),
        ("score", "from harness.score import speed", False),
        ("score", "from harness.engine.store import Store", True),
        ("suite", "import harness.core.text", False),
        ("core", "from harness.suite import spec", True),
        ("core", "from harness import __version__", False),
        ("engine", "from harness.data import select", False),
        ("board", "if TYPE_CHECKING:\n    from harness.promote.gate import judge", True),
        ("promote", "def f():\n    from harness.board.leaderboard import lines", False),
    ],
)
def test_the_check_of_imports_itself(source: str, line: str, *, wrong: bool) -> None:
    assert bool(upward(source, imports(ast.parse(line)))) is wrong


def test_importing_a_module_imports_nothing_heavy(trees: dict[str, ast.Module]) -> None:
    heavy = {
        file: found
        for file, tree in trees.items()
        # `evaluate` itself loads this one, as its own script.
        if file != "harness/core/russian_wer/russian_wer.py"
        and (found := [module for module in top_level_imports(tree) if module.split(".")[0] in HEAVY])
    }
    assert heavy == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import torch", ["torch"]),
        ("try:\n    import torch\nexcept ImportError:\n    pass", ["torch"]),
        ("class A:\n    from torch import nn", ["torch.nn"]),
        ("if TYPE_CHECKING:\n    import torch", []),
        ("def f():\n    import torch", []),
        ("class A:\n    def f(self):\n        import torch", []),
    ],
)
def test_the_check_of_heavy_imports_itself(text: str, expected: list[str]) -> None:
    assert list(top_level_imports(ast.parse(text))) == expected


def test_only_the_command_line_prints(trees: dict[str, ast.Module]) -> None:
    printing = {
        f"{file}:{node.lineno}"
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "sys.stdout.write", "sys.stderr.write"}
    }
    # The worker's one line goes into the log of its step.
    assert {file for line in printing if (file := line.split(":")[0]).split("/")[-1] not in PRINTING} <= {
        "harness/engine/worker.py"
    }
    assert len([line for line in printing if line.startswith("harness/engine/worker.py")]) <= 1


def test_only_the_command_line_exits(trees: dict[str, ast.Module]) -> None:
    exiting = {
        file
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"sys.exit", "exit", "quit"}
    }
    assert exiting <= {"harness/cli.py", "harness/cli_run.py", "harness/engine/worker.py"}


def test_no_pickle(trees: dict[str, ast.Module]) -> None:
    """Checkpoints and archives are untrusted."""
    modules = {(file, module.split(".")[0]) for file, tree in trees.items() for module in imports(tree)}
    assert [file for file, module in modules if module in {"pickle", "dill", "cloudpickle", "joblib", "shelve"}] == []
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(
                    item.arg == "weights_only" and ast.unparse(item.value) == "True" for item in node.keywords
                ), file


def test_files_and_functions_are_small(trees: dict[str, ast.Module]) -> None:
    long_files = [name(path) for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    long_functions = [
        f"{file}:{node.name}"
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 50
    ]
    assert (long_files, long_functions) == ([], [])
