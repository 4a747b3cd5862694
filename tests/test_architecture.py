"""The layout that docs/architecture.md describes: who may import whom, and what a reader finds."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "llc_jax"

# From the bottom to the top: a room imports from itself and from those before it.
ROOMS = (
    *("errors", "options", "objects", "copies", "files", "mesh", "compiling"),
    *("codes", "decoding", "search", "models", "weights", "data", "prepare"),
    *("training", "evaluation", "report", "experiment"),
    *("inference", "serving", "corpus", "estimator", "reproduce"),
    *("main", "arguments", "commands", "cli"),
)
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): file for file in FILES}


def room(module):
    """Returns the room of a module: its folder, or itself where it has none."""
    return module.split(".")[1]


def imports(tree):
    """Yields the modules of the package that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("llc_jax"):
            for name in node.names:
                module = f"{node.module}.{name.name}"
                yield module if module in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("llc_jax."))


def public_definitions(tree):
    """Yields the public functions and classes of a file, and the public methods of those."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for part in node.body:
                    if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                        yield f"{node.name}.{part.name}", part


@pytest.fixture(scope="module")
def trees():
    return {module: ast.parse(file.read_text()) for module, file in MODULES.items()}


def test_imports_go_down(trees):
    wrong = [
        f"{module} imports {imported}"
        for module, tree in trees.items()
        if module != "llc_jax.__init__"
        for imported in imports(tree)
        if ROOMS.index(room(imported)) > ROOMS.index(room(module))
    ]
    assert not wrong


def test_no_circle_of_imports(trees):
    left = {module: set(imports(tree)) - {module} for module, tree in trees.items()}
    while free := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    assert not left


def test_every_module_and_public_definition_has_a_docstring(trees):
    missing = [module for module, tree in trees.items() if not ast.get_docstring(tree)]
    for module, tree in trees.items():
        missing += [
            f"{module}.{name}"
            for name, node in public_definitions(tree)
            if not ast.get_docstring(node)
        ]
    assert not missing


def test_files_and_functions_can_be_read_at_a_look(trees):
    long = [module for module, file in MODULES.items() if file.read_text().count("\n") > 400]
    for module, tree in trees.items():
        long += [
            f"{module}.{node.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
        ]
    assert not long


def test_the_page_on_the_architecture_names_every_room():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    folders = [name for name in ROOMS if (PACKAGE / name).is_dir()]
    assert [name for name in folders if f"`{name}/`" not in page] == []
