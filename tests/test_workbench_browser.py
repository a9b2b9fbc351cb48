"""The workbench in a real browser, where there is one: the extra `browser`."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from ami_agent.storage import run_dir
from ami_agent.viewer.projectors import make_projector_factory
from ami_agent.viewer.workbench import server
from ami_agent.viewer.workbench.core import Side, Workbench
from ami_agent.viewer.workbench.description import describe_workbench
from ami_agent.viewer.workbench.server import WorkbenchServer

HERE = Path(__file__).parent
RUN = HERE.parent / "runs/reference/two-rooms"
HAS_BROWSER = find_spec("PyQt6") is not None and find_spec("PyQt6.QtWebEngineCore") is not None
EVIL = "</script><img src=x onerror=alert(1)>"

pytestmark = pytest.mark.skipif(
    not HAS_BROWSER, reason="needs a browser: pip install 'ami-agent[browser]'"
)

STARTED = "while (!window.plane || !view) await new Promise((go) => setTimeout(go, 20));"
WEIGHT = "const input = document.querySelector('[data-setting=weight]');"
DRAWN = (  # every position is followed by its plan
    "while (performance.getEntriesByName('drag to plan').length < {})"
    " await new Promise((go) => setTimeout(go, 5));"
)
SAVED = (
    "const time = document.getElementById('time');"
    "const caption = () => document.getElementById('caption').textContent;"
)
POSITION = "const box = plane.getBoundingClientRect(), s = box.width / view.node.size[0];"


def at(x: object, y: object) -> str:
    """A position of the picture in the page."""
    return f"{POSITION} return [box.left + (0.5 + {x}) * s, box.top + (0.5 + {y}) * s];"


def js(code: str, wait: float = 0.0) -> dict[str, object]:
    return {"js": code, "wait": wait}


def browse(address: str, *steps: dict[str, object]) -> list[object]:
    """The values of the steps; nothing may be written to the console."""
    done = subprocess.run(
        [sys.executable, str(HERE / "browser.py"), address],
        input=json.dumps(steps), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["console"] == []
    return result["values"]


@pytest.fixture
def bench():
    config = run_dir.config_of(RUN, (), False)
    agent = run_dir.load(RUN, "cpu", config)
    factory = make_projector_factory(agent, config.eval_env, 0, agent.task_spec(""), lambda _: None)
    side = Side("agent", agent, config, factory.fit([]))
    with closing(Workbench([side], config.eval_env, factory.camera, "", "plan")) as bench:
        bench.begin_own(0)
        yield bench


@pytest.fixture
def page(bench):
    with WorkbenchServer(bench, describe_workbench(bench, EVIL, [EVIL]), 0) as page:
        yield page


def test_a_person_drags_edits_changes_branches_and_saves(page, bench, tmp_path):
    moves = [(260 - 8 * n, 60) for n in range(10)]
    drags = [
        step
        for n, xy in enumerate(moves, 1)
        for step in ({"mouse": "move", "at": at(*xy)}, js(DRAWN.format(n)))
    ]
    begin, *values = browse(
        page.address,
        js(f"{STARTED} return view.node.goal;", 0.3),
        {"mouse": "press", "at": at("view.node.goal[0]", "view.node.goal[1]")},
        *drags,
        {"mouse": "release", "at": at(*moves[-1]), "wait": 0.5},
        js("return [view.node.label, view.node.goal, view.node.before[0].planned.length];"),
        js("return id('energies').querySelector('thead').textContent;"),
        js("id('step').click();", 0.5),
        js("await editAction(0, 1, '0.5'); return view.node.side_plans[0].actions[0][1];"),
        js(f"{WEIGHT} input.value = 'many'; input.dispatchEvent(new Event('change'));", 0.4),
        js(f"{WEIGHT} return [id('error').textContent, input.value];"),
        js("id('pin').click();", 0.3),
        js("id('branch').click();", 0.3),
        js("await act('change', { side: 0, setting: 'planner', name: '', value: 'CEM' });"),
        js("id('compare').click();", 0.5),
        js("return [id('error').textContent, id('branches').children.length, view.sides.length];"),
        js("return id('pinned').hidden;"),
        js("return (await exported('png')).size;"),
        js("return (await exported('page')).text();"),
        {"shot": str(tmp_path / "workbench.png")},
    )  # fmt: skip
    values = [value for value in values if value is not None]
    (label, goal, before), columns, edited, refused = values[:4]
    assert (label, before) == ("goal moved", 18)
    assert goal == pytest.approx([188, 60], abs=1)
    assert goal != begin
    assert columns == "termnowbefore"
    assert edited == 0.5
    assert refused[0].startswith("the weight of 'goal_distance' is 'many'; it must be a number")
    assert refused[1] == "2"
    *_, (error, branches, sides), is_hidden, png, html = values
    assert (error, branches, sides, is_hidden) == ("", 3, 2, False)
    assert type(bench.node.side_plans[0].agent.planner).__name__ == "CEM"
    assert png > 10_000
    assert (tmp_path / "workbench.png").stat().st_size > 20_000
    saved = tmp_path / "saved.html"
    saved.write_text(html)
    count, first, last = browse(
        saved.as_uri(),
        js(f"{SAVED} return +time.max + 1;"),
        js(f"{SAVED} time.value = 0; time.dispatchEvent(new Event('input')); return caption();"),
        js(f"{SAVED} document.getElementById('step').click(); return caption();"),
    )
    assert count == 2
    assert first.startswith("seed 0, step 0")
    assert last.startswith("seed 0, step 1")


def test_names_are_inserted_as_text(page):
    title, elements = browse(
        page.address,
        js(f"{STARTED} return document.title;"),
        js("return document.querySelectorAll('header img, header script').length;"),
    )
    assert (title, elements) == (EVIL, 0)


def test_the_page_says_that_the_workbench_has_ended(bench):
    ended = threading.Event()
    with WorkbenchServer(bench, describe_workbench(bench, "", []), 0) as page:

        def end() -> None:
            while page.streams._value == server.MAX_STREAMS:
                time.sleep(0.05)
            time.sleep(0.5)
            ended.set()

        threading.Thread(target=end).start()
        found = []
        reader = threading.Thread(
            target=lambda: found.extend(
                browse(
                    page.address,
                    js(
                        f"{STARTED} while (!id('error').textContent)"
                        " await new Promise((go) => setTimeout(go, 20));"
                        "return id('error').textContent;"
                    ),
                )
            )
        )
        reader.start()
        assert ended.wait(30)
    reader.join(30)
    assert found == ["there is no connection to the workbench; the page tries again"]
