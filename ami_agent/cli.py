"""The command line. One line of complaint for input that won't do (exit code 2) or a run that
failed (1); nothing that was learnt is lost."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from rich.console import Console

from ami_agent import catalogue, runs, settings
from ami_agent.ablate import Alone, Cluster, Crew, Processes, named, question, study, variants
from ami_agent.ablate import show as show_study
from ami_agent.bench import BENCHES
from ami_agent.build import Config
from ami_agent.changes import asked
from ami_agent.evaluate import judge, rows
from ami_agent.flags import (
    AblateFlags,
    BenchFlags,
    EnvFlags,
    EvalFlags,
    ListFlags,
    ProbeFlags,
    ShowFlags,
    StudyFlags,
    TrainFlags,
    aliased,
    check_target,
    device,
    rooted,
)
from ami_agent.interrupt import Interrupted, end, handled
from ami_agent.life import WorldConfig
from ami_agent.priors import card
from ami_agent.probe import examiner, verdict
from ami_agent.recipes import OPEN, recipe
from ami_agent.recipes.gym import DEFAULT_WORLD
from ami_agent.report import Report, Spoken, one_line, print_table, say
from ami_agent.resources import allocation_failure
from ami_agent.run_lock import owned
from ami_agent.train import check, train
from modules.types import Diverged, UnusableInput


def _write(path: str, results: Mapping[str, Any]) -> None:
    if path:
        runs.write_json(Path(path), results)


def _all(*steps: Callable[[], None]) -> None:
    """Takes every step, and raises the first error of the disk at the end: what one file can't hold
    another can."""
    errors: list[OSError] = []
    for step in steps:
        try:
            step()
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _recipe(name: str, argv: Sequence[str], program: str) -> tuple[Config, list[str]]:
    """The settings of that name, and the flags that are left; a recipe for any world takes from
    them which world, `--env.id ID`."""
    if name not in OPEN:
        return recipe(name), list(argv)
    flags, rest = settings.parse_known(EnvFlags(env=DEFAULT_WORLD), argv, program)
    return OPEN[name](rooted(flags.env), flags.data), rest


def train_command(name: str, argv: Sequence[str], console: Console) -> None:
    config, argv = _recipe(name, argv, f"ami train {name}")
    flags = settings.parse(TrainFlags(config=config), argv, f"ami train {name}")
    check_target(flags.json)
    out = Path(flags.out or Path("runs") / name / str(flags.seed))
    check(flags.config, out, flags.seed, flags.resume)
    device(flags.device)
    with owned(out), closing(Report(out, console)) as report:
        _train(name, flags, out, report, console)


def _train(name: str, flags: TrainFlags, out: Path, report: Report, console: Console) -> None:
    """Trains, and evaluates both modes; the figures are printed before they are written."""
    from ami_agent.show import pictured  # drawing is slow to import

    report.say(f"{name}, seed {flags.seed}, on {device(flags.device)}, into {out}")
    agent = train(
        flags.config, out=out, seed=flags.seed, device=device(flags.device),
        resume=flags.resume, report=report, save_every=flags.save_every, curve=flags.curve,
        keep_memory=flags.keep_memory,
    )  # fmt: skip
    found = judge(agent, flags.config.evaluation, episodes=flags.episodes, say=report.say)
    results = {mode: {"recipe": name, **marks} for mode, marks in found.items()}
    print_table(console, f"{name}, seed {flags.seed}", *rows(results))
    _all(
        lambda: runs.write_json(out / "eval.json", results),
        lambda: _write(flags.json, results),
        lambda: pictured(agent, flags.config.evaluation, report),  # last: it calls strangers' code
    )


def eval_command(name: str, argv: Sequence[str], console: Console) -> None:
    flags = settings.parse(EvalFlags(), aliased(argv), "ami eval DIR")
    check_target(flags.json)
    config = runs.config_of(Path(name), flags.imports, flags.trust)
    world = _evaluated_in(config, flags.env, flags.variant)
    if flags.accept_other_spaces:
        world = replace(world, accept_other_spaces=True)
    agent = runs.load(name, device(flags.device), config)
    found = judge(
        agent, world, modes=(flags.mode,), task=flags.task, episodes=flags.episodes,
        seed=flags.seed, say=partial(say, console),
    )  # fmt: skip
    results = {"recipe": config.recipe, **found[flags.mode]}
    title = " ".join(filter(None, (world.id, world.variant, results["task"])))
    print_table(console, f"{name}: {title}", *rows({flags.mode: results}))
    if results["violated"]:
        say(
            console,
            f"no plan kept the task's limits in {100 * results['violated']:.1f} % of the moments: "
            "there the least violation was chosen",
        )
    _write(flags.json, results)


def _evaluated_in(config: Config, env: str, variant: str) -> WorldConfig:
    """The environment of an evaluation, where the flags may name another."""
    world = config.evaluation
    if env and env != world.id:
        world = replace(world, id=env, variant="", options={})
    return replace(world, variant=variant or world.variant)


def show_command(name: str, argv: Sequence[str], console: Console) -> None:
    from ami_agent.show import show  # drawing is slow to import
    from ami_agent.show.live import live, stay

    flags = settings.parse(ShowFlags(), aliased(argv), "ami show DIR")
    check_target(flags.json)
    config = runs.config_of(Path(name), flags.imports, flags.trust)
    world = _evaluated_in(config, flags.env, flags.variant)
    agent = runs.load(name, device(flags.device), config)
    asked: dict[str, Any] = {"mode": flags.mode, "seed": flags.seed, "episodes": flags.episodes}
    if flags.live:
        lives = live(
            agent, world, console, task=flags.task, port=flags.port, linger=partial(stay, console),
            **asked,
        )  # fmt: skip
        _write(flags.json, {**asked, "lives": [life.verdict for life in lives]})
        return
    say(console, f"The agent acts in {flags.episodes} episodes, and the viewer draws them.")
    page = show(
        agent, world, Path(flags.out or Path(name) / "show"),
        task=flags.task, report=Spoken(console), mp4=flags.mp4, **asked,
    )  # fmt: skip
    say(console, f"open {page}")
    _write(flags.json, {"page": str(page), **asked})


def ablate_command(name: str, argv: Sequence[str], console: Console) -> None:
    if ".py:" in name:
        flags, configs = settings.parse(StudyFlags(), argv, f"ami ablate {name}"), named(name)
    else:
        config, argv = _recipe(name, argv, f"ami ablate {name}")
        flags = parts = settings.parse(AblateFlags(config=config), argv, f"ami ablate {name}")
        configs = variants(parts.config, parts.without, parts.swap)
    check_target(flags.json)
    crew: Crew = Processes(flags.workers) if flags.workers > 1 else Alone(console)
    label = name.rpartition(":")[2]
    out = Path(flags.out or Path("runs") / f"ablate-{label}")
    done = study(
        label, configs, out=out, seeds=flags.seeds, episodes=flags.episodes,
        device=device(flags.device), crew=Cluster(flags.ray) if flags.ray else crew,
        console=console, asked=question(name),
    )  # fmt: skip
    show_study(console, done)
    from ami_agent.ablate import page  # drawing is slow to import

    _all(
        lambda: _write(flags.json, done.told()),
        lambda: say(console, f"open {page.write(out / 'index.html', done)}"),
    )
    done.check(out)


def probe_command(name: str, argv: Sequence[str], console: Console) -> None:
    from ami_agent.show.card import draw  # drawing is slow to import

    flags = settings.parse(ProbeFlags(), aliased(argv), "ami probe DIR")
    check_target(flags.json)
    config = runs.config_of(Path(name), flags.imports, flags.trust)
    agent = runs.load(name, device(flags.device), config)
    changes = asked(flags.changes, agent.spec)
    marks = examiner(config.evaluation, flags.seed)(agent)
    found = card(agent, config, flags.seed, changes)
    figures = [(label, f"{value:.4g}") for label, value in marks.items()]
    print_table(console, name, ["what", "figure"], figures)
    console.print(*found.tables())
    say(console, verdict(marks))
    _all(
        lambda: _write(flags.json, {**marks, "priors": found.figures()}),
        lambda: say(console, f"open {draw(Path(name) / 'probe.png', found, name)}"),
    )


def bench_command(name: str, argv: Sequence[str], console: Console) -> None:
    if not name:
        flags = settings.parse(BenchFlags(), argv, "ami bench [NAME]")
        told = {name: catalogue.first_line(bench) for name, bench in BENCHES.items()}
        check_target(flags.json)
        print_table(console, "ami bench NAME", ["name", "what"], list(told.items()))
        _write(flags.json, told)
        return
    if name not in BENCHES:
        raise UnusableInput(f"no benchmark {name!r}; there are {', '.join(BENCHES)}")
    bench = settings.parse(BENCHES[name], argv, f"ami bench {name}")
    check_target(bench.json)
    _write(bench.json, bench.run(console))


def list_command(name: str, argv: Sequence[str], console: Console) -> None:
    flags = settings.parse(ListFlags(), argv, "ami list")
    check_target(flags.json)
    tables = catalogue.tables()
    told = {title: {row[0]: list(row[1:]) for row in rows_} for title, _, rows_ in tables}
    for title, columns, entries in tables:
        print_table(console, title, columns, entries)
    _write(flags.json, told)


Command = Callable[[str, Sequence[str], Console], None]
COMMANDS: dict[str, tuple[Command, str, str]] = {
    "train": (train_command, "RECIPE", "train an agent"),
    "eval": (eval_command, "DIR", "how well the agent of a run does"),
    "show": (show_command, "DIR", "what it was thinking, as pictures"),
    "ablate": (ablate_command, "RECIPE", "what each part is worth"),
    "probe": (probe_command, "DIR", "what the representation knows"),
    "bench": (bench_command, "[NAME]", "speed and learning, side by side with references"),
    "list": (list_command, "", "recipes, worlds, boxes"),
}


def _usage() -> str:
    lines = [f"  ami {name:7}{what:8}{does}" for name, (_, what, does) in COMMANDS.items()]
    return "\n".join(["usage: ami COMMAND ... (--help after any of them)", *lines])


def _run(argv: Sequence[str], console: Console) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        console.print(_usage(), markup=False, highlight=False)
        return
    name, rest = argv[0], list(argv[1:])
    if name not in COMMANDS:
        raise UnusableInput(f"no command {name!r}; there are {', '.join(COMMANDS)}")
    command, what, _ = COMMANDS[name]
    asked = bool(rest) and rest[0] in ("-h", "--help")
    named = bool(what and rest) and not rest[0].startswith("-")
    if what.isalpha() and not asked and not named:
        raise UnusableInput(f"ami {name} needs a {what} first: ami {name} {what} [--flag ...]")
    subject = rest.pop(0) if named else "two-rooms" if what == "RECIPE" else ""
    command(subject, rest, console)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name may hold what a terminal can't show
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console()
    try:
        with handled():
            _run(sys.argv[1:] if argv is None else argv, console)
    except UnusableInput as error:
        return _complain(error, 2)
    except (Diverged, OSError) as error:
        return _complain(error, 1)
    except (MemoryError, RuntimeError) as error:
        if not (failure := allocation_failure(error)):
            raise
        return _complain(failure, 1)
    except KeyboardInterrupt as error:
        end([child for child in active_children() if child.daemon], 0.0)
        said = error.said if isinstance(error, Interrupted) else "interrupted"
        return _complain(said, 1)
    return 0


def _complain(what: object, code: int) -> int:
    print(f"ami: {one_line(str(what).strip())}", file=sys.stderr)
    return code
