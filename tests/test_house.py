"""The structure holds: imports run one way, files hold one idea each, nothing loads code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ami_agent
from ami_agent import catalogue
from ami_agent.shadow import HOME, check_shadows

PACKAGES = ("modules", "envs", "ami_agent")
SHARED = {
    "modules.types",
    "modules.bounds",
    "modules.layers",
    "modules.planners.common",
    "modules.planners.outlook",
}
"""What boxes may know of each other: the nouns, what a body can do, how layers are stacked, what
planners share."""
PARTS = {
    "modules.planners": {
        "modules.planners.collocation",
        "modules.planners.gradient",
        "modules.planners.sampling",
    },
    "modules.planners.collocation": {"modules.planners.gradient"},
    "modules.memory": {"modules.rows"},
    "modules.perception": {
        "modules.perception.images",
        "modules.perception.scene",
        "modules.perception.senses",
    },
    "modules.perception.images": {"modules.perception.common"},
    "modules.perception.scene": {"modules.perception.common", "modules.perception.images"},
    "modules.perception.senses": {"modules.perception.common"},
    "modules.latents": {
        "modules.latents.common",
        "modules.latents.continuous",
        "modules.latents.discrete",
    },
    "modules.latents.continuous": {"modules.latents.common"},
    "modules.latents.discrete": {"modules.latents.common"},
    "modules.cost": {"modules.distance", "modules.drives", "modules.intrinsic"},
    "modules.world_model": {"modules.dynamics", "modules.latents"},
    "modules.hierarchy": {
        "modules.hierarchy.common",
        "modules.hierarchy.imagined",
        "modules.hierarchy.landmarks",
        "modules.hierarchy.macros",
    },
    "modules.hierarchy.imagined": {
        "modules.graph",
        "modules.hierarchy.common",
        "modules.hierarchy.patience",
    },
    "modules.hierarchy.landmarks": {
        "modules.graph",
        "modules.hierarchy.common",
        "modules.hierarchy.patience",
    },
    "modules.hierarchy.levels": {
        "modules.distance",
        "modules.dynamics",
        "modules.latents",
        "modules.world_model",
    },
    "modules.hierarchy.macros": {
        "modules.hierarchy.common",
        "modules.hierarchy.levels",
        "modules.planners.gradient",
    },
}
"""Boxes of more than one page, and the pages that are nobody else's."""
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
    assert "modules.types" in ours(HOME / "modules/cost.py")
    assert ours(HOME / "envs/two_rooms/policies.py") == {
        "envs.geometry",
        "envs.rng",
        "envs.two_rooms.dynamics",
    }
    assert "modules.objectives" in ours(HOME / "ami_agent/losses/world_model.py")


def test_the_nouns_know_nobody():
    assert ours(HOME / "modules/types.py") == set()


@BOXES
def test_boxes_know_the_nouns_and_not_each_other(page):
    assert ours(page) <= SHARED | PARTS.get(name_of(page), set())


@BOXES
def test_the_mind_knows_no_world_and_no_gymnasium(page):
    assert not any(is_in(stranger, n) for n in imports(page) for stranger in ("gymnasium", "envs"))


@pytest.mark.parametrize("page", sources("envs"), ids=name_of)
def test_worlds_know_nobody_who_lives_in_them(page):
    assert all(is_in("envs", name) for name in ours(page))


@pytest.mark.parametrize("page", sources("ami_agent"), ids=name_of)
def test_the_agent_knows_no_particular_world(page):
    known = {name for name in ours(page) if is_in("envs", name)}
    assert known == ({"envs"} if name_of(page) == "ami_agent" else set())


@EVERY_PAGE
def test_nothing_that_is_loaded_can_run_code(page):
    assert not any(is_in(s, n) for n in imports(page) for s in ("pickle", "dill", "joblib"))
    assert "torch.load" not in page.read_text()


@BOXES
def test_thinking_never_calls_backward(page):
    called = [n.attr for n in ast.walk(ast.parse(page.read_text())) if isinstance(n, ast.Attribute)]
    assert "backward" not in called


@EVERY_PAGE
def test_pages_are_short(page):
    assert len(page.read_text().splitlines()) <= LONGEST


def test_every_class_that_the_settings_name_is_offered():
    known = {choice for box in catalogue.choices().values() for choice in box}
    assert known <= {*ami_agent.boxes.__all__, *ami_agent.lessons.__all__}


def test_all_that_is_offered_is_there():
    assert sorted(ami_agent.__all__) == ami_agent.__all__
    assert all(hasattr(ami_agent, name) for name in ami_agent.__all__)


def test_packages_of_the_same_names_elsewhere_are_noticed_in_one_line(tmp_path):
    with pytest.raises(ImportError, match=r"needs its own package 'modules'") as caught:
        check_shadows(home=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert str(HOME / "modules") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_package_that_is_missing_is_noticed_in_one_line():
    with pytest.raises(ImportError, match=r"'no_such_package'.* finds none"):
        check_shadows(names=("no_such_package",))


def test_the_packages_beside_ours_are_the_right_ones():
    check_shadows()
