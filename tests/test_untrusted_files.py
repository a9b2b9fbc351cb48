"""Files of a run folder of unknown origin, or damaged ones: each is read, or refused in
one line. Nothing else is raised, nothing hangs, and no memory is taken for absent data."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import ami_agent as ami
from ami_agent import recipes
from ami_agent.ablation.executors import Job, finished_metrics, read_results, run_job_logged
from ami_agent.adapters.env import behaviour_policy, rollout
from ami_agent.cli.main import main
from ami_agent.data.minari import check_minari_files
from ami_agent.data.runs import from_run
from ami_agent.logger import RunLogger
from ami_agent.probing.data import apply_perturbation
from ami_agent.storage import checkpoint, files, run_dir
from ami_agent.storage.files import LOCK, NotWritten, locked
from modules.memory.replay_buffer import ReplayBuffer
from modules.types import ConfigError
from tests.damage import (
    any_bytes,
    changed,
    json_file,
    other_kind,
    tensors_header,
    tensors_values,
)

SHIPPED = Path(__file__).parent.parent / "runs/reference/two-rooms"
MEMORY = 6 * 2**30
"""Bytes of address space for a process that loads mutated folders; libraries take most of it."""


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder that may be damaged."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "run"))


Read = Callable[[Path], object]
READERS: dict[str, list[Read]] = {
    "config.json": [ami.load, lambda run: run_dir.check_same(run, run_dir.settings_of(SHIPPED), 0)],
    "manifest.json": [run_dir.manifest_of, run_dir.seconds_of],
    "metrics.jsonl": [lambda run: run_dir.last_metrics(run, "state")],
    "eval.json": [lambda run: read_results(run / "eval.json")],
    checkpoint.METADATA: [ami.load, lambda run: checkpoint.load(checkpoint.latest(run))],
    checkpoint.TENSORS: [ami.load, lambda run: checkpoint.load(checkpoint.latest(run))],
}
"""What reads each file of a run folder."""


def mutate(run: Path, rng: random.Random) -> tuple[str, str]:
    """Damages one file of a run folder; returns how, and which."""
    name = rng.choice([*READERS, "config.json", checkpoint.TENSORS])
    within = next((run / "checkpoints").iterdir()) / name
    path = within if within.exists() else run / name
    harms = [any_bytes, other_kind]
    if path.suffix == ".json":
        harms += [json_file] * 4
    if name == checkpoint.TENSORS:
        harms += [tensors_header, tensors_values] * 2
    harm = rng.choice(harms)
    harm(path, rng)
    return harm.__name__, name


def campaign(where: Path, seeds: range) -> tuple[int, list[str]]:
    """How many times reading was refused, and what was raised or printed against the rules."""
    refused, wrong = 0, []
    for seed in seeds:
        run = Path(shutil.copytree(SHIPPED, where / str(seed)))
        how, name = mutate(run, random.Random(seed))
        for number, read in enumerate(READERS[name]):
            try:
                read(run)
            except ConfigError as error:
                refused += 1
                if "\n" in str(error) or len(str(error)) > 2000 or str(run) not in str(error):
                    wrong.append(f"{seed} {how} {name} {number}: {error}")
            except BaseException as error:
                wrong.append(f"{seed} {how} {name} {number}: {type(error).__name__}: {error}")
        shutil.rmtree(run)
    return refused, wrong


WITHIN = f"""
import json, pathlib, resource, sys, torch
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
torch.set_num_threads(1)
from tests.test_untrusted_files import campaign
print(json.dumps(campaign(pathlib.Path(sys.argv[1]), range(int(sys.argv[2])))))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_mutated_folders_are_read_or_refused_in_one_line_within_memory(tmp_path):
    """More of the same: another range of seeds."""
    output = subprocess.run(
        [sys.executable, "-c", WITHIN, str(tmp_path), "100"], cwd=SHIPPED.parents[2],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert output.returncode == 0, output.stderr
    found, mebibytes = output.stdout.splitlines()
    refused, wrong = json.loads(found)
    assert wrong == []
    assert refused > 80
    assert int(mebibytes) < 2048


def edited(run: Path, *path: Any, to: Any) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(changed(config, path, to)))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("actor", "planner", "horizon"),
            2.5,
            r"actor\.planner\.horizon: 2\.5 is given, and a whole number",
        ),
        (
            ("actor", "planner", "horizon"),
            True,
            r"actor\.planner\.horizon: True is given, and a whole number",
        ),
        (("actor", "planner", "lr"), "1", r"actor\.planner\.lr: '1' is given, and a finite number"),
        (
            ("stages", "train_jepa", "optim", "batch_size"),
            0,
            r"stages\.train_jepa\.optim: batch_size is 0",
        ),
        (("env", "id"), 7, r"env\.id: 7 is given, and text"),
        (("env", "imports"), "abc", r"env\.imports: 'abc' is given, and a list"),
        (("env", "options"), [], r"env\.options: \[\] is given, and an object"),
        (("env", "more"), 1, "more"),
        (("actor", "planner", "num_proposals"), 2**62, "planner"),
        (("actor", "policy", "hidden"), 40_000, "the agent would take more than|policy"),
    ],
)
def test_settings_of_a_file_are_held_to_the_bounds_of_flags(run, path, value, message):
    edited(run, *path, to=value)
    with pytest.raises(ConfigError, match=message) as refused_message:
        ami.load(run)
    assert str(run / "config.json") in str(refused_message.value)


def test_an_integer_may_stand_for_a_float(run):
    edited(run, "actor", "planner", "lr", to=1)
    assert run_dir.config_of(run).actor.planner.lr == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100 + "]" * 100, "deeper than 64"),
        ("[" * 10**6, "deeper than 64"),
        ("9" * 10_000, "too large"),
        ("1e999", "too large"),
        ("NaN", "NaN is not a JSON number"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ('"\\ud800"', "surrogates"),
        ("", "not readable as JSON"),
    ],
)
def test_the_size_and_depth_of_json_are_bounded(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        files.read_json(tmp_path / "x.json")


def test_a_file_that_begins_with_a_byte_order_mark_is_read(run):
    config = run / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert run_dir.config_of(run) == run_dir.config_of(SHIPPED)


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with (tmp_path / "large").open("wb") as large:
        large.truncate(files.JSON_LIMIT + 1)
    for name, message in (
        ("pipe", "a pipe, a socket or a device"), ("loop", "symbolic links"), (".", "a folder"),
        ("large", "more than 16 MiB"), ("none", "is missing"), ("n\0ul", "can't be read"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            files.read_json(tmp_path / name)
    with pytest.raises(ConfigError, match="device"):
        files.read_json(Path("/dev/zero"))


SPECIAL = {
    "pipe": (os.mkfifo, "a socket, or a pipe without a reader"),
    "socket": (lambda path: os.mknod(path, stat.S_IFSOCK), "a socket, or a pipe without a reader"),
    "loop": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "folder": (Path.mkdir, "Is a directory"),
    "device": (lambda path: path.symlink_to("/dev/full"), "No space left"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_no_writer_waits_for_a_special_file(kind, tmp_path):
    make, message = SPECIAL[kind]
    for name in ("file", "log.txt", LOCK, "memory"):
        make(tmp_path / name)
    refused = pytest.raises((ConfigError, OSError), match=r"regular file|symbolic links")
    with pytest.raises(NotWritten, match=rf"file was not written: .*{message}"):
        files.write_text(tmp_path / "file", "text", follow_links=True)
    with refused:
        files.open_regular(tmp_path / "file", append=True)
    with refused:
        run_job_logged(Job("variant", recipes.two_rooms(), tmp_path, 0, 1, "cpu"), 1)
    refused_lock = pytest.raises((ConfigError, OSError), match=r"\.lock (is a|was not written)")
    with refused_lock, locked(tmp_path):
        pass
    files.remove_folder(tmp_path / "memory")
    left = {"file", "log.txt", LOCK} | ({"memory"} - {kind.replace("folder", "memory")})
    assert set(os.listdir(tmp_path)) == left


def test_a_lock_and_a_log_change_nothing_outside_their_folder(tmp_path):
    (precious := tmp_path / "precious").write_text("mine\n")
    (run := tmp_path / "run").mkdir()
    (run / LOCK).symlink_to(precious)
    with pytest.raises(NotWritten, match="symbolic links"), locked(run):
        pass
    (run / "metrics.jsonl").symlink_to(precious)
    with pytest.raises(NotWritten, match="symbolic links"):
        RunLogger(run, Console(quiet=True))
    (run / "metrics.jsonl").unlink()
    (run / "events.out.tfevents.1").symlink_to(precious)
    os.mkfifo(run / "events.out.tfevents.2")
    (run / "events.out.tfevents.3").symlink_to("events.out.tfevents.3")
    with closing(RunLogger(run, Console(quiet=True))) as logger:
        assert logger.position() == {"metrics.jsonl": 0}
        logger.rewind({"events.out.tfevents.1": 2, "events.out.tfevents.2": 0})
    assert precious.read_text() == "mine\n"


def test_files_of_a_run_replace_links_and_a_linked_folder_for_pages_is_refused(tmp_path, capsys):
    (precious := tmp_path / "precious").write_text("mine\n")
    for link in (tmp_path / "eval.json", tmp_path / "loop"):
        link.symlink_to(link if link.name == "loop" else precious)
        run_dir.write_json(link, {"a": 1})
        assert not link.is_symlink()
        assert files.read_json(link) == {"a": 1}
    assert precious.read_text() == "mine\n"
    run, pages = tmp_path / "run", tmp_path / "pages"
    shutil.copytree(SHIPPED, run)
    pages.mkdir()
    (run / "show").symlink_to(pages)
    assert main(["show", str(run)]) == 2
    assert (
        "show is a symbolic link: name the folder for the page with --out"
        in capsys.readouterr().err
    )
    assert not os.listdir(pages)


def test_spaces_that_are_a_loop_of_links_are_not_taken_for_none(run):
    (run / "spaces.json").unlink(missing_ok=True)
    (run / "spaces.json").symlink_to("spaces.json")
    with pytest.raises(ConfigError, match=r"spaces\.json can't be read"):
        run_dir.load(run)


def test_sparse_files_of_tensors_are_not_read(run):
    """Gigabytes that a header declares, of which nothing is on the disk."""
    folder = checkpoint.latest(run)
    size = files._machine_memory() // 2
    header = json.dumps(
        {"stage_run.x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    )
    with (folder / checkpoint.TENSORS).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + size)
    with pytest.raises(ConfigError, match="hardly any is on the disk"):
        checkpoint.load(folder)


def test_weights_that_are_not_finite_are_refused(run):
    folder = checkpoint.latest(run)
    tensors, facts = checkpoint.load(folder)
    name = next(name for name, value in tensors.items() if value.ndim == 2)
    tensors[name][0, 0] = torch.nan
    checkpoint.save(folder, tensors, facts)
    with pytest.raises(ConfigError, match=f"{name} holds NaN or infinity"):
        ami.load(run)


def test_a_replay_buffer_that_claims_more_steps_than_it_holds_is_refused(tmp_path, tiny):
    """Declared rows are not allocated before they exist."""
    with closing(tiny.env.build(2)) as env:
        run_dir.create(tmp_path / "run", tiny, 0, "cpu", env.spec)
        memory = ReplayBuffer(9, env.spec.empty_transition(2), "cpu")
        for collected in islice(rollout(behaviour_policy(env), env, env.reset(0)[0]), 6):
            memory.add(collected.transition)
        kept, facts = memory.state_dict(), {}
        checkpoint.save(tmp_path / "run" / "memory", kept, facts)
        steps, _, started = kept["steps"].tolist()
        honest = from_run(str(tmp_path / "run"), env)
        claimed = {**kept, "steps": torch.tensor([steps, 2**40, started])}
        checkpoint.save(tmp_path / "run" / "memory", claimed, facts)
        assert from_run(str(tmp_path / "run"), env).steps == honest.steps == 13
        for harm in (
            {"ended": torch.zeros(10**6, dtype=torch.bool)}, {"steps": torch.tensor([1, -1, 0])},
            {"action": kept["action"][:1]}, {"interoception": kept["interoception"] / 0},
            {"age": kept["age"][0]}, {"steps": torch.zeros(3)},
        ):  # fmt: skip
            checkpoint.save(tmp_path / "run" / "memory", {**kept, **harm}, facts)
            with pytest.raises(ConfigError, match=str(tmp_path / "run")):
                from_run(str(tmp_path / "run"), env)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda obs: None, "returns NoneType; it must return"),
        (lambda obs: obs[:, :1], "it must return"),
        (lambda obs: obs.double(), "it must return"),
        (lambda obs: {"obs": obs}, "it must return"),
        (lambda obs: obs / 0, "NaN or infinity"),
        (lambda obs: sys.exit(3), "fails: SystemExit"),
    ],
)
def test_perturbations_must_return_observations_of_the_same_kind(change, message):
    with pytest.raises(ConfigError, match=message):
        apply_perturbation("odd", change, torch.zeros(2, 3))


def test_a_damaged_evaluation_is_reported_before_a_study_begins(run):
    (run / "eval.json").write_text('{"plan": {"episodes": 2}}')
    job = Job("one", run_dir.settings_of(SHIPPED), run, 0, 2, "cpu")
    with pytest.raises(ConfigError, match="no metrics of mode plan: remove it"):
        finished_metrics(job)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda file: None, ""),
        (
            lambda file: file.create_dataset("episode_0/infos", (2**40,), "u1", chunks=True),
            "claims",
        ),
        (lambda file: file.create_dataset("episode_1/rewards", data=[1.0]), "holds 4"),
        (lambda file: file.__setitem__("more", h5py().ExternalLink("/etc/passwd", "/")), "link"),
        (lambda file: file.__setitem__("more", h5py().SoftLink("/episode_0")), "link"),
    ],
)
def test_arrays_of_a_dataset_must_be_in_its_own_file(tmp_path, harm, message):
    facts = {"total_steps": 3, "total_episodes": 1, "data_format": "hdf5"}
    (tmp_path / "metadata.json").write_text(json.dumps(facts))
    with h5py().File(tmp_path / "main_data.hdf5", "w") as file:
        file.create_dataset("episode_0/rewards", data=[1.0, 2.0, 3.0])
        harm(file)
    if not message:
        check_minari_files(tmp_path)
        return
    with pytest.raises(ConfigError, match=message):
        check_minari_files(tmp_path)


def h5py() -> Any:
    return pytest.importorskip("h5py", reason="the extra `minari` is not installed")


def test_a_dataset_must_be_regular_files(tmp_path):
    (tmp_path / "metadata.json").write_text('{"total_steps": 1, "total_episodes": 1}')
    os.mkfifo(tmp_path / "part.arrow")
    with pytest.raises(ConfigError, match="a pipe"):
        check_minari_files(tmp_path)
    (tmp_path / "metadata.json").write_text('{"total_steps": 1.5, "total_episodes": 1}')
    with pytest.raises(ConfigError, match="total_steps: it must be a whole number"):
        check_minari_files(tmp_path)
