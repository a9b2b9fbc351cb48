"""The energy of a next state: z is inferred by minimising it, by descent, LISTA or enumeration; and
it is low on data and high off it."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ami_agent import ablation, config_io, recipes
from ami_agent.config import build
from ami_agent.probing.energies import NOISE_LEVELS, TRUE, energy_curve
from ami_agent.training.jepa import unroll_loss
from modules.actor.planning.risk import free_energy
from modules.types import ConfigError, Trajectory
from modules.world_model.dynamics import MLPDynamicsConfig
from modules.world_model.energies import (
    LISTA,
    GroupSparsity,
    LatentEnergy,
    LISTAConfig,
    NormalPrior,
    ProximalDescent,
    ProximalDescentConfig,
    shrink,
)
from modules.world_model.jepa import NoEnsemble, NoInteroception, WorldModel
from modules.world_model.latents import (
    CategoricalLatentConfig,
    GaussianLatentConfig,
    Latent,
    QuantizedLatentConfig,
    SparseLatentConfig,
)
from tests.conftest import error_line, small

WEIGHT = 0.3  # lambda
DIM, SIZE = 16, 32


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dictionary(dtype: torch.dtype = torch.float32) -> Tensor:
    return nn.functional.normalize(normal(DIM, SIZE, dtype=dtype), dim=0)


def sparse_coding(target: Tensor, columns: Tensor, group_size: int = 1) -> LatentEnergy:
    """|y - D z|^2 / 2 + lambda R(z)"""
    return LatentEnergy(lambda z: z @ columns.T, target, GroupSparsity(group_size), WEIGHT)


def ista(energy: LatentEnergy, columns: Tensor, steps: int) -> Tensor:
    descent = ProximalDescent(steps, 1 / float(torch.linalg.matrix_norm(columns, 2)) ** 2)
    return descent(energy, energy.target.new_zeros(len(energy.target), columns.shape[1]))


def test_an_energy_by_hand():
    energy = LatentEnergy(lambda z: 2 * z, torch.tensor([[1.0, 4.0]]), GroupSparsity(), 0.5)
    assert energy(torch.tensor([[1.0, -1.0]])).tolist() == [(1 + 36) / 2 + 0.5 * 2]
    assert GroupSparsity(2)(torch.tensor([3.0, 4.0, 0.0, 0.0])).item() == pytest.approx(5 * 2**0.5)
    prior = NormalPrior(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]))
    assert prior(torch.tensor([3.0, 3.0])).item() == (1 + 9) / 2


def test_shrinking_by_hand():
    z = torch.tensor([3.0, -0.5, -2.0, 0.0])
    torch.testing.assert_close(shrink(z, torch.ones(1)), torch.tensor([2.0, 0.0, -1.0, 0.0]))
    pairs = torch.tensor([3.0, 4.0, 0.3, -0.4])
    torch.testing.assert_close(shrink(pairs, torch.ones(1), 2), torch.tensor([2.4, 3.2, 0.0, 0.0]))


@pytest.mark.parametrize(
    "regularizer",
    [GroupSparsity(), GroupSparsity(2), NormalPrior(normal(4, seed=3), normal(4, seed=4).exp())],
)
def test_a_proximal_operator_minimises_what_it_says(regularizer):
    z, step = 2 * normal(50, 4), 0.7 * torch.ones(50, 1)
    found = regularizer.prox(z, step)

    def objective(v: Tensor) -> Tensor:
        return 0.7 * regularizer(v) + (v - z).square().sum(-1) / 2

    for seed in range(20):
        other = found + 0.03 * normal(50, 4, seed=seed)
        assert (objective(found) <= objective(other)).all()
    assert (objective(found) < objective(z)).all()


@pytest.mark.parametrize("group_size", [1, 4])
def test_descent_finds_the_minimum_that_optimality_conditions_name(group_size):
    columns = dictionary(torch.float64)
    target = 0.5 * normal(20, DIM, seed=1, dtype=torch.float64)
    energy = sparse_coding(target, columns, group_size)
    z = ista(energy, columns, 1500)
    slope = ((z @ columns.T - target) @ columns).unflatten(-1, (-1, group_size))
    groups = z.unflatten(-1, (-1, group_size))
    norms, limit = groups.norm(dim=-1), WEIGHT * group_size**0.5
    active = norms > 0
    assert 0 < active.float().mean() < 0.9  # some groups are zero, as wholes
    assert (slope.norm(dim=-1)[~active] <= limit + 1e-9).all()
    stationary = slope + limit * groups / norms.clamp_min(1e-12)[..., None]
    assert stationary[active].abs().max() < 1e-6


def test_descent_never_raises_the_energy_whatever_the_step():
    columns, target = dictionary(), normal(30, DIM, seed=1)
    energy = sparse_coding(target, columns)
    guess = normal(30, SIZE, seed=2)
    values = [energy(ProximalDescent(steps, 100.0)(energy, guess)) for steps in range(12)]
    assert all((b <= a * (1 + 1e-5)).all() for a, b in pairwise(values))
    assert (values[-1] < 0.5 * values[0]).all()


def test_lista_with_the_weights_of_ista_is_ista():
    columns = dictionary(torch.float64)
    target = normal(20, DIM, seed=1, dtype=torch.float64)
    for group_size in (1, 4):
        energy = sparse_coding(target, columns, group_size)
        with torch.no_grad():
            few = LISTA.of_dictionary(columns, WEIGHT, 6, group_size)(target)
            fixed_point = LISTA.of_dictionary(columns, WEIGHT, 800, group_size)(target)
        torch.testing.assert_close(few, ista(energy, columns, 7), atol=1e-12, rtol=0)
        torch.testing.assert_close(fixed_point, ista(energy, columns, 801), atol=1e-9, rtol=0)


def test_trained_lista_reaches_the_energy_of_ista_in_a_tenth_of_its_iterations():
    columns, data = dictionary(), torch.Generator().manual_seed(5)
    target = torch.randn(500, DIM, generator=data)
    energy = sparse_coding(target, columns)
    network = LISTA.of_dictionary(columns, WEIGHT, 9)  # 10 iterations
    optim = torch.optim.Adam(network.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optim, 5e-3, total_steps=250)
    for _ in range(250):
        batch = torch.randn(64, DIM, generator=data)
        loss = sparse_coding(batch, columns)(network(batch)).mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
        schedule.step()
    with torch.no_grad():
        reached = energy(network(target)).mean()
    hundred, ten = (energy(ista(energy, columns, steps)).mean() for steps in (100, 10))
    assert reached < 1.05 * hundred < ten


def model(latent: Any = None) -> WorldModel:
    """A world model of states of 3 numbers and actions of 1."""
    torch.manual_seed(0)
    built = Latent() if latent is None else latent.build(3, 1)
    dynamics = MLPDynamicsConfig(hidden=32).build((3, 1, 1), 1, built.size)
    nn.init.normal_(dynamics.delta_head.weight, std=0.2)
    return WorldModel(dynamics, built, NoInteroception(), NoEnsemble(), 1)


KINDS = {
    "none": None,
    "gaussian": GaussianLatentConfig(size=2, inference=ProximalDescentConfig(steps=5)),
    "sparse": SparseLatentConfig(size=2, inference=ProximalDescentConfig(steps=5)),
    "lista": SparseLatentConfig(size=2, inference=LISTAConfig()),
    "categorical": CategoricalLatentConfig(num_categories=4, noise_std=0.5),
    "quantized": QuantizedLatentConfig(levels=(2, 3), noise_std=0.5),
}
DISCRETE = {
    "categorical": torch.eye(4),
    "quantized": torch.tensor([[x, y] for x in (-1.0, 1.0) for y in (-1.0, 0.0, 1.0)]),
}
"""The codes of the kinds that enumerate them."""


class Linear(nn.Module):
    """s' = s + z W: one minimum of the energy in z."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.matrix = normal(size, 3, seed=9)

    def forward(self, state: Tensor, action_latent: Tensor) -> Tensor:
        return state + action_latent[:, 1:] @ self.matrix


def batch() -> tuple[Tensor, Tensor, Tensor]:
    return normal(5, 3), normal(5, 1, seed=1), normal(5, 3, seed=2)


def test_without_a_latent_variable_the_energy_is_half_the_squared_error():
    made, (state, action, next_state) = model(), batch()
    error = (next_state - made.step(state, action).state).square().sum(-1)
    torch.testing.assert_close(made.energy(state, action, next_state), error / 2)
    pairs = [part.expand(2, 5, -1) for part in (state, action, next_state)]
    torch.testing.assert_close(made.energy(*pairs), (error / 2).expand(2, 5))


@pytest.mark.parametrize("kind", ["gaussian", "sparse", "categorical", "quantized"])
def test_the_energy_is_the_least_over_the_latent_variable(kind):
    made, (state, action, next_state) = model(KINDS[kind]).eval(), batch()
    latent: Any = made.latent
    if kind not in DISCRETE:
        latent.inference = ProximalDescent(200)
        made.dynamics = Linear(latent.size)
    found = made.energy(state, action, next_state)
    if kind in DISCRETE:
        every = DISCRETE[kind][:, None].expand(-1, 5, -1)
        weight = 0.5**2
        surprise = -(latent.prior_net(torch.cat([state, action], -1)).log_softmax(-1)).T
    else:
        grid = torch.linspace(-4, 4, 81)
        every = torch.cartesian_prod(grid, grid)[:, None].expand(-1, 5, -1)
        weight = 0.01
        surprise = every.abs().sum(-1)
        if kind == "gaussian":
            mean, raw = latent.prior_net(torch.cat([state, action], -1)).chunk(2, -1)
            scale = nn.functional.softplus(raw) + 1e-2
            surprise = ((every - mean) / scale).square().sum(-1) / 2
    count = len(every)
    actions = torch.cat([action.expand(count, -1, -1), every], -1).flatten(0, 1)
    predicted = made.dynamics(state.expand(count, -1, -1).flatten(0, 1), actions)
    error = (next_state - predicted.unflatten(0, (count, 5))).square().sum(-1) / 2
    least = (error + weight * surprise).amin(0)
    assert (found <= least * (1 + 1e-3) + 1e-6).all()
    torch.testing.assert_close(found, least, rtol=0.03, atol=1e-3)


@pytest.mark.parametrize("kind", DISCRETE)
def test_the_posterior_of_codes_is_the_gibbs_distribution_of_their_energies(kind):
    made, (state, action, next_state) = model(KINDS[kind]), batch()
    latent: Any = made.latent
    energies = latent.energies(state, action, next_state, made.dynamics).double()
    temperature = latent.noise_std**2
    gibbs = (-energies / temperature).softmax(-1)
    noise = torch.rand(4000, 1, generator=torch.Generator().manual_seed(0))
    sampled = latent.posterior(
        *(part[:1].expand(4000, -1) for part in (state, action, next_state)), noise, made.dynamics
    ).action_latent[:, 1:]
    assert (gibbs.amax(-1) < 0.99).any()
    is_code = (sampled[:, None] == DISCRETE[kind]).all(-1)
    torch.testing.assert_close(is_code.double().mean(0), gibbs[0], atol=0.03, rtol=0)
    # with a sum in place of the mean, the free energy is the negative log-likelihood
    summed = free_energy(energies, 1 / temperature) - temperature * log(len(gibbs[0]))
    torch.testing.assert_close(summed, -temperature * (-energies / temperature).logsumexp(-1))


@pytest.mark.parametrize("kind", ["gaussian", "sparse", "lista"])
def test_every_way_of_inference_is_trained(kind):
    """All parts of the latent variable get a gradient, and the states none."""
    made = model(KINDS[kind])
    state, action, next_state = (part.requires_grad_() for part in batch())
    noise = torch.full((5, made.latent.noise_dim), 0.4)
    found = made.latent.posterior(state, action, next_state, noise, made.dynamics)
    error = (made.dynamics(state.detach(), found.action_latent) - next_state.detach()).square()
    (error.mean() + found.kl + found.prior_nll).backward()
    assert state.grad is None
    assert next_state.grad is None
    assert all(p.grad is not None for p in made.latent.parameters())


@pytest.mark.parametrize("kind", ["gaussian", "sparse"])
def test_inferred_by_descent_the_network_learns_to_guess_what_descent_finds(kind):
    made, (state, action, next_state) = model(KINDS[kind]).eval(), batch()
    latent: Any = made.latent
    made.dynamics = Linear(2)
    noise = torch.full((5, 2), 0.5)  # the median: z is the mean
    optim = torch.optim.Adam(latent.posterior_net.parameters(), 1e-2)

    def missed() -> float:
        guess = latent._guess(state, action, next_state)
        found = latent.posterior(state, action, next_state, noise, made.dynamics)
        return float((guess - found.action_latent[:, 1:]).detach().abs().mean())

    before = missed()
    for _ in range(60):
        optim.zero_grad()
        latent.posterior(state, action, next_state, noise, made.dynamics).kl.backward()
        optim.step()
    assert missed() < 0.2 * before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseLatentConfig(size=6, group_size=4),
         "group_size is 4; it must be a divisor of the size of the latent variable, 6"),
        (lambda: SparseLatentConfig(regularizer_weight=-1),
         r"regularizer_weight is -1; it must be from 0 to 1e\+06"),
        (lambda: SparseLatentConfig(regularizer_weight=0),
         "regularizer_weight is 0; it must be above 0 .* z without a prior"),
        (lambda: SparseLatentConfig(inference=ProximalDescentConfig(), regularizer_weight=0),
         "regularizer_weight is 0; it must be above 0 .* z without a prior"),
        (lambda: GaussianLatentConfig(inference=ProximalDescentConfig(), regularizer_weight=0),
         "z without a prior"),
        (lambda: GaussianLatentConfig(inference=LISTAConfig()),  # type: ignore[arg-type]
         "inference is LISTAConfig.* LISTA infers sparse latent variables"),
        (lambda: QuantizedLatentConfig(levels=()), r"levels is \(\); it must be one"),
        (lambda: QuantizedLatentConfig(levels=(64, 64, 2)), "product is at most 4,096"),
        (lambda: ProximalDescentConfig(step_size=0), "step_size is 0; it must be from"),
        (lambda: LISTAConfig(layers=0), "layers is 0; it must be a whole number from 1"),
    ],
)  # fmt: skip
def test_settings_without_meaning_are_refused_in_one_line(make, message):
    with pytest.raises(ConfigError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_the_command_line_names_the_flag(capsys, tmp_path):
    flags = ["--world-model.latent.inference", "ProximalDescent",
             "--world-model.latent.regularizer-weight", "0"]  # fmt: skip
    line = error_line(capsys, "train", "windy-rooms", "--out", tmp_path / "run", *flags)
    assert "--world-model.latent.regularizer-weight is 0" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("choice", ["ProximalDescent", "LISTA"])
def test_inference_is_an_axis_of_ablations(choice):
    base = recipes.recipe("windy-rooms")
    config = ablation.swap(base, f"latent.inference={choice}")
    assert type(config.world_model.latent.inference).__name__ == f"{choice}Config"
    assert config_io.from_json(config_io.to_json(config), "here") == config
    env = small(config).eval_env.build(1)
    agent = build(small(config), env.spec)
    env.close()
    found = agent.world_model.energy(torch.zeros(2, 4), torch.zeros(2, 2), torch.ones(2, 4))
    assert (found > 0).all()


@cache
def trained(kind: str) -> WorldModel:
    """Of a point that moves by its action, in three dimensions with gusts in one of them."""
    latent = SparseLatentConfig(size=2) if kind == "sparse" else KINDS[kind]
    made, random = model(latent), torch.Generator().manual_seed(1)
    optim = torch.optim.Adam(made.parameters(), 5e-3)
    for _ in range(120):
        walk = walks(64, random)
        terms = unroll_loss(made, walk, random)
        loss = terms["prediction"] + 0.03 * terms["kl"] + terms["prior_nll"]
        optim.zero_grad()
        loss.backward()
        optim.step()
    return made.eval().requires_grad_(False)


def walks(count: int, random: torch.Generator, steps: int = 2) -> Trajectory:
    actions = torch.rand(count, steps, 1, generator=random) * 2 - 1
    gusts = (torch.rand(count, steps, 1, generator=random) < 0.3).float()
    step = torch.cat([0.5 * actions, -0.5 * actions, gusts], -1)
    start = torch.randn(count, 1, 3, generator=random)
    states = torch.cat([start, start + step.cumsum(1)], 1)
    nothing = torch.zeros(count, steps, 1)
    return Trajectory(states, actions, nothing, nothing[..., 0].bool(), torch.arange(count))


@pytest.mark.parametrize("kind", ["none", "sparse", "categorical"])
def test_energies_are_low_on_data_and_rise_off_it(kind):
    class Trained:
        device = torch.device("cpu")
        world_model = trained(kind)

    walk = walks(128, torch.Generator().manual_seed(7), steps=12)
    found = energy_curve(Trained(), walk.states.transpose(0, 1).flatten(0, 1), walk.actions)  # type: ignore[arg-type]
    noisy = [found[name].energy for name in NOISE_LEVELS]
    assert noisy == sorted(noisy)
    assert noisy[0] < 0.5 < noisy[-1]
    assert found[TRUE].above == 0
    assert found["noise 4"].above > 0.95
    later = [found[name] for name in ("1 step later", "7 steps later", "another trajectory")]
    assert noisy[0] < later[0].energy < later[1].energy < later[2].energy
    assert later[2].above > 0.95


def test_an_energy_of_one_predicts_no_better_than_no_change():
    class Resting:
        device = torch.device("cpu")

        class world_model:
            @staticmethod
            def energy(state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
                return (next_state - state).square().sum(-1) / 2

    walk = walks(50, torch.Generator().manual_seed(7), steps=12)
    found = energy_curve(Resting(), walk.states.transpose(0, 1).flatten(0, 1), walk.actions)  # type: ignore[arg-type]
    assert found[TRUE].energy == pytest.approx(1, rel=1e-5)
    # noise of n steps adds its own variance, n squared
    assert found["noise 2"].energy == pytest.approx(1 + 2**2, rel=0.2)
