"""The structure holds: imports run one way, files hold one idea each, nothing loads code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ami_agent
from ami_agent.cli import listing
from ami_agent.shadow import HOME, check_shadows

PACKAGES = ("modules", "envs", "ami_agent")
CROSSINGS = {
    "modules.world_model.hjepa": {
        "modules.actor.action_space",
        "modules.actor.planning.evaluator",
        "modules.actor.planning.gradient",
        "modules.actor.planning.risk",
        "modules.actor.subgoals.base",
        "modules.cost.quasimetric",
    }
}
"""The only imports from one module of the diagram to another: a level of H-JEPA plans by itself."""
LONGEST = 450


def sources(package: str) -> list[Path]:
    return sorted((HOME / package).rglob("*.py"))


def name_of(page: Path) -> str:
    """The page as Python calls it."""
    parts = page.relative_to(HOME).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(page: Path) -> Iterator[str]:
    """Every module that the page names, in full."""
    package = name_of(page) if page.stem == "__init__" else name_of(page).rpartition(".")[0]
    for node in ast.walk(ast.parse(page.read_text())):
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
    assert ours(HOME / "envs/two_rooms/policies.py") == {
        "envs.geometry",
        "envs.rng",
        "envs.two_rooms.dynamics",
    }
    assert "ami_agent.training.representation_losses" in ours(
        HOME / "ami_agent/training/jepa_loss.py"
    )


def test_types_import_nothing_of_ours():
    assert ours(HOME / "modules/types.py") == set()


@BOXES
def test_modules_import_types_nets_and_their_own_folder(page):
    """types <- nets <- modules of the diagram"""
    name = name_of(page)
    shared = {"modules.types"} if name == "modules.nets" else {"modules.types", "modules.nets"}
    folder = ".".join(name.split(".")[:2])
    others = {n for n in ours(page) - shared if not is_in(folder, n)}
    assert others == CROSSINGS.get(name, set())


def test_modules_have_no_import_cycle():
    imported = {name_of(page): ours(page) for page in sources("modules")}
    while leaves := {name for name, others in imported.items() if not others & set(imported)}:
        imported = {name: others for name, others in imported.items() if name not in leaves}
    assert not imported


@BOXES
def test_the_agent_knows_no_env_and_no_gymnasium(page):
    assert not any(is_in(stranger, n) for n in imports(page) for stranger in ("gymnasium", "envs"))


@pytest.mark.parametrize("page", sources("envs"), ids=name_of)
def test_envs_know_nobody_who_episodes_in_them(page):
    assert all(is_in("envs", name) for name in ours(page))


@pytest.mark.parametrize("page", sources("ami_agent"), ids=name_of)
def test_the_agent_knows_no_particular_env(page):
    known = {name for name in ours(page) if is_in("envs", name)}
    assert known == ({"envs"} if name_of(page) == "ami_agent" else set())


@EVERY_PAGE
def test_nothing_that_is_loaded_can_run_code(page):
    assert not any(is_in(s, n) for n in imports(page) for s in ("pickle", "dill", "joblib"))
    assert "torch.load" not in page.read_text()


@BOXES
def test_planning_never_calls_backward(page):
    call_function = [
        n.attr for n in ast.walk(ast.parse(page.read_text())) if isinstance(n, ast.Attribute)
    ]
    assert "backward" not in call_function


@EVERY_PAGE
def test_pages_are_short(page):
    assert len(page.read_text().splitlines()) <= LONGEST


def test_every_class_that_the_settings_name_is_offered():
    known = {choice for box in listing.component_choices().values() for choice in box}
    assert known <= {*ami_agent.components.__all__, *ami_agent.training.__all__}


def test_all_that_is_offered_is_there():
    assert sorted(ami_agent.__all__) == ami_agent.__all__
    assert all(hasattr(ami_agent, name) for name in ami_agent.__all__)


def test_packages_of_the_same_names_elsewhere_are_noticed_in_one_line(tmp_path):
    with pytest.raises(ImportError, match=r"needs its own package 'modules'") as raised:
        check_shadows(home=tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert str(HOME / "modules") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_package_that_is_missing_is_noticed_in_one_line():
    with pytest.raises(ImportError, match=r"'no_such_package'.* finds none"):
        check_shadows(names=("no_such_package",))


def test_the_packages_beside_ours_are_the_right_ones():
    check_shadows()
