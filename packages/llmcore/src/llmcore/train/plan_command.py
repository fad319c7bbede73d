"""`plan`: any command that trains, ended before its first step to say what it would have done."""

import inspect
from collections.abc import Callable

import typer

from llmcore.command import new_app


def add_plan_command(app: typer.Typer, *runs: Callable[..., None]) -> None:
    """Add `plan`: what a command that trains would do; with several such commands, `plan NAME` for each."""
    if len(runs) == 1:
        app.command(name="plan")(planned(runs[0]))
        return
    plans = new_app("What a run would do: size, cost, memory, time. Writes nothing.")
    for run in runs:
        plans.command(name=run.__name__)(planned(run))
    app.add_typer(plans, name="plan")


def planned(run: Callable[..., None]) -> Callable[..., None]:
    """The same command with the same options, which ends before the first step and says what it would have done."""
    signature = inspect.signature(run)
    kept = [option for name, option in signature.parameters.items() if name not in ("resume", "quiet")]

    def plan(**options: object) -> None:
        from llmcore.train.plan import Plan

        json = bool(options.pop("json", False))
        run(**options, json=False, quiet=True, resume=Plan(json=json))

    plan.__doc__ = "What it would do: size, cost, memory, time, from one real micro-batch in memory. Writes nothing."
    plan.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    plan.__annotations__ = {option.name: option.annotation for option in kept}
    return plan
