"""The documentation is true: its Python runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

import ami_agent
from ami_agent import ablation
from ami_agent.ablation import load_configs
from ami_agent.bench import BENCHMARKS
from ami_agent.cli import config_flags
from ami_agent.cli.command_flags import (
    TRAIN_ALIASES,
    AblateFlags,
    EnvFlags,
    EvalFlags,
    ProbeFlags,
    ShowFlags,
    StudyFlags,
    TrainFlags,
    resolve_aliases,
)
from ami_agent.cli.data import COMMANDS as DATA_COMMANDS
from ami_agent.cli.main import COMMANDS
from ami_agent.evaluation.evaluate import table_rows
from ami_agent.recipes import recipe
from ami_agent.recipes.gym import DEFAULT_ENV, NO_DATASET
from ami_agent.training import OfflineActorCritic

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "runs" / "README.md",
    *sorted(DOCS.rglob("*.md")),
]  # fmt: skip
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
CODE = {name: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for name, text in TEXTS.items()}
PLACEHOLDERS = {
    "RECIPE": "two-rooms",
    "N": "3",
    "ID": "some/data-v0",
    "DIR": "runs/reference/two-rooms",
}


def commands(program: str) -> list[str]:
    """Every command of a program in shell blocks and in inline code."""
    found = set()
    for text in TEXTS.values():
        blocks = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
        inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        lines = [line.partition(" #")[0].strip() for line in [*blocks.splitlines(), *inline]]
        found |= {line for line in lines if line.startswith(f"{program} ")}
    return sorted(found)


@pytest.mark.parametrize("page", TEXTS)
def test_every_code_block_is_of_a_kind_that_is_executed(page):
    opened = re.findall(r"^ *```(.*)$", TEXTS[page], re.MULTILINE)[::2]
    kinds = {re.sub(r' title="my_\w+\.py"', " file", kind) for kind in opened}
    executed = {"python", "bash", "text"}
    if page == "docs/your-module.md":
        executed = {"python file", "sh", "py"}  # by test_your_module.py
    assert kinds <= executed


def test_every_program_of_the_shell_blocks_is_checked():
    blocks = "".join(re.findall(r"```bash\n(.*?)```", "".join(TEXTS.values()), re.DOTALL))
    programs = {line.split()[0] for line in blocks.splitlines() if line.strip()}
    assert programs == {"ami", "make", "tensorboard", "torchrun"}  # the third is none of ours


@pytest.mark.parametrize("command", commands("torchrun"))
def test_what_torchrun_starts_in_the_documentation_is_there(command):
    _, flag, count, *program = command.split()
    assert (flag, int(count)) == ("--nproc-per-node", 2)
    if program[0].endswith(".py"):
        assert (ROOT / program[0]).exists()
    else:  # test_distributed.py runs it
        assert program == ["-m", "ami_agent", "train", "two-rooms"]


@pytest.mark.parametrize("command", commands("make"))
def test_a_target_of_the_documentation_is_in_the_makefile(command):
    assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()


def test_the_demo_installs_no_more_than_it_needs():
    makefile = (ROOT / "Makefile").read_text()
    recipe_lines = {
        target: lines for target, lines in re.findall(r"^(\S+): .*\n((?:\t.*\n)+)", makefile, re.M)
    }
    assert re.search(r"^demo: \$\(READY\) ", makefile, re.M)
    assert "--editable ." in recipe_lines["$(READY)"]
    assert ".[" not in recipe_lines["$(READY)"]


def test_the_quickstart_names_every_extra():
    table = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    extras = re.findall(r"^(\w+) = \[", table.partition("\n[")[0], re.M)
    sentence = TEXTS["docs/quickstart.md"].partition("the extras are")[2].partition("\n\n")[0]
    assert set(extras) == set(re.findall(r"`(\w+)`", sentence))


def test_a_level_of_risk_is_shown_with_an_agent_that_has_a_latent_variable():
    names = {"__name__": "documentation"}
    for code in CODE["docs/uncertainty.md"]:
        exec(compile(code, "docs/uncertainty.md", "exec"), names)
    assert names["config"].world_model.latent is not None
    assert names["task"].cvar_alpha == 0


@pytest.mark.parametrize(
    "page",
    # the exercises are run by test_representation_page.py
    [name for name, blocks in CODE.items() if blocks and name != "docs/representation-learning.md"],
)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    known, names = set(gymnasium.registry), {"__name__": "documentation"}
    for number, code in enumerate(CODE[page]):
        exec(compile(code, f"{page}, block {number}", "exec"), names)
    for name in set(gymnasium.registry) - known:
        del gymnasium.registry[name]


@pytest.mark.parametrize("command", commands("ami"))
def test_a_command_of_the_documentation_has_the_flags_that_it_shows(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, name, *rest = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)]
    target = rest.pop(0) if rest and not rest[0].startswith("--") else ""
    if not target or {"?", "--help"} & {*rest} or "my_" in target:
        assert name in COMMANDS
        return
    check = {
        "train": check_train, "ablate": check_ablate, "bench": check_bench, "data": check_data,
    }  # fmt: skip
    flags = {
        "eval": EvalFlags,
        "show": ShowFlags,
        "probe": ProbeFlags,
    }
    if name in check:
        check[name](target, rest)
    elif name in flags:
        config_flags.parse(flags[name](), resolve_aliases(rest), "ami")
    else:
        pytest.fail(f"no command {name}")


def without_package(name: str, flags: list[str]) -> tuple[str, list[str]]:
    """The recipe that stands behind one whose package, or data, may not be here."""
    if name == "gymnasium-robotics":
        is_pushing = "FetchPush-v4" in flags
        name = "gym" if is_pushing else "goals"
    if name in ("goals", "ogbench"):
        _, flags = config_flags.parse_known(EnvFlags(env=DEFAULT_ENV), flags, "ami")
        name = "goals"
    return name, flags


def check_train(name: str, flags: list[str]) -> None:
    name, flags = without_package(name, resolve_aliases(flags, TRAIN_ALIASES))
    if name != "gym":
        config, flags = config_flags.choose_components(recipe(name), flags)
        config_flags.parse(TrainFlags(config=config), flags, "ami")
        return
    parsed, rest = config_flags.parse_known(EnvFlags(env=DEFAULT_ENV), flags, "ami")
    if parsed.data != NO_DATASET:  # the recipe then has OfflineActorCritic, but needs the data
        updates = rest.index("--actor-critic.updates") if "--actor-critic.updates" in rest else 0
        assert hasattr(OfflineActorCritic(), "updates")
        rest = rest[:updates] + rest[updates + 2 :]
    config_flags.parse(TrainFlags(config=recipe("gym")), rest, "ami")


def check_ablate(name: str, flags: list[str]) -> None:
    if ".py:" in name:
        config_flags.parse(StudyFlags(), flags, "ami")
        load_configs(name)
        return
    name, flags = without_package(name, flags)
    if "--data" in flags:  # no data set is here; the recipe of a benchmark takes the flag
        at = flags.index("--data")
        flags = flags[:at] + flags[at + 2 :]
    config, flags = config_flags.choose_components(recipe(name), flags)
    parsed = config_flags.parse(AblateFlags(config=config), flags, "ami")
    ablation.variants(parsed.config, parsed.without, parsed.swap)


def check_bench(name: str, flags: list[str]) -> None:
    assert name in BENCHMARKS
    config_flags.parse(BENCHMARKS[name], flags, "ami")


def check_data(name: str, flags: list[str]) -> None:
    command = DATA_COMMANDS[name]
    config_flags.parse(command.flags, flags[len(command.names) :], "ami")


@pytest.mark.parametrize("command", commands("python"))
def test_a_script_of_the_documentation_exists_with_the_tables_that_it_names(command):
    _, script, *flags = shlex.split(command)
    tree = ast.parse((ROOT / script).read_text())
    known = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    if "--only" in flags:
        only = flags[flags.index("--only") + 1 :]
        assert [name for name in only if name not in (*known, "NAME")] == []


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_to_a_file_of_the_repository_and_to_a_heading_of_it(page):
    missing = []
    for link, _, anchor in links(TEXTS[page]):
        target = (ROOT / page).parent / link if link else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(f"{link}#{anchor}")
    assert missing == []


def links(text: str) -> Iterator[tuple[str, str, str]]:
    """Relative links as file, "#", heading."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)  # Python may look like a link
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        yield link.partition("#")


def anchors(page: Path) -> list[str]:
    """The headings of a page, as the site and GitHub name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in headings]


def test_the_quickstart_explains_every_row_of_the_table_of_an_evaluation():
    estimate = {"mean": 0.5, "ci95": [0.4, 0.6]}
    every = dict.fromkeys(("score", "success", "final_success", "steps", "return"), estimate)
    times = {"planned": 1.0, "ms_per_action": {"p50": 1.0}, "ms_per_action_batched": 1.0}
    results = {
        **every, **times, "by_task": {"task1": every}, "signal_sums": {"alive": estimate},
        "by_episode": [{**every, "length": estimate}],
        "baselines": {},
    }  # fmt: skip
    _, rows = table_rows({"plan": results})
    page = TEXTS["docs/quickstart.md"].replace("`", "")
    assert [name for name, *_ in rows if name not in page] == []
    assert len(rows) == 12


def test_the_readme_stays_short():
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_every_public_name_has_a_place_in_the_reference():
    reference = TEXTS["docs/api/ami_agent.md"]
    assert [name for name in ami_agent.__all__ if f".{name}" not in reference] == []


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
