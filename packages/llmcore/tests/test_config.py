import os
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from llmcore.config import Config, load_config
from llmcore.errors import ConfigError, ExtensionError
from llmcore.extensions import Part, needs_of, part


class Norm(Part):
    """A part for these tests."""


class Small(Norm):
    kind: Literal["small"] = "small"
    eps: float = 1e-5


class Large(Norm):
    kind: Literal["large"] = "large"
    groups: int = Field(4, gt=0)


class Model(Config):
    width: int = Field(64, gt=0)
    n_layers: int = 2
    norm: Annotated[Norm, part("llmcore.testnorm", small=Small, large=Large)] = Small()


class Settings(Config):
    model: Model = Model()
    wide: Model = Model(width=512, norm=Large(groups=8))
    steps: int = 100
    lr: float | None = None


def written(folder: Path, text: str) -> str:
    path = folder / "run.toml"
    path.write_text(text)
    return str(path)


def test_files_and_settings_apply_in_order(tmp_path: Path) -> None:
    file = written(tmp_path, "steps = 5\n[model]\nwidth = 8\n")
    assert load_config(Settings, [file, "steps=7"]).steps == 7
    assert load_config(Settings, ["steps=7", file]).steps == 5
    assert load_config(Settings, [file], {"model.width": "16"}).model.width == 16


def test_values_are_toml_or_text() -> None:
    assert load_config(Settings, ["lr=3e-4"]).lr == 3e-4
    assert load_config(Settings, ["lr=1", "lr=none"]).lr is None


def test_unknown_key_names_file_line_and_nearest(tmp_path: Path) -> None:
    file = written(tmp_path, "steps = 5\n\n[model]\nwidth = 8\nn_layres = 3\n")
    with pytest.raises(ConfigError, match=r"run\.toml:5: model\.n_layres: unknown key — did you mean 'n_layers'\?"):
        load_config(Settings, [file])


def test_unknown_key_in_inline_and_dotted_tables_has_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.toml:2: model\.widht: unknown key — did you mean 'width'"):
        load_config(Settings, [written(tmp_path, "steps = 1\nmodel = { widht = 3 }\n")])
    with pytest.raises(ConfigError, match=r"run\.toml:2: model\.widht: unknown key — did you mean 'width'"):
        load_config(Settings, [written(tmp_path, "steps = 1\nmodel.widht = 3\n")])


def test_unknown_key_of_a_part_suggests_that_parts_keys(tmp_path: Path) -> None:
    file = written(tmp_path, '[model.norm]\nkind = "large"\ngruops = 2\n')
    with pytest.raises(ConfigError, match=r"run\.toml:3: model\.norm\.gruops: unknown key — did you mean 'groups'"):
        load_config(Settings, [file])


def test_wrong_type_and_range_name_key_and_value(tmp_path: Path) -> None:
    file = written(tmp_path, 'steps = "many"\n[model]\nwidth = -1\n')
    with pytest.raises(ConfigError) as caught:
        load_config(Settings, [file])
    assert "run.toml:1: steps:" in str(caught.value) and "'many'" in str(caught.value)
    assert "run.toml:3: model.width:" in str(caught.value) and "-1" in str(caught.value)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Settings, ["stpes=1", "model.widht=2"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("steps = ", "not valid TOML"), ("steps = 1\nsteps = 2", "not valid TOML"), ("model = 3", "model")],
)
def test_malformed_files_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(Settings, [written(tmp_path, text)])


def test_missing_folder_and_not_utf8_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such settings file"):
        load_config(Settings, [str(tmp_path / "none.toml")])
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(Settings, [str(tmp_path)])
    bad = tmp_path / "latin.toml"
    bad.write_bytes(b"name = '\xe9'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(Settings, [str(bad)])


def test_a_settings_file_that_is_none_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for path, what in ((tmp_path / "pipe.toml", "no regular file"), (tmp_path, "a folder")):
        with pytest.raises(ConfigError, match=f"is {what}, not a settings file"):
            load_config(Settings, [str(path)])


def test_setting_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="steps is the value 3"):
        load_config(Settings, ["steps=3", "steps.more=4"])


def test_new_kind_drops_the_old_kinds_settings(tmp_path: Path) -> None:
    file = written(tmp_path, '[model.norm]\neps = 1e-3\nkind = "small"\n')
    norm = load_config(Settings, [file, "model.norm.kind=large", "model.norm.groups=2"]).model.norm
    assert norm == Large(groups=2)


def test_kind_alone_and_unknown_kinds(tmp_path: Path) -> None:
    assert load_config(Settings, ["model.norm=large"]).model.norm == Large()
    with pytest.raises(ConfigError, match=r"model\.norm\.kind: unknown kind 'lrage' — did you mean 'large'"):
        load_config(Settings, ["model.norm.kind=lrage"])
    (tmp_path / "mine.toml").write_text("[model]\nnorm = 'lrage'\n")
    with pytest.raises(ConfigError, match=r"mine\.toml:2: model\.norm: unknown kind 'lrage'"):
        load_config(Settings, [str(tmp_path / "mine.toml")])
    with pytest.raises(ExtensionError, match="no installed package offers it"):
        load_config(Settings, ["model.norm.kind=zzz"])


def test_parts_survive_a_json_round_trip() -> None:
    settings = Settings(model=Model(norm=Large(groups=7)))
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_the_cores_own_parts_need_no_package() -> None:
    assert needs_of(Settings()) == {}


def test_a_table_given_in_part_keeps_the_stages_own_defaults() -> None:
    found = load_config(Settings, ["wide.n_layers=3"]).wide
    assert found == Model(width=512, n_layers=3, norm=Large(groups=8))


def test_a_part_given_in_part_keeps_kind_and_defaults_unless_the_kind_changes() -> None:
    class Nested(Config):
        wide: Model = Model(width=512, norm=Large(groups=8))

    assert load_config(Nested, ["wide.norm.kind=large"]).wide.norm == Large(groups=8)
    assert load_config(Nested, ["wide.norm.kind=small"]).wide.norm == Small()
    assert load_config(Nested, ["wide.norm.groups=2", "wide.width=3"]).wide == Model(width=3, norm=Large(groups=2))


def test_a_part_may_be_left_out_where_its_type_says_so() -> None:
    class Holder(Config):
        norm: Annotated[Norm | None, part("llmcore.test", small=Small, large=Large)] = None

    assert load_config(Holder, []).norm is None
    assert load_config(Holder, ["norm.kind=large"]).norm == Large()
    assert load_config(Holder, ["norm.kind=large", "norm=none"]).norm is None
    assert Holder.model_validate_json(Holder().model_dump_json()) == Holder()
    assert {"type": "null"} in Holder.model_json_schema()["properties"]["norm"]["anyOf"]
    assert {"type": "null"} not in Model.model_json_schema()["properties"]["norm"]["anyOf"]
