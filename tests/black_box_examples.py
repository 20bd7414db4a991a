"""Five simulators as users of sbi write them: no likelihood, numpy or another program, one theta at a time."""
# ruff: noqa: NPY002 - the generators that simulators of users draw from

import subprocess
import sys

import numpy as np
import torch
from scipy.integrate import odeint
from torch.distributions import Independent, LogNormal, Uniform, constraints


def interval(low, high):
    return constraints.interval(torch.tensor([low]), torch.tensor([high]))


def log_normal(medians, sd=0.5):
    return Independent(LogNormal(torch.tensor(medians).log(), sd), 1)


def sir(theta, time, people=60):
    """Infected at a time, by the Gillespie algorithm."""
    susceptible, infected, now = people - 3, 3, 0.0
    while infected:
        rates = np.array([theta[0] * susceptible * infected / people, theta[1] * infected])
        now += np.random.exponential(1 / rates.sum())
        if now > time[0]:
            break
        if np.random.rand() < rates[0] / rates.sum():
            susceptible, infected = susceptible - 1, infected + 1
        else:
            infected -= 1
    return infected


PROGRAM = "import math,random,sys; a,b,t=map(float,sys.argv[1:]); print(a*math.exp(-b*t)+random.gauss(0,.1))"


def other_program(theta, time):
    """A decay, measured by another program."""
    command = [sys.executable, "-S", "-E", "-c", PROGRAM, *map(str, [*theta, *time])]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def growth(theta, time):
    """Logistic growth by scipy's solver, read with 5 % noise."""
    size = odeint(lambda x, t: theta[0] * x * (1 - x / theta[1]), 0.1, [0.0, time[0] + 1e-9])[-1, 0]
    return size * np.exp(0.05 * np.random.normal())


def choice_and_time(theta, strength):
    """Race of two accumulators: which wins, and when."""
    rates = np.exp([theta[0] * strength[0], -theta[0] * strength[0]])
    times = np.random.gamma(4.0 * theta[1], 0.25 / rates)
    return times.argmin(), 0.2 + times.min()


def spot(theta, exposure):
    """A photograph of a spot, 8 × 8 pixels of photon counts, reduced to its total and its centre."""
    x, y = np.meshgrid(np.arange(8.0), np.arange(8.0))
    light = np.exp(-0.5 * ((x - theta[0]) ** 2 + (y - theta[1]) ** 2) / 2.0)
    image = np.minimum(np.random.poisson(exposure[0] * light + 0.2), 40.0)  # pixels saturate
    total = image.sum() + 1
    return np.log(total), (image * x).sum() / total, (image * y).sum() / total


def corner(low, high):
    return Independent(Uniform(torch.full((2,), low), torch.full((2,), high)), 1)


EXAMPLES = {
    "sir": (sir, log_normal([1.0, 0.3]), interval(0.1, 15.0)),
    "other program": (other_program, corner(0.5, 3.0), interval(0.0, 5.0)),
    "growth": (growth, log_normal([1.0, 5.0], 0.3), interval(0.0, 10.0)),
    "choice and time": (choice_and_time, log_normal([1.0, 1.0]), interval(-1.0, 1.0)),
    "spot": (spot, corner(1.0, 6.0), interval(0.5, 200.0)),
}
