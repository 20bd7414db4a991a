"""ADOpy 0.4.1 on recorded delay-discounting choices, through its public methods, in an environment of its own.

Reads one person a line from standard input, as JSON, and writes one line with the result:

    {"questions": [[amount_immediate, amount_delayed, delay_days], ...], "answers": [0 or 1, ...], 1 = delayed,
     "predict": [[...], ...], "steps": 15}
    -> {"order": [...], "seconds": [...],
        "probability_delayed": {"adaptive": [after 0, 1, ... questions], "all": [...]}}

The prior is log k ~ N(-6, 2), log temperature ~ N(log 20, 1) on a grid of 50 x 30 points, three sd wide on either
side, with the lapse rate .01 and the logistic link. "seconds" is the CPU time of `update` plus the choice of the next
question.
"""

import json
import sys
import time

import numpy as np
from adopy import Engine, Model, Task
from scipy.special import expit
from scipy.stats import bernoulli

DESIGNS = ("r_ss", "r_ll", "t_ll")
LAPSE = 0.01


def log_likelihood(choice, r_ss, r_ll, t_ll, k, tau):
    return bernoulli.logpmf(choice, expit(tau * (r_ll / (1 + k * t_ll) - r_ss)))


def prior_grid():
    """Axes of k and of 1 / temperature, and the log prior on their product, first axis slowest."""
    z_k, z_t = np.linspace(-3, 3, 50), np.linspace(-3, 3, 30)
    log_prior = (-0.5 * z_k[:, None] ** 2 - 0.5 * z_t[None, :] ** 2).ravel()
    return np.exp(-6 + 2 * z_k), np.exp(-np.log(20) - z_t), log_prior - np.logaddexp.reduce(log_prior)


def run(person, task, model):
    questions, answers = np.asarray(person["questions"], float), person["answers"]
    k, tau, log_prior = prior_grid()
    engine = Engine(
        task,
        model,
        grid_design={DESIGNS: questions},
        grid_param={"k": k, "tau": tau},
        grid_response={"choice": np.array([0, 1])},
        noise_ratio=LAPSE,
    )
    engine.log_prior = log_prior.astype(engine.dtype)
    engine.reset()
    designs = [dict(zip(DESIGNS, row)) for row in questions]  # noqa: B905 (Python 3.9)
    grid_k, grid_tau = engine.grid_param["k"].to_numpy(float), engine.grid_param["tau"].to_numpy(float)
    r_ss, r_ll, t_ll = np.asarray(person["predict"], float).T[:, :, None]
    table = LAPSE + (1 - 2 * LAPSE) * expit(grid_tau * (r_ll / (1 + grid_k * t_ll) - r_ss))
    unused = np.ones(len(questions), bool)

    def choose():
        return int(np.argmax(np.where(unused, engine.mutual_info, -np.inf)))

    def predict():
        post = engine.post.astype(float)
        return (table @ (post / post.sum())).tolist()

    order, seconds, forecasts, index = [], [], [predict()], choose()
    for _ in range(person["steps"]):
        order.append(index)
        begin = time.process_time()
        engine.update(designs[index], {"choice": answers[index]})
        unused[index] = False
        index = choose()
        seconds.append(time.process_time() - begin)
        forecasts.append(predict())
    engine.reset()
    engine.update(designs, [{"choice": a} for a in answers])
    return {"order": order, "seconds": seconds, "probability_delayed": {"adaptive": forecasts, "all": predict()}}


def main():
    task = Task(name="delay discounting", designs=list(DESIGNS), responses=["choice"])
    model = Model(name="hyperbolic", task=task, params=["k", "tau"], func=log_likelihood)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line), task, model)), flush=True)


if __name__ == "__main__":
    main()
