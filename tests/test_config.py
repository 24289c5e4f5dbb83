"""Configurations: ranges, JSON there and back, differences."""

import pytest

from variational_diffusion.config import (
    Component,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
    validated,
)
from variational_diffusion.errors import InputError


def a_run(**training: object) -> RunConfig:
    part = Component(name="monotone", options={"gamma_min": -10.0, "hidden": 8})
    model = ModelConfig(shape=(1, 8, 8), decoder=part, schedule=part, network=part)
    settings = validated(TrainingConfig, {"steps": 10, **training})
    return RunConfig(data=DataConfig(source="digits"), model=model, training=settings)


def test_json_there_and_back_is_the_same_configuration():
    config = a_run(learning_rate=1e-3, minutes=None)
    assert RunConfig.from_json(config.to_json()) == config
    assert '"format": 2' in config.to_json()


def test_differences_name_every_setting_that_differs_and_no_other():
    assert a_run().differences(a_run()) == []
    assert a_run(seed=1).differences(a_run(seed=2, batch_size=7)) == [
        "training.batch_size: 32 here, 7 asked",
        "training.seed: 1 here, 2 asked",
    ]


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (DataConfig, {"source": "x", "levels": 1}, r"levels = 1: .*greater than or equal to 2"),
        (DataConfig, {"source": "x", "validation": 1.5}, r"validation = 1.5: .*less than 1"),
        (TrainingConfig, {"learning_rate": -1}, r"learning_rate = -1: .*greater than 0"),
        (
            TrainingConfig,
            {"learning_rat": 1},
            r"learning_rat: no such field; .* mean learning_rate",
        ),
        (TrainingConfig, {"steps": "many"}, r"steps = 'many': .*integer"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(section, values, message):
    with pytest.raises(InputError, match=message):
        validated(section, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not JSON"),
        ("{}", "format must be 2"),
        ('{"format": 3}', "format must be 2"),
        ('{"format": 1}', "does not match its digest.*another --run"),
        ("[]", "format must be 2"),
    ],
)
def test_a_damaged_file_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        RunConfig.from_json(text)
