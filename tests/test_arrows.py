"""Imports point down: a folder imports only from lower floors; no modules import in a circle."""

import ast
import graphlib
import pathlib

import qalign_jax

ROOT = pathlib.Path(qalign_jax.__file__).parent
COMMANDS = {"run", "prepare", "convert", "fits", "generate", "score", "report"}
# From the lowest floor up; folders and files of one floor do not import from each other.
FLOORS = (
    {"credentials", "faults"},
    {"files", "logs", "mistakes", "progress", "sandbox", "settings", "schema"},
    {"parallel"},
    {"data", "models"},
    {"checkpoints"},
    {"training", "decoding"},
    {"evaluation"},
    {"analysis"},
    {"ahead", "reporting"},
    {"recipe"},
    {"api", "cli", "configs"},
    COMMANDS,
)


def modules():
    """Module -> its file, for the package and the recipes."""
    found = {}
    for folder, package in ((ROOT, "qalign_jax"), (ROOT.parent / "configs", "qalign_jax.configs")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


MODULES = modules()


def imports(path):
    """The package's modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


def room(module):
    return module.split(".")[1]


GRAPH = {
    name: set(imports(path)) for name, path in MODULES.items() if name != "qalign_jax"
}  # the package itself imports api, lazily


def test_every_room_has_a_floor():
    assert {room(name) for name in GRAPH} == set().union(*FLOORS)
    assert sum(map(len, GRAPH.values())) > 200  # imports are found at all


def test_arrows_point_down():
    floor = {name: height for height, rooms in enumerate(FLOORS) for name in rooms}
    wrong = [
        f"{name} -> {imported}"
        for name, found in GRAPH.items()
        for imported in found
        if room(name) != room(imported) and floor[room(name)] <= floor[room(imported)]
    ]
    assert not wrong


def test_no_modules_import_in_a_circle():
    graphlib.TopologicalSorter(GRAPH).prepare()  # raises a CycleError that names them
