"""The command line. Unusable input is answered with one line and exit code 2, a run that failed
with one line and exit code 1; a checkpoint keeps what was learnt."""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any, TextIO, TypeVar

import gymnasium
import torch
from rich.console import Console

from ami_agent import ablation, config_io
from ami_agent.adapters.env import EnvConfig, check_step
from ami_agent.adapters.fault_tolerance import EnvError
from ami_agent.adapters.goal_env import DESIRED_GOAL
from ami_agent.adapters.imports import call_function, check_names_function
from ami_agent.agent import Agent
from ami_agent.argument_checks import unknown_name
from ami_agent.bench import BENCHMARKS
from ami_agent.cli import config_flags
from ami_agent.cli.command_flags import (
    TRAIN_ALIASES,
    AblateFlags,
    BenchFlags,
    EnvFlags,
    EvalFlags,
    ListFlags,
    ProbeFlags,
    ShowFlags,
    StudyFlags,
    TrainFlags,
    first_paragraph,
    parse,
    resolve_aliases,
    resolve_device,
    with_absolute_imports,
    with_imports,
    write_results,
)
from ami_agent.cli.data import data_command
from ami_agent.config import Config, override
from ami_agent.evaluation.evaluate import check_episodes, evaluate_modes, table_rows
from ami_agent.evaluation.progress import PolicyProgress
from ami_agent.hardware import allocation_failure, missing_operation, num_cores
from ami_agent.interrupt import Interrupted, handled, terminate
from ami_agent.logger import ConsoleLogger, RunLogger, one_line, print_line, print_table
from ami_agent.probing.data import load_perturbations
from ami_agent.probing.probe import describe_collapse, make_probe
from ami_agent.probing.scorecard import compute_scorecard
from ami_agent.recipes import ENV_RECIPES, RECIPE_IMPORTS, RECIPES, recipe
from ami_agent.storage import run_dir
from ami_agent.storage.files import locked
from ami_agent.train import check, run_precision, train
from ami_agent.training import LoadDataset, distributed
from ami_agent.training.precision import check_available
from ami_agent.user_components import allow_components, needs_files
from modules.types import ConfigError, DivergenceError

BASELINE_WORDS = {"random": "random actions", "oracle": "the oracle where there is one"}
RunFlags = TypeVar("RunFlags", EvalFlags, ShowFlags, ProbeFlags)


def _load(
    name: str, default: RunFlags, argv: Sequence[str], program: str, console: Console
) -> tuple[RunFlags, Config, Agent]:
    """The flags, and the run in the folder `name`; says where its training is unfinished."""
    flags = parse(default, resolve_aliases(argv), program)
    config = run_dir.config_of(Path(name), flags.imports, flags.trust)
    agent = run_dir.load(name, resolve_device(flags.device), config)
    if progress := run_dir.describe_progress(Path(name)):
        print_line(console, f"{name} is unfinished: it was saved{progress}")
    return flags, config, agent


def _run_all(*steps: Callable[[], None]) -> None:
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


def _recipe(
    name: str, argv: Sequence[str], program: str, resumed: Path | None = None
) -> tuple[Config, list[str]]:
    """The settings of a recipe, and the flags that are left. The recipe is one of AMI's or a
    function of the user's, FILE.py:FUNCTION; a recipe for any environment takes from the flags
    which environment (`--env.id ID`). Flags that name the class of a component are taken too.
    `resumed`: the run whose settings stand in the place of the recipe's own."""
    files, env_files, argv = _split_imports(resolve_aliases(argv, TRAIN_ALIASES))
    allow_components(files)
    check_names_function(name, "the Config of a recipe")
    if ".py:" in name:
        config = call_function(name, "the Config of a recipe")
        if not isinstance(config, Config):
            raise ConfigError(f"{name} must return an ami.Config, not {type(config).__name__}")
    elif name in ENV_RECIPES:
        config, left = _recipe_for_env(name, files, argv, program, resumed)
        _check_goal_flags(name, argv, config.env)
        argv = left
    else:
        config = recipe(name) if resumed is None else run_dir.resumed_config(resumed, name, files)
    config = with_imports(config, env_files)
    return config_flags.choose_components(config, argv, keep=resumed is not None)


def _recipe_for_env(
    name: str, files: Sequence[str], argv: Sequence[str], program: str, resumed: Path | None
) -> tuple[Config, list[str]]:
    """The settings of a recipe for any environment, whose code is in `files`, and the flags that
    are left."""
    make, default_env = ENV_RECIPES[name]
    if resumed is None:
        default = EnvFlags(env=replace(default_env, imports=tuple(files)))
        flags, left = config_flags.parse_known(default, argv, program)
        if flags.env.id != default_env.id:  # the default's keyword arguments are not this one's
            default = EnvFlags(env=EnvConfig(id=flags.env.id, imports=tuple(files)))
            flags, left = config_flags.parse_known(default, argv, program)
        return make(with_absolute_imports(flags.env), flags.data), left
    trusted = [*files, *RECIPE_IMPORTS.get(name, ())]
    before = run_dir.resumed_config(resumed, name, trusted)
    data = before.collect if isinstance(before.collect, LoadDataset) else LoadDataset()
    default = EnvFlags(env=before.env, data=data)
    flags, argv = config_flags.parse_known(default, argv, program)
    if flags == default:
        return before, argv
    return _with_env_and_data(before, make(flags.env, flags.data)), argv


def _check_goal_flags(name: str, argv: Sequence[str], env: EnvConfig) -> None:
    """Raises ConfigError for flags that would leave the task of a recipe without its goals."""
    given = " ".join(argv).replace("=", " ").replace("_", "-")
    for flag in ("--env.no-goal-from-obs", "--env.goal-from-obs False"):
        if env.goal_from_obs and flag in given:
            raise ConfigError(
                f"{flag}: the task of the recipe {name} is the {DESIRED_GOAL!r} in the "
                f"observations of {env.id}; leave the flag out"
            )


def _env_flags(name: str, config: Config) -> list[EnvFlags]:
    """The flags that a recipe for any environment takes beside its settings, for the help."""
    return [EnvFlags(env=config.env)] if name in ENV_RECIPES else []


def _with_env_and_data(before: Config, made: Config) -> Config:
    """The settings of a run with the environment, and the recorded data, of others."""
    if type(made.collect) is not type(before.collect):
        return made
    collect = made.collect if isinstance(made.collect, LoadDataset) else before.collect
    return override(before, {"env": made.env, "eval_env": made.eval_env, "stages.collect": collect})


def _split_imports(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The values of `--import` and `--env.import` together, files and modules that define the
    user's components and environments; those of `--env.import`; and the other flags."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag, name in (("--import", "files"), ("--env.import", "env_files")):
        parser.add_argument(flag, dest=name, nargs="+", action="extend", default=[])
    try:
        found, left = parser.parse_known_args(argv)
    except ArgumentError:
        raise ConfigError("--import needs a file (x.py) or a module") from None
    return [*dict.fromkeys([*found.env_files, *found.files])], found.env_files, left


def _resumed_run(name: str, argv: Sequence[str]) -> Path | None:
    """The folder of the run that these flags resume; None where they resume none. A recipe from a
    file is read again."""
    if "--resume" not in argv or ".py:" in name:
        return None
    if name not in RECIPES:
        recipe(name)  # says which there are
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--out", default="")
    parser.add_argument("--seed", default="0")
    try:
        found, _ = parser.parse_known_args(argv)
    except ArgumentError:  # the parser of all flags says what is wrong
        return None
    return Path(found.out or Path("runs") / name / found.seed)


def _title(name: str, config: Config) -> str:
    """What is trained: the recipe, and the environment where the recipe is for any."""
    is_any = config.recipe in ENV_RECIPES
    env = " ".join(filter(None, (config.env.id, config.env.variant)))
    return f"{name} in {env}" if is_any else name


def train_command(name: str, argv: Sequence[str], console: Console) -> None:
    """Trains, and evaluates both modes; the figures are printed before they are written."""
    resumed = _resumed_run(name, argv)
    config, argv = _recipe(name, argv, f"ami train {name}", resumed)
    default = TrainFlags(config=config)
    if resumed is not None:
        default = replace(default, seed=run_dir.manifest_of(resumed)["seed"])
    flags = parse(default, argv, f"ami train {name}", _env_flags(name, config))
    out = Path(flags.out or resumed or Path("runs") / config.recipe / str(flags.seed))
    with _advice_on_env(name, config, flags.config):
        check(flags.config, out, flags.seed, flags.resume)
    device = distributed.own_device(resolve_device(flags.device))
    check_available(run_precision(flags.precision, out, flags.resume), device)
    tasks = flags.config.tasks
    for episodes in (flags.episodes, flags.eval_every_stage):
        check_episodes(tasks, next(iter(tasks)), episodes)
    check_step(flags.config.env)
    train_agent = partial(
        train, flags.config, out=out, seed=flags.seed, device=device, resume=flags.resume,
        precision=flags.precision,
        save_every=flags.save_every, eval_episodes=flags.eval_every_stage,
        keep_replay_buffer=flags.keep_replay_buffer,
    )  # fmt: skip
    rank, size = distributed.launched()
    if rank:
        train_agent()
        sys.stdout.flush()
        sys.stderr.flush()
        # threads of torch.distributed may abort the end of a process, upon which torchrun ends
        # process 0, too, in the middle of its evaluation
        os._exit(0)
    from ami_agent.viewer import log_episode  # drawing is slow to import

    with locked(out), closing(RunLogger(out, console)) as logger:
        among = f" in {size} processes" if size > 1 else ""
        title = f"{_title(name, flags.config)}, seed {flags.seed}"
        logger.info(f"{title}, on {device}{among}, into {out}")
        agent = train_agent(logger=logger)
        logger.info(_describe_evaluation("both modes", flags.episodes))
        with run_dir.threads_of(out), _naming_trained(out):
            env_config = flags.config.eval_env
            recorded_steps = run_dir.recorded_steps(out, flags.config, env_config)
            by_mode = evaluate_modes(
                agent, env_config, episodes=flags.episodes,
                progress=PolicyProgress(logger, recorded_steps),
            )  # fmt: skip
        results = {mode: {"recipe": name, **metrics} for mode, metrics in by_mode.items()}
        print_table(console, title, *table_rows(results))
        _run_all(
            lambda: run_dir.write_json(out / "eval.json", results),
            lambda: write_results(flags.json, results),
            # last: it calls strangers' code
            lambda: log_episode(agent, flags.config.eval_env, logger),
        )


@contextmanager
def _naming_trained(out: Path) -> Iterator[None]:
    """Adds to an error of an evaluation, and to an interruption, that the run is saved."""
    saved = f"{out} is trained and saved; --resume evaluates it again"
    try:
        yield
    except EnvError as error:
        raise EnvError(f"{error}; {saved}") from error
    except Interrupted as interrupt:
        raise Interrupted(f"{interrupt.message}; {saved}") from None


@contextmanager
def _advice_on_env(name: str, recipe_config: Config, config: Config) -> Iterator[None]:
    """Adds to a ConfigError, where the flags name another environment than that of the recipe,
    which recipe takes any."""
    try:
        yield
    except ConfigError as error:
        own_id, env_id = recipe_config.env.id, config.env.id
        if own_id == env_id or repr(env_id) not in str(error):
            raise
        raise ConfigError(
            f"{error}; the recipe {name} is made for {own_id}, and ami train gym --env.id {env_id} "
            "trains in any environment"
        ) from None


def eval_command(name: str, argv: Sequence[str], console: Console) -> None:
    flags, config, agent = _load(name, EvalFlags(), argv, "ami eval DIR", console)
    env_config = _eval_env_config(config, flags.env, flags.variant)
    if flags.accept_other_spaces:
        env_config = replace(env_config, accept_other_spaces=True)
    if flags.compile:
        agent.start_compilation()
        print_line(console, "the first plans take a minute or more: the planner is compiled")
    text = _describe_evaluation(f"mode {flags.mode}", flags.episodes, flags.baselines)
    print_line(console, text)
    by_mode = evaluate_modes(
        agent, env_config, modes=(flags.mode,), task=flags.task, episodes=flags.episodes,
        seed=flags.seed, baselines=flags.baselines, memory=flags.memory,
        save_memory=flags.save_memory,
        progress=PolicyProgress(
            ConsoleLogger(console),
            run_dir.recorded_steps(Path(name), config, env_config, flags.task),
        ),
    )  # fmt: skip
    results = {"recipe": config.recipe, **by_mode[flags.mode]}
    title = " ".join(filter(None, (env_config.id, env_config.variant, results["task"])))
    print_table(console, f"{name}: {title}", *table_rows({flags.mode: results}))
    if results["violated"]:
        print_line(
            console,
            f"no plan kept the task's limits in {100 * results['violated']:.1f} % of the moments: "
            "there the least violation was chosen",
        )
    write_results(flags.json, results)


def _describe_evaluation(
    modes: str, episodes: int, baselines: Sequence[str] = tuple(BASELINE_WORDS)
) -> str:
    policies = ", ".join([modes, *(BASELINE_WORDS[name] for name in baselines)])
    return f"{policies}: {episodes} episode{'s' if episodes > 1 else ''} each"


def _eval_env_config(config: Config, env_id: str, variant: str) -> EnvConfig:
    """The environment of an evaluation, where the flags may name another."""
    env_config = config.eval_env
    if env_id and env_id != env_config.id:
        env_config = replace(env_config, id=env_id, variant="", options={})
    return replace(env_config, variant=variant or env_config.variant)


def show_command(name: str, argv: Sequence[str], console: Console) -> None:
    from ami_agent.viewer import EpisodeSelection, show  # drawing is slow to import
    from ami_agent.viewer.live import PageOptions, show_live, wait_for_interrupt

    flags, config, agent = _load(name, ShowFlags(), argv, "ami show DIR", console)
    env_config = _eval_env_config(config, flags.env, flags.variant)
    options: dict[str, Any] = {"mode": flags.mode, "seed": flags.seed, "episodes": flags.episodes}
    recorded_steps = run_dir.recorded_steps(Path(name), config, env_config, flags.task)
    selection = EpisodeSelection(task=flags.task, recorded_steps=recorded_steps, **options)
    if flags.live:
        beside = None
        if flags.beside:
            its_config = run_dir.config_of(Path(flags.beside), flags.imports, flags.trust)
            second = run_dir.load(flags.beside, resolve_device(flags.device), its_config)
            beside = flags.beside, second, its_config
        recorded = show_live(
            agent, env_config, console, selection,
            page=PageOptions(port=flags.port, config=config, beside=beside),
            wait=partial(wait_for_interrupt, console),
        )  # fmt: skip
        write_results(
            flags.json, {**options, "summaries": [episode.summary for episode in recorded]}
        )
        return
    episodes = "an episode" if flags.episodes == 1 else f"{flags.episodes} episodes"
    print_line(console, f"The agent acts in {episodes}, and the viewer draws what happens.")
    folder = Path(name) / "show"
    if not flags.out and folder.is_symlink():
        raise ConfigError(f"{folder} is a symbolic link: name the folder for the page with --out")
    page = show(
        agent, env_config, Path(flags.out or folder), selection,
        logger=ConsoleLogger(console), mp4=flags.mp4,
    )  # fmt: skip
    print_line(console, f"open {page}")
    write_results(flags.json, {"page": str(page), **options})


def ablate_command(name: str, argv: Sequence[str], console: Console) -> None:
    check_names_function(name, ablation.STUDY_CONFIGS)
    advice: AbstractContextManager[None] = nullcontext()
    if ".py:" in name:
        flags = parse(StudyFlags(), argv, f"ami ablate {name}")
        configs = ablation.load_configs(name)
    else:
        config, argv = _recipe(name, argv, f"ami ablate {name}")
        default, beside = AblateFlags(config=config), _env_flags(name, config)
        flags = parts = parse(default, argv, f"ami ablate {name}", beside)
        if not (parts.without or parts.swap):
            names = ", ".join(ablation.removable(parts.config))
            raise ConfigError(
                "a study compares variants: add --without PART (there are "
                f"{names}) or --swap COMPONENT=CLASS (see ami list)"
            )
        configs = ablation.variants(parts.config, parts.without, parts.swap)
        advice = _advice_on_env(name, config, parts.config)
    if (flags.workers > 1 or flags.ray) and any(map(needs_files, configs.values())):
        raise ConfigError("components from a file of your own need --workers 1 and no --ray")
    executor: ablation.Executor = ablation.Serial(console)
    device = flags.device
    if flags.ray:
        resources = ablation.parse_resources(flags.resources)
        executor = ablation.Ray(flags.ray, resources=resources)
        if device == "auto" and resources.get("GPU"):
            device = "cuda"
    elif flags.workers > 1:
        executor = ablation.ProcessPool(_num_workers(flags.workers, console))
    label = name.rpartition(":")[2]
    out = Path(flags.out or Path("runs") / f"ablate-{label}")
    title = label if ".py:" in name else _title(label, next(iter(configs.values())))
    plan = ablation.StudyPlan(
        name=title, configs=configs, seeds=flags.seeds, episodes=flags.episodes,
        # a node of a cluster may have a GPU where this machine has none
        device="cuda" if flags.ray and device == "cuda" else resolve_device(device),
        question=ablation.study_question(name if ".py:" in name else title),
    )  # fmt: skip
    with advice:
        result = ablation.run_study(plan, out=out, executor=executor, console=console)
    ablation.print_study(console, result)
    from ami_agent.ablation import page  # drawing is slow to import

    _run_all(
        lambda: write_results(flags.json, result.to_dict()),
        lambda: print_line(console, f"open {page.write(out / 'index.html', result)}"),
    )
    result.check(out)


def _num_workers(requested: int, console: Console) -> int:
    """So many workers, or as many as have a processor core for each of their threads."""
    num_threads, cores = torch.get_num_threads(), num_cores()
    count = min(requested, max(1, cores // num_threads))
    if count < requested:
        print_line(
            console,
            f"{count} of {requested} workers at a time: this process may use {cores} processor "
            f"cores, and each run takes {num_threads}",
        )
    return count


def probe_command(name: str, argv: Sequence[str], console: Console) -> None:
    from ami_agent.probing.plot import draw_scorecard  # drawing is slow to import

    flags, config, agent = _load(name, ProbeFlags(), argv, "ami probe DIR", console)
    perturbations = load_perturbations(flags.perturbations, agent.spec)
    metrics = make_probe(config.eval_env, flags.seed)(agent)
    scorecard = compute_scorecard(agent, config, flags.seed, perturbations)
    figures = [(label, f"{value:.4g}") for label, value in metrics.items()]
    print_table(console, name, ["what", "figure"], figures)
    console.print(*scorecard.tables())
    for line in (*scorecard.remarks(), describe_collapse(metrics)):
        print_line(console, line)
    _run_all(
        lambda: write_results(flags.json, {**metrics, "scorecard": scorecard.figures()}),
        lambda: print_line(
            console, f"open {draw_scorecard(Path(name) / 'probe.png', scorecard, name)}"
        ),
    )


def bench_command(name: str, argv: Sequence[str], console: Console) -> None:
    if not name:
        flags = parse(BenchFlags(), argv, "ami bench [NAME]")
        descriptions = {
            name: first_paragraph(benchmark.__doc__) for name, benchmark in BENCHMARKS.items()
        }
        print_table(console, "ami bench NAME", ["name", "what"], list(descriptions.items()))
        write_results(flags.json, descriptions)
        return
    if name not in BENCHMARKS:
        raise unknown_name("benchmark", name, BENCHMARKS)
    benchmark = parse(BENCHMARKS[name], argv, f"ami bench {name}")
    write_results(benchmark.json, benchmark.measure(console))


def list_command(name: str, argv: Sequence[str], console: Console) -> None:
    flags = parse(ListFlags(), argv, "ami list")
    recipes = {name: [first_paragraph(make.__doc__)] for name, make in RECIPES.items()}
    envs = [name for name in sorted(gymnasium.registry) if name.startswith("ami/")]
    components = {
        name: [", ".join(choices)] for name, choices in config_io.component_choices().items()
    }
    tables: dict[str, tuple[list[str], Mapping[str, list[str]]]] = {
        "recipes": (["recipe", "what"], recipes),
        "envs": (["id"], {name: [] for name in envs}),
        "components": (["component", "what can stand there"], components),
    }
    for title, (columns, rows) in tables.items():
        print_table(console, title, columns, [[name, *cells] for name, cells in rows.items()])
    write_results(flags.json, {title: rows for title, (_, rows) in tables.items()})


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Prints each warning once, on a line of its own without the place in a package's source."""
    shown: set[str] = set()

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        text = one_line(re.sub(r"\x1b\[\d*m", "", str(message)).strip()).removeprefix("WARN: ")
        if text not in shown:
            shown.add(text)
            print(f"warning: {text}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


Command = Callable[[str, Sequence[str], Console], None]
COMMANDS: dict[str, tuple[Command, str, str]] = {
    "train": (train_command, "RECIPE", "train an agent"),
    "eval": (eval_command, "DIR", "evaluate the agent of a run"),
    "show": (show_command, "DIR", "draw its plans"),
    "ablate": (ablate_command, "RECIPE", "measure what each part is worth"),
    "probe": (probe_command, "DIR", "measure the representation"),
    "data": (data_command, "COMMAND", "inspect, convert and make recorded episodes"),
    "bench": (bench_command, "[NAME]", "compare speed and learning with references"),
    "list": (list_command, "", "recipes, environments, components"),
}


def _usage() -> str:
    lines = [
        f"  ami {name:7}{argument:8}{description}"
        for name, (_, argument, description) in COMMANDS.items()
    ]
    return "\n".join(["usage: ami COMMAND ... (--help after any of them)", *lines])


def _dispatch(argv: Sequence[str], console: Console) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        console.print(_usage(), markup=False, highlight=False)
        return
    name, rest = argv[0], list(argv[1:])
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    if name != "train" and distributed.launched().size > 1:
        raise ConfigError(f"ami {name} runs in a single process: start it without torchrun")
    command, argument, _ = COMMANDS[name]
    is_help = bool(rest) and rest[0] in ("-h", "--help")
    has_subject = bool(argument and rest) and not rest[0].startswith("-")
    if argument.isalpha() and not is_help and not has_subject:
        raise ConfigError(
            f"ami {name} needs a {argument} first: ami {name} {argument} [--flag ...]"
        )
    subject = rest.pop(0) if has_subject else "two-rooms" if argument == "RECIPE" else ""
    command(subject, rest, console)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name may hold what a terminal can't show
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console()
    try:
        with handled(), _plain_warnings():
            _dispatch(sys.argv[1:] if argv is None else argv, console)
    except EnvError as error:  # it was made, and failed while it was stepped
        return _print_error(error, 1)
    except ConfigError as error:
        return _print_error(error, 2)
    except (DivergenceError, OSError) as error:
        return _print_error(error, 1)
    except (MemoryError, RuntimeError) as error:
        if not (failure := allocation_failure(error) or missing_operation(error)):
            raise
        return _print_error(failure, 1)
    except KeyboardInterrupt as error:
        terminate([child for child in active_children() if child.daemon], 0.0)
        message = error.message if isinstance(error, Interrupted) else "interrupted"
        return _print_error(message, 1)
    return 0


MAX_ERROR = 1000
"""Characters, at most, of the beginning of an error's line, and of its end: it may quote a file."""


def _print_error(error: object, code: int) -> int:
    if type(error) in (ConfigError, DivergenceError) and distributed.launched().rank:
        return code  # process 0 finds the same and says so
    line = one_line(str(error).strip())
    if len(line) > 2 * MAX_ERROR:
        line = f"{line[:MAX_ERROR]} ... {line[-MAX_ERROR:]}"
    print(f"ami: {line}", file=sys.stderr)
    return code
