"""Dropout taken out of a model that is compared with itself: in a ratio, or in two scores, it would be noise."""

from torch import nn

from llmcore.config import C, Config


def switch_dropout_off(model: nn.Module) -> None:
    """No module drops anything from now on, in training either; what is saved of the model says so too."""
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # type: ignore[assignment]
        if isinstance(config := getattr(module, "config", None), Config):
            module.config = without_dropout(config)  # type: ignore[assignment]


def without_dropout(config: C) -> C:
    """The same settings with 0 for every `dropout` in them."""
    changes: dict[str, object] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if name == "dropout" and isinstance(value, float) and value:
            changes[name] = 0.0
        elif isinstance(value, Config) and (calm := without_dropout(value)) is not value:
            changes[name] = calm
    return config.model_copy(update=changes) if changes else config
