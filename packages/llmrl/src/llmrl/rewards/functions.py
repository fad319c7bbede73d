"""A function in a user's file as a reward: `--reward "0.5*my_rewards.py:polite"`.

def polite(samples):                       # one sequence of Sample: text, prompt, ids, stopped
    return [float("please" in sample.text) for sample in samples]

def right(completions, answer, **kwargs):  # or as TRL calls its reward functions, for the standard format
    return [float(text.strip() == wanted) for text, wanted in zip(completions, answer)]
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from llmcore.errors import ConfigError
from llmrl.rewards.reward import Reward, RewardFunction, Sample


class FunctionReward(Reward):
    """What a function of one's own gives."""

    kind: Literal["function"] = "function"
    path: str
    """`file.py:function`; the file is run once, in this process."""

    def build(self) -> RewardFunction:
        function = load_function(self.path)
        names = inspect.signature(function).parameters
        return by_column(function) if "completions" in names else function


def is_function_path(name: str) -> bool:
    """Whether a name in an expression is that of a function in a file."""
    return ".py:" in name


def load_function(path: str) -> Callable[..., Any]:
    """The function that `file.py:function` names."""
    file, _, name = path.rpartition(":")
    if not Path(file).is_file():
        raise ConfigError(f"reward {path!r}: there is no file {file!r}", hint="write it as FILE.py:FUNCTION")
    found = getattr(load_module(Path(file)), name, None)
    if not callable(found):
        raise ConfigError(f"reward {path!r}: {file} has no function {name!r}", hint="write it as FILE.py:FUNCTION")
    function: Callable[..., Any] = found
    return function


def load_module(file: Path) -> ModuleType:
    """Run a file as a module of its own name, once."""
    name = f"llmrl_reward_{file.stem}"
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None and specification.loader is not None, f"{file} is no Python file"
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and pickling look there
    try:
        specification.loader.exec_module(module)
    except (ImportError, SyntaxError, AttributeError, NameError, TypeError, ValueError, OSError) as error:
        raise ConfigError(
            f"{file} cannot be imported: {type(error).__name__}: {error}",
            hint="mend the file; python FILE shows the whole error",
        ) from error
    return module


def by_column(function: Callable[..., Sequence[float | None]]) -> RewardFunction:
    """A function that takes the samples as TRL gives them: by column, with every key of the rows."""

    def call(samples: Sequence[Sample]) -> Sequence[float | None]:
        columns: dict[str, list[Any]] = {
            key: [sample.prompt.extra.get(key) for sample in samples]
            for key in dict.fromkeys(key for sample in samples for key in sample.prompt.extra)
        }
        columns |= {
            "prompts": [sample.prompt.prompt[-1].content for sample in samples],
            "completions": [sample.text for sample in samples],
            "completion_ids": [list(sample.ids) for sample in samples],
            "answer": [sample.prompt.answer for sample in samples],
        }
        parameters = inspect.signature(function).parameters.values()
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            columns = {name: columns[name] for name in columns if name in {p.name for p in parameters}}
        return function(**columns)

    return call
