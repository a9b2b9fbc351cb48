"""The page holds a whole planning step, as the browser needs it to draw, and fetches nothing."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ami_agent.agent import Agent
from ami_agent.config import build, override
from ami_agent.logger import Logger
from ami_agent.recipes import two_rooms
from ami_agent.viewer import page, projectors, show
from ami_agent.viewer.drawing import term_colors
from ami_agent.viewer.projectors import (
    Panel,
    ProbeProjector,
    ProjectedEpisode,
    prediction_error,
    project,
)
from ami_agent.viewer.record import (
    EpisodeSelection,
    Evaluation,
    RecordedEpisode,
    best_so_far,
    per_step_energy,
    record_episodes,
    record_search,
)
from modules.actor.planning import CEMConfig
from modules.actor.subgoals import LandmarkGraph, LandmarkGraphConfig
from modules.configurator import Task, TaskSpec
from modules.world_model.latents import GaussianLatentConfig

STEPS = 5
ENV = replace(two_rooms().eval_env, options={"max_episode_steps": STEPS})
REACH = TaskSpec(goal_source="env")


def untrained_agent(changes: Mapping[str, object] | None = None) -> Agent:
    return build(override(two_rooms(), changes or {}), ENV.build(1).spec)


@pytest.fixture(scope="module")
def agent() -> Agent:
    torch.set_num_threads(1)
    return untrained_agent()


@pytest.fixture(scope="module")
def written(agent: Agent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projectors, "GRID_SIZE", 5)
        return show(
            agent, ENV, tmp_path_factory.mktemp("show"), EpisodeSelection(episodes=2, mode="both")
        )


class Parts(HTMLParser):
    """The elements of a page, and what its scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if not data.strip():
            return
        tag, attributes = self.tags[-1]
        if tag == "script":
            self.scripts[attributes.get("id") or "code"] = data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts["data"])


@pytest.fixture(scope="module")
def parts(written: Path) -> Parts:
    return Parts(written.read_text(encoding="utf-8"))


def test_the_page_fetches_nothing_and_is_small(written):
    text = written.read_text(encoding="utf-8")
    assert written.name == "index.html"
    code = text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not re.search(r"https?:|src=\"(?!data:)|<link|@import|url\(|fetch\(|import ", code)
    assert len(text) < 1e6


def test_both_modes_act_with_the_same_seeds_side_by_side(parts, written):
    seed_records = parts.data["seeds"]
    assert [seed_record["name"] for seed_record in seed_records] == ["seed 0", "seed 1"]
    for number, seed_record in enumerate(seed_records):
        assert [act["mode"] for act in seed_record["modes"]] == ["plan", "react"]
        assert [act["seed"] for act in seed_record["modes"]] == [number, number]
        first = [act["path"][:2] for act in seed_record["modes"]]
        assert first[0] == first[1]
        for mode in ("plan", "react"):
            assert (written.parent / f"episode-{number}-{mode}.gif").exists()


def test_the_layers_that_can_be_toggled_are_those_that_exist(parts):
    plan, react = parts.data["seeds"][0]["modes"]
    assert plan["layers"] == ["past", "planned", "candidates", "actual"]
    assert react["layers"] == ["past"]
    for n, projected_step in enumerate(plan["frames"]):
        assert len(projected_step["planned"]) == 2 * 9  # 8 imagined steps
        assert all(len(future) == 2 * 9 for future in projected_step["candidates"])
        assert len(projected_step["candidates"]) > 1
        assert len(projected_step["stepEnergies"]) == 8
        assert (
            len(projected_step["stepEnergies"][0])
            == len(plan["terms"])
            == len(projected_step["terms"])
        )
        assert projected_step["bestEnergies"][-1] == pytest.approx(
            sum(projected_step["terms"]), rel=1e-3
        )
        assert (projected_step["predictionError"] is None) == (n == STEPS - 1)
        assert projected_step["numCandidates"] == len(projected_step["candidates"])
        numbers, energies = zip(*projected_step["otherCandidates"], strict=True)
        assert list(energies) == sorted(energies)
        assert energies[0] >= 0.999 * sum(projected_step["terms"])
        (chosen,) = {*range(projected_step["numCandidates"])} - {*numbers}
        assert projected_step["candidates"][chosen] == projected_step["planned"]
    assert all(
        not projected_step["stepEnergies"] and not projected_step["bestEnergies"]
        for projected_step in react["frames"]
    )
    assert all(projected_step["otherCandidates"] == [] for projected_step in react["frames"])


def test_frames_are_the_envs_pictures_without_anything_drawn_over_them(parts):
    act = parts.data["seeds"][1]["modes"][0]
    (panel,) = act["panels"]
    assert len(panel["shown"]) == len(act["steps"]) == STEPS
    env = ENV.build(1)
    env.reset(1)
    picture = env.unwrapped.render()[0]
    data = panel["images"][panel["shown"][0]].partition("base64,")[2]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - picture)
    assert difference.mean() < 2


def test_a_repeated_picture_is_stored_once():
    pictures = [np.full((8, 8, 3), level, np.uint8) for level in (0, 90, 0, 90)]
    (panel,) = page._panels([[Panel("environment", picture, True)] for picture in pictures])
    assert panel["shown"] == [0, 1, 0, 1]
    assert len(panel["images"]) == 2


def test_pictures_are_encoded_in_the_smallest_format():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    flat = np.zeros((64, 64, 3), np.uint8)
    for picture in (noise, flat):
        image = Image.fromarray(picture)
        kind, write = page._smallest_encoding([image])
        assert len(write(image)) == min(len(other(image)) for _, other in page.ENCODINGS)
        assert page._data_uri(image, (kind, write)).startswith(f"data:image/{kind};base64,")


def test_pictures_that_would_take_too_much_room_are_scaled_down(monkeypatch):
    chance = np.random.default_rng(0)
    noise = [[Panel("", chance.integers(0, 255, (200, 200, 3), np.uint8), False)] for _ in range(8)]
    (whole,) = page._panels(noise)
    monkeypatch.setattr(page, "MAX_EPISODE_BYTES", 40_000)
    (small,) = page._panels(noise)
    taken = [sum(map(len, panel["images"])) for panel in (whole, small)]
    assert taken[0] > 100_000
    assert taken[1] < 1.1 * 40_000 * 4 / 3  # three bytes are four letters
    assert small["width"] == whole["width"] == 200  # the overlay stays where it was


def test_every_control_has_a_name_for_screen_readers(parts):
    named = {"aria-label", "aria-pressed", "aria-labelledby"}
    for tag, attributes in parts.tags:
        if tag in ("button", "input", "nav"):
            assert named & attributes.keys(), (tag, attributes)
        if tag == "html":
            assert attributes["lang"] == "en"
    assert "prefers-color-scheme: dark" in (Path(page.__file__).parent / "page.css").read_text()


def test_no_text_can_end_the_script(tmp_path, parts):
    act = {**parts.data["seeds"][0]["modes"][0], "summary": "</script><script>alert(1)"}
    view = SimpleNamespace(description="</script>", error=0.0)
    out = page.write(tmp_path / "x.html", "<b>", ["<i>"], [page.SeedRecord([act], view)])
    again = Parts(out.read_text(encoding="utf-8"))
    assert [tag for tag, _ in again.tags].count("script") == 2
    assert again.data["seeds"][0]["description"] == "</script>"
    assert not {"b", "i"} & {tag for tag, _ in again.tags}


def test_the_critic_map_can_be_laid_over_the_env(parts):
    seed_record = parts.data["seeds"][0]
    (overlay,) = seed_record["overlays"]
    assert overlay["low"] < overlay["high"]
    assert overlay["unit"] == "steps to go"
    with Image.open(
        io.BytesIO(base64.b64decode(overlay["image"].partition("base64,")[2]))
    ) as image:
        cover = np.asarray(image.convert("RGBA"))[..., 3]
    assert cover.shape == (320, 320)
    assert cover.max() > 200
    assert cover[2, 2] == 0  # outside the walls the critic was not evaluated
    assert seed_record["error"] > 0


def test_the_page_describes_the_env(written):
    assert "Two rooms are joined by one door" in written.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arrived", "stayed", "driven", "until"),
    [(None, False, False, 50), (18, True, False, 23), (48, True, False, 50),
     (18, False, False, 50), (18, True, True, 50)],
)  # fmt: skip
def test_an_episode_is_shown_until_the_agent_rests_at_the_goal(
    recorded, arrived, stayed, driven, until
):
    found, _ = recorded
    states = torch.zeros(50, 2)
    changed = found._replace(
        success_step=arrived, final_success=stayed, has_drives=driven, states=states
    )
    assert changed.end_step == until


BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), "")

DRIVEN = """<script type="module">
const by = (id) => document.getElementById(id), wrong = [], found = {};
addEventListener("error", (event) => wrong.push(event.message));
const at = (step) => {
  by("time").value = step;
  by("time").dispatchEvent(new Event("input"));
  return [...document.querySelectorAll(".caption")].map((said) => said.textContent);
};
const drawn = () => document.querySelectorAll(".panel path, .panel circle").length;
try {
  const [first, second] = by("seeds").children;
  found.last = [by("time").max];
  by("whole").click();
  found.last.push(by("time").max);
  found.first = [0, 3, 4].map(at);
  second.click();
  found.second = [0, 3, 4].map(at);
  const bar = document.querySelectorAll(".three rect")[1];
  bar.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
  found.pointed = [...document.querySelectorAll(".pointed")].map((one) => one.textContent);
  found.layers = [...document.querySelectorAll("#layers input")].map((box) => {
    const before = drawn();
    box.click();
    return [box.id, drawn() - before];
  });
} catch (error) { wrong.push(String(error)); }
document.body.textContent = JSON.stringify({ ...found, wrong });
</script></body>"""


def in_a_browser(page: Path, folder: Path) -> dict[str, Any]:
    """What is found where the page is used."""
    driven = folder / "driven.html"
    driven.write_text(page.read_text(encoding="utf-8").replace("</body>", DRIVEN), "utf-8")
    argv = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}",
            "--virtual-time-budget=2000", "--dump-dom", driven.as_uri()]  # fmt: skip
    dom = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(html.unescape(dom.partition("<body>")[2].partition("</body>")[0]))


@pytest.mark.skipif(not BROWSER, reason="needs a browser: chromium or chrome")
def test_in_a_browser_time_can_be_dragged_and_layers_hidden(written, parts, tmp_path):
    found = in_a_browser(written, tmp_path)
    assert found["wrong"] == []
    for number, seed_record in enumerate(("first", "second")):
        projected_steps = parts.data["seeds"][number]["modes"][0]["frames"]
        for (plan, react), step in zip(found[seed_record], (0, 3, 4), strict=True):
            count = projected_steps[step]["numCandidates"]
            compared = f"After {step} of 5 steps. The planner compares {count} sequences of 8 act"
            assert plan.startswith(compared)
            cost = sum(projected_steps[step]["terms"])
            chosen, reach, critic, others = re.search(
                r"energy ([\d.]+) = goal_distance ([\d.]+) \+ critic ([\d.]+), "
                r"the other candidates ([\d.]+)[, ]", plan,
            ).groups()  # fmt: skip
            assert float(chosen) == pytest.approx(cost, rel=0.01)
            assert float(reach) + float(critic) == pytest.approx(cost, rel=0.02)
            assert float(others.rstrip(".")) >= float(chosen)
            assert "without planning" in react
            assert react.endswith("steps to the goal; the agent never reaches it.")
    bar, line = sorted(found["pointed"])
    assert bar == line  # the same energy is stated of both
    gone = dict(found["layers"])
    assert list(gone) == [f"layer-{n}" for n in (*LAYERS, "criticMap")]
    assert all(gone[f"layer-{name}"] < 0 for name in LAYERS)


LAYERS = ("past", "planned", "candidates", "actual")


@pytest.mark.skipif(not BROWSER, reason="needs a browser: chromium or chrome")
def test_a_page_stops_at_the_arrival_and_states_the_number_of_steps(parts, tmp_path):
    acts = [{**act, "successStep": 4, "endStep": 4} for act in parts.data["seeds"][0]["modes"]]
    view = SimpleNamespace(description="", error=0.0)
    out = page.write(tmp_path / "x.html", "", [], [page.SeedRecord(acts, view)] * 2)
    found = in_a_browser(out, tmp_path)
    assert found["wrong"] == []
    assert found["last"] == ["3", "4"]
    (start, _), (near, _), (there, _) = found["first"]
    assert start.endswith("steps to the goal; the agent takes 4.")
    assert near.endswith("steps to the goal; the agent takes 1.")
    assert there.endswith("The agent has arrived.")


# ---- the search of a planning step


def plan_once(agent: Agent):
    obs, _ = (env := ENV.build(3)).reset(0)
    controller = agent.controller(tensors=True)
    controller.reset()
    controller.set_task(Task(goal=obs.flip(0), mode="plan"))
    env.close()
    with torch.no_grad():
        state, context = controller.perceive(obs)
        with record_search(agent) as looks:
            plan = controller.plan(state, context)
    return plan, context, looks


def test_the_energies_of_the_steps_add_up_to_that_of_the_future(agent):
    plan, context, _ = plan_once(agent)
    ahead = per_step_energy(agent, plan, context)
    assert ahead.keys() == plan.terms.keys()
    for name, energy in ahead.items():  # these terms are means over the path
        assert energy.shape == (3, 8)
        np.testing.assert_allclose(energy.mean(1), plan.terms[name], rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"actor.planner": CEMConfig(horizon=4)}])
def test_the_recorded_search_ends_with_the_energy_of_the_plan(changes):
    agent = untrained_agent(changes)
    plan, _, looks = plan_once(agent)
    assert len(looks) > 2
    for env, energy in enumerate(best_so_far(looks, plan)):
        assert (np.diff(energy) <= 0).all()
        assert energy[-1] == pytest.approx(float(plan.energy[env]), rel=1e-4)
    assert not agent.cost._forward_hooks  # no callback is left


def test_of_several_futures_the_aggregated_energy_is_recorded():
    recipe = two_rooms()
    model = replace(recipe.world_model, latent=GaussianLatentConfig())
    agent = untrained_agent({"world_model": model})
    plan, _, looks = plan_once(agent)
    assert plan.candidate_states.shape[1] > looks[0].energy.shape[1]
    assert best_so_far(looks, plan)[0][-1] == pytest.approx(float(plan.energy[0]), rel=1e-4)


def test_where_some_envs_are_planned_for_the_search_is_recorded_in_those(agent):
    plan, _, _ = plan_once(agent)
    plan = plan._replace(planned=torch.tensor([True, False, True]))
    energies = [torch.tensor([[3.0], [5.0], [9.0]]), torch.tensor([[2.0, 4.0], [8.0, 7.0]])]
    looks = [Evaluation(energy, torch.zeros(*energy.shape, 8, 2)) for energy in energies]
    found = best_so_far(looks, plan)
    assert [energy.tolist() for energy in found] == [[3, 2], [5], [9, 7]]


def test_the_prediction_error_is_zero_if_exact_and_one_for_a_prediction_of_rest():
    states = np.cumsum(np.ones((6, 2)), 0)
    steps = [0, 1, 2, 3, 4, 5]
    exact = [states[np.minimum(np.arange(t, t + 3), 5)] for t in steps]
    found = prediction_error(exact, steps, states)
    np.testing.assert_allclose(found.by_horizon, 0)
    np.testing.assert_allclose(found.by_step[:5], 0)
    assert np.isnan(found.by_step[5])  # no step followed it
    still = np.repeat(states[:, None], 3, 1)
    found = prediction_error(still, steps, states)
    np.testing.assert_allclose(found.by_horizon, 1)
    np.testing.assert_allclose(found.by_step[:5], 1)


def test_the_prediction_error_of_every_second_step_is_measured_against_every_step():
    states = np.arange(7.0)[:, None]
    imagined = states[[0, 2, 4], None] + np.array([0.0, 1.0, 3.0])[:, None]  # a step too far at 2
    found = prediction_error(imagined, [0, 2, 4], states)
    np.testing.assert_allclose(found.by_horizon, [0, 0.5])


def test_the_rest_of_an_earlier_plan_is_shown_and_checked_too():
    agent = untrained_agent({"actor.receding_horizon": 3})
    projector = ProbeProjector(agent, ENV, 0, REACH)
    selection = EpisodeSelection(episodes=1)
    ((recorded,),) = record_episodes(agent, ENV, projector.camera, selection, Logger())
    steps = recorded.recorded_steps
    assert [len(step.planned_states) for step in steps] == [9, 8, 7, 9, 8]
    assert [len(step.best_energies) > 1 for step in steps] == [True, False, False, True, False]
    output = page.mode_record(project(recorded, projector), np.zeros((8, 8, 3), np.uint8))
    assert [len(frame["stepEnergies"]) for frame in output["frames"]] == [8, 7, 6, 8, 7]
    assert None not in output["errorByHorizon"][:4]  # 5 steps were taken


def test_subgoals_of_the_levels_above_are_drawn_and_described(tmp_path, monkeypatch):
    monkeypatch.setattr(projectors, "GRID_SIZE", 5)
    agent = untrained_agent(
        {"actor.subgoals": LandmarkGraphConfig(num_landmarks=12, max_edges=4, num_subgoals=3)}
    )
    obs, _ = ENV.build(12).reset(0)
    with torch.no_grad():
        states = agent.encode(obs)
    agent.subgoals.build(states, states[None], states[:, None])
    out = show(
        agent,
        replace(ENV, options={"max_episode_steps": 1}),
        tmp_path,
        EpisodeSelection(episodes=1, seed=3),
    )
    parts = Parts(out.read_text(encoding="utf-8"))
    (seed_record,) = parts.data["seeds"]
    (act,) = seed_record["modes"]
    assert act["layers"][-1] == "subgoals"
    assert [len(upper_plans) for upper_plans in act["frames"][0]["subgoals"]] == [2 * 3]
    assert html.escape(LandmarkGraph.description) in out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def recorded(agent: Agent) -> tuple[RecordedEpisode, ProjectedEpisode]:
    projector = ProbeProjector(agent, ENV, 0, REACH)
    selection = EpisodeSelection(episodes=1)
    ((found,),) = record_episodes(agent, ENV, projector.camera, selection, Logger())
    return found, project(found, projector)


def test_recording_an_episode_does_not_change_it(agent, recorded):
    found, _ = recorded
    env = ENV.build(1)
    obs, info = env.reset(0)
    controller = agent.controller(tensors=True)
    controller.reset()
    controller.set_task(REACH.to_task(env.goal(info), "plan"), 0)
    for state in found.states:
        with torch.no_grad():
            torch.testing.assert_close(agent.encode(obs)[0], state, rtol=1e-3, atol=1e-4)
        obs = env.step(obs, controller.act(obs).action).transition.next_obs


def test_a_perturbed_first_action_is_not_counted_among_the_candidates(recorded):
    _, episode = recorded
    step = episode.recorded.recorded_steps[0]
    changed = step._replace(
        candidate_energies=np.array([5.0, np.nan, 3.0]), terms={"goal_distance": 9.0}
    )
    assert page._other_candidates(changed) == [[2, 3.0], [0, 5.0]]
    among = step._replace(
        candidate_energies=np.array([5.0, 2.0, 3.0]), terms={"goal_distance": 3.000001}
    )
    assert page._other_candidates(among) == [[1, 2.0], [0, 5.0]]


def test_terms_have_the_same_colour_wherever_they_are_shown():
    single, beside = (
        term_colors(["critic"]),
        term_colors(["control_cost", "goal_distance", "critic", "pain"]),
    )
    assert single["critic"] == beside["critic"]
    assert len({*beside.values()}) == 4


def test_numbers_that_json_can_not_hold_are_null():
    assert page.numbers([1.23456, float("nan"), float("inf")]) == [1.235, None, None]
