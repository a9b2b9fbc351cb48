"""The structure holds: imports run one way, files hold one idea each, nothing loads code."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import gymnasium
import pytest

import ami_agent
from ami_agent import HOME, check_shadows, config_io

PACKAGES = ("modules", "envs", "ami_agent")
BELOW = ("modules.types", "modules.compiled", "modules.nets", "modules.by_hand")
"""What every module may import beside its own folder."""
ABOVE = {
    "modules.world_model.hjepa": (
        "modules.actor.policy", "modules.actor.planning", "modules.actor.subgoals.base",
        "modules.cost.goal_critic",
    ),
}  # fmt: skip
"""The levels above the lowest plan in their own states, and measure distances there."""
FILES_A_FOLDER = 17


def sources(package: str) -> list[Path]:
    return sorted((HOME / package).rglob("*.py"))


def name_of(page: Path) -> str:
    """The page as Python calls it."""
    parts = page.relative_to(HOME).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(page: Path) -> ast.Module:
    return ast.parse(page.read_text())


def imports(page: Path) -> Iterator[str]:
    """Every module that the page names, in full."""
    return imported(page, tree_of(page))


def imported(page: Path, tree: ast.Module) -> Iterator[str]:
    package = name_of(page) if page.stem == "__init__" else name_of(page).rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            found = [f"{base}.{alias.name}" for alias in node.names]
            inner = [name for name in found if is_a_page(name)]
            yield from inner or [base]


def is_a_page(name: str) -> bool:
    path = HOME.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def is_in(package: str, name: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def ours(page: Path) -> set[str]:
    return {name for name in imports(page) if any(is_in(package, name) for package in PACKAGES)}


EVERY_PAGE = pytest.mark.parametrize(
    "page", [page for package in PACKAGES for page in sources(package)], ids=name_of
)
BOXES = pytest.mark.parametrize("page", sources("modules"), ids=name_of)


def test_imports_are_read_as_python_reads_them():
    assert "modules.types" in ours(HOME / "modules/cost/cost.py")
    assert ours(HOME / "envs/maze/policies.py") == {
        "envs.base",
        "envs.batch",
        "envs.geometry",
        "envs.rng",
        "envs.maze.dynamics",
    }
    assert "ami_agent.training.representation_losses" in ours(HOME / "ami_agent/training/jepa.py")


def test_types_import_no_module_of_ours():
    assert ours(HOME / "modules/types.py") == set()


def folder_of(name: str) -> str:
    """The module of the diagram that a page belongs to."""
    return ".".join(name.split(".")[:2])


@BOXES
def test_a_module_imports_types_nets_and_its_own_folder(page):
    allowed = (*BELOW, folder_of(name_of(page)), *ABOVE.get(name_of(page), ()))
    strangers = [n for n in ours(page) if not any(is_in(folder, n) for folder in allowed)]
    assert not strangers


def is_for_types_alone(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def test_there_is_no_import_cycle_and_lazy_imports_count():
    pages = [page for package in PACKAGES for page in sources(package)]
    names = {name_of(page) for page in pages}
    edges = {}
    for page in pages:
        body = [node for node in tree_of(page).body if not is_for_types_alone(node)]
        module = ast.Module(body, [])
        edges[name_of(page)] = {name for name in imported(page, module) if name in names}

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for name in edges[waiting.pop()] - found:
                found.add(name)
                waiting.append(name)
        return found

    assert [name for name in edges if name in reached(name)] == []


def test_a_folder_holds_about_a_dozen_files():
    counts = Counter(page.parent for package in PACKAGES for page in sources(package))
    assert {str(folder): n for folder, n in counts.items() if n > FILES_A_FOLDER} == {}


@BOXES
def test_agent_py_imports_no_env_and_no_gymnasium(page):
    assert not any(is_in(stranger, n) for n in imports(page) for stranger in ("gymnasium", "envs"))


@pytest.mark.parametrize("page", sources("envs"), ids=name_of)
def test_envs_import_nothing_of_the_agent(page):
    assert all(is_in("envs", name) for name in ours(page))


@pytest.mark.parametrize("page", sources("ami_agent"), ids=name_of)
def test_ami_agent_names_no_particular_env(page):
    known = {name for name in ours(page) if is_in("envs", name)}
    assert known == ({"envs"} if name_of(page) == "ami_agent" else set())


@EVERY_PAGE
def test_nothing_that_is_loaded_can_run_code(page):
    assert not any(is_in(s, n) for n in imports(page) for s in ("pickle", "dill", "joblib"))
    assert "torch.load" not in page.read_text()


@BOXES
def test_planning_never_calls_backward(page):
    call_function = [n.attr for n in ast.walk(tree_of(page)) if isinstance(n, ast.Attribute)]
    assert "backward" not in call_function


def test_every_class_that_the_settings_name_is_exported():
    choices = config_io.component_choices().values()
    known = {kind.__name__ for box in choices for name, kind in box.items() if name != "None"}
    assert known <= {*ami_agent.components.__all__, *ami_agent.training.__all__}


def test_all_exported_names_exist():
    assert sorted(ami_agent.__all__) == ami_agent.__all__
    assert all(hasattr(ami_agent, name) for name in ami_agent.__all__)


MOST_PARAMETERS = 6


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    rest = filter(None, [function.args.vararg, function.args.kwarg])
    return [each.arg for each in (*named, *rest) if each.arg not in ("self", "cls")]


@EVERY_PAGE
def test_constructors_alone_have_many_parameters(page):
    functions = [
        node
        for node in ast.walk(tree_of(page))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "__init__"
    ]
    assert [f.name for f in functions if len(parameters(f)) > MOST_PARAMETERS] == []


def test_an_observation_passes_through_few_files_on_its_way_to_an_action():
    """Of the run that ships, in one environment, by Mode-2; the first actions fill caches. The
    package `by_hand` counts as one file: its functions compute what the others say."""
    agent = ami_agent.load(HOME / "runs/reference/two-rooms")
    env = gymnasium.make("ami/TwoRooms-v0")
    obs, info = env.reset(seed=0)
    controller = agent.controller(task=ami_agent.Task(goal=info["goal"]))
    for _ in range(2):
        obs, *_ = env.step(controller.act(obs).env_action)
    crossed: set[str] = set()
    sys.setprofile(lambda frame, event, arg: crossed.add(frame.f_code.co_filename))
    try:
        controller.act(obs)
    finally:
        sys.setprofile(None)
    pages = {str(page) for package in PACKAGES for page in sources(package)}
    assert str(HOME / "modules/world_model/jepa.py") in crossed
    by_hand = {page for page in crossed & pages if f"{HOME / 'modules/by_hand'}{os.sep}" in page}
    others = crossed & pages - by_hand
    assert by_hand
    assert len(others) + 1 <= 12, sorted(others)


def test_packages_of_the_same_names_elsewhere_are_reported_in_one_line(tmp_path):
    with pytest.raises(ImportError, match=r"needs its own package 'modules'") as raised:
        check_shadows(home=tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert str(HOME / "modules") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("made", ["folder", "package", "file"])
def test_what_is_found_in_place_of_a_package_is_named(made, tmp_path, monkeypatch):
    name = f"ami_test_{made}"
    place = tmp_path / (f"{name}.py" if made == "file" else name)
    if made != "file":
        place.mkdir()
    if made != "folder":
        (place if made == "file" else place / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=re.escape(f"but Python finds {place}: rename")):
        check_shadows(names=(name,))


def test_a_missing_package_is_reported_in_one_line():
    with pytest.raises(ImportError, match=r"'no_such_package'.* finds none"):
        check_shadows(names=("no_such_package",))


def test_the_packages_beside_ours_are_the_right_ones():
    check_shadows()


def test_the_command_line_starts_without_what_is_slow_to_import():
    code = "import sys, ami_agent.cli.main; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HOME
    )
    slow = {"scipy.stats", "scipy.cluster", "matplotlib", "PIL", "ogbench", "mujoco"}
    assert not slow & set(done.stdout.split())
