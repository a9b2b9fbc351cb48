"""What a run reports is true, complete and machine-readable; the null logger is silent."""

from __future__ import annotations

import io
import json
import math
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ami_agent import logger
from ami_agent.evaluation import intervals
from ami_agent.viewer.drawing import encode_gif
from modules.types import ConfigError


def make_console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=60)


def strict(line: str) -> dict[str, object]:
    def error_line(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=error_line)


def described(folder: Path) -> list[dict[str, object]]:
    return [strict(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_scalars_reach_the_file_and_tensorboard(tmp_path):
    out = logger.RunLogger(tmp_path, make_console())
    out.log_scalars("model", 3, {"loss": torch.tensor(0.5), "odd": math.nan})
    out.log_image("plan", torch.zeros(4, 5, 3, dtype=torch.uint8), 3)
    film = encode_gif([Image.new("RGB", (6, 7), colour) for colour in ("red", "blue")])
    out.log_video("film", film, 4)
    out.close()
    (line,) = described(tmp_path)
    assert line["time"] > 0
    assert {**line, "time": 0} == {
        "stage": "model", "step": 3, "time": 0, "loss": 0.5, "odd": None
    }  # fmt: skip
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in board.Scalars("model/loss")] == [(3, 0.5)]
    assert (board.Images("plan")[0].height, board.Images("plan")[0].width) == (4, 5)
    (shown,) = board.Images("film")
    assert (shown.step, shown.encoded_image_string) == (4, film)


def test_a_resumed_run_appends_behind_the_last_whole_line(tmp_path):
    first = logger.RunLogger(tmp_path, make_console())
    first.log_scalars("model", 1, {})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "mod')
    second = logger.RunLogger(tmp_path, make_console())
    second.log_scalars("model", 2, {})
    second.close()
    assert [line["step"] for line in described(tmp_path)] == [1, 2]


def test_progress_is_plain_lines_without_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(logger, "LINE_EVERY", 0.0)
    console = make_console()
    out = logger.RunLogger(tmp_path, console)
    with closing(out), out.progress("world model", 1200, start=400) as progress:
        progress.advance(10, prediction=torch.tensor(0.02123))
        progress.advance(790)
    first, last = console.file.getvalue().splitlines()
    assert first.startswith("world model  410/1200  ")
    assert first.endswith("left  prediction 0.0212")
    assert last.startswith("world model  1200/1200  ")
    assert last.endswith("/s  0 s left")


def test_the_time_left_is_not_estimated_from_the_first_of_many_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(logger, "LINE_EVERY", 0.0)
    console = make_console()
    with closing(logger.RunLogger(tmp_path, console)) as out, out.progress("a", 5000) as progress:
        for steps in (1, 9):
            progress.advance(steps)
    assert [" left" in line for line in console.file.getvalue().splitlines()] == [False, True]


def test_the_rate_is_that_of_this_process_not_of_the_resumed_run(tmp_path):
    console = make_console()
    out = logger.RunLogger(tmp_path, console)
    with closing(out), out.progress("critic", 10**9, start=10**9 - 1) as progress:
        time.sleep(0.05)
        progress.advance()
    pace = float(console.file.getvalue().split()[2].removesuffix("/s"))
    assert 0 < pace <= 20


def test_progress_is_a_bar_on_a_terminal(tmp_path):
    console = make_console(terminal=True)
    out = logger.RunLogger(tmp_path, console)
    with closing(out), out.progress("critic", 5) as progress:
        progress.advance(5)
    assert "critic" in console.file.getvalue()
    assert "5/5" in console.file.getvalue()


def test_an_info_is_one_line(tmp_path):
    console = make_console()
    with closing(logger.RunLogger(tmp_path, console)) as out:
        out.info("[bold]" + " long" * 30)
    assert console.file.getvalue() == "[bold]" + " long" * 30 + "\n"


def test_the_null_logger_accepts_everything_and_prints_nothing(capsys):
    no_callback = logger.Logger()
    no_callback.log_scalars("a", 1, {"b": 2.0})
    no_callback.log_image("a", np.zeros((1, 1, 3), np.uint8), 1)
    no_callback.log_video("a", b"", 1)
    no_callback.info("a")
    with no_callback.progress("a", 3) as progress:
        progress.advance(3, loss=1.0)
    no_callback.close()
    assert capsys.readouterr() == ("", "")


def test_a_table_shows_figures_and_gaps():
    console = make_console()
    console.print(logger.table("Who", ["mode", "success"], [["plan", 0.98765], ["react", None]]))
    assert "0.988" in console.file.getvalue()
    assert "-" in console.file.getvalue()


def test_the_interval_of_a_rate_is_wilsons():
    assert intervals.rate(torch.ones(10)) == {
        "mean": 1.0,
        "ci95": [pytest.approx(0.7225, abs=1e-4), 1.0],
    }
    assert intervals.rate([]) == {"mean": None, "ci95": None}
    with pytest.raises(ConfigError):
        intervals.rate([0.5])


def test_outcomes_of_a_group_count_as_one_in_the_interval_of_a_rate():
    assert intervals.rate([1, 0, 1, 1], [0, 0, 1, 1]) == {
        "mean": 0.75,
        "ci95": [pytest.approx(0.1979, abs=1e-4), pytest.approx(0.9733, abs=1e-4)],
    }
    once, thrice = np.array([1.0, 0, 0, 1, 1]), np.arange(15) // 3
    assert intervals.rate(once.repeat(3), thrice) == intervals.rate(once)
    assert intervals.rate(once, range(5)) == intervals.rate(once)


def test_numbers_of_a_group_are_resampled_together_for_the_interval_of_a_mean():
    once, thrice = np.array([1.0, 5, 2, 8]), np.arange(12) // 3
    assert intervals.mean(once.repeat(3), thrice) == intervals.mean(once)
    assert intervals.mean([4.0, 1.0, 7.0], [9, 9, 9]) == {"mean": 4.0, "ci95": None}
    # groups of 1 and of 3: one of them alone, or both
    assert intervals.mean([8.0, 1, 2, 3], [0, 1, 1, 1]) == {"mean": 3.5, "ci95": [2.0, 8.0]}


def test_the_interval_of_a_mean_covers_the_truth_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    found = [intervals.mean(rng.normal(3.0, 2.0, 40))["ci95"] for _ in range(100)]
    assert 88 <= sum(low <= 3.0 <= high for low, high in found) <= 99


def test_the_interval_of_a_mean_of_few_numbers_is_wide():
    assert intervals.mean([2.0, 2.0, 2.0]) == {"mean": 2.0, "ci95": [2.0, 2.0]}
    assert intervals.mean([2.0]) == {"mean": 2.0, "ci95": None}
    assert intervals.mean([]) == intervals.mean([1.0, math.nan]) == {"mean": None, "ci95": None}
    assert intervals.mean([1.0, 2.0, 5.0]) == intervals.mean(torch.tensor([1.0, 2.0, 5.0]))
