import dataclasses
from collections import Counter

import pytest

from utils import search_space
from utils import settings as settings_module
from utils.errors import UserError
from utils.search_space import SearchError

EIGHTY = {
    "tuner_optimizers": ["adam", "adamw", "nadam", "rmsprop", "sgd"],
    "tuner_learning_rates": [0.0003, 0.001, 0.003, 0.01],
    "tuner_batch_sizes": [32, 64, 128, 256],
}


def ordered(count, seed=42, **overrides):
    settings = settings_module.load(**{**EIGHTY, **overrides})
    return search_space.order(search_space.axes(settings), count, seed)


def keys(combinations):
    return [tuple(combination.values()) for combination in combinations]


@pytest.mark.parametrize("seed", range(5))
def test_five_trials_of_eighty_see_every_optimizer(seed):
    five = ordered(5, seed)
    assert {trial["optimizer"] for trial in five} == set(EIGHTY["tuner_optimizers"])
    assert {trial["learning_rate"] for trial in five} == set(EIGHTY["tuner_learning_rates"])
    assert {trial["batch_size"] for trial in five} == set(EIGHTY["tuner_batch_sizes"])


def test_twenty_trials_of_eighty_see_every_pair_of_optimizer_and_learning_rate_once():
    twenty = ordered(20)
    assert set(Counter(trial["optimizer"] for trial in twenty).values()) == {4}
    assert len({(trial["optimizer"], trial["learning_rate"]) for trial in twenty}) == 20
    assert len({(trial["optimizer"], trial["batch_size"]) for trial in twenty}) >= 18
    assert len({(trial["learning_rate"], trial["batch_size"]) for trial in twenty}) == 16


@pytest.mark.parametrize("seed", range(6))
def test_values_come_alike_often_before_pairs_do(seed):
    twenty = ordered(20, seed, tuner_axes={"AUGMENT": [True, False]})
    for name in twenty[0]:
        assert len(set(Counter(trial[name] for trial in twenty).values())) == 1, name


def test_all_combinations_come_once_and_a_longer_list_starts_with_the_shorter():
    every = keys(ordered(1000))
    assert len(every) == len(set(every)) == 80
    assert keys(ordered(7)) == every[:7]
    assert keys(ordered(80, seed=1)) != every
    assert set(keys(ordered(80, seed=1))) == set(every)


def test_values_given_twice_count_once():
    twice = {"tuner_learning_rates": [1, 1.0, 0.5], "tuner_optimizers": ["sgd", "sgd"], "tuner_batch_sizes": [8]}
    axes = search_space.axes(settings_module.load(**twice))
    assert axes == {"optimizer": ["sgd"], "learning_rate": [1.0, 0.5], "batch_size": [8]}


def test_further_axes_are_cast_and_their_order_does_not_matter():
    one = settings_module.load(tuner_axes={"LABEL_SMOOTHING": [0, 0.1], "AUGMENT": [True, False]})
    other = dataclasses.replace(one, tuner_axes={"AUGMENT": [True, False], "LABEL_SMOOTHING": [0, 0.1]})
    axes = search_space.axes(one)
    assert list(axes) == ["optimizer", "learning_rate", "batch_size", "augment", "label_smoothing"]
    assert axes["label_smoothing"] == [0.0, 0.1]
    assert list(search_space.axes(other).items()) == list(axes.items())


def test_every_augmentation_is_an_axis():
    names = [field.name for field in dataclasses.fields(settings_module.Settings) if field.name.startswith("augment_")]
    assert len(names) > 12
    given = {name.upper(): [getattr(settings_module.load(), name)] for name in names} | {"LABEL_SPREAD": [0, 1]}
    assert set(search_space.axes(settings_module.load(tuner_axes=given))) >= {*names, "label_spread"}


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"tuner_optimizers": []}, "TUNER_OPTIMIZERS is empty: give at least one value"),
        ({"tuner_optimizers": ["adam", "adm"]}, "TUNER_OPTIMIZERS: OPTIMIZER = 'adm': accepted are 'adam'"),
        (
            {"tuner_learning_rates": ["fast"]},
            "TUNER_LEARNING_RATES: LEARNING_RATE = 'fast': needs a value of type float",
        ),
        ({"tuner_batch_sizes": [0]}, "TUNER_BATCH_SIZES: BATCH_SIZE = 0: accepted are 1..65536"),
        ({"tuner_axes": {"EPOCHS": [9]}}, "TUNER_AXES EPOCHS: no axis, known are WEIGHT_DECAY"),
        ({"tuner_axes": {"SEED": [1, 2]}}, "TUNER_AXES SEED: no axis"),
        ({"tuner_axes": {3: [0.1]}}, "TUNER_AXES 3: no axis"),
        ({"tuner_axes": {"LABEL_SMOOTHING": []}}, "TUNER_AXES LABEL_SMOOTHING is empty"),
        ({"tuner_axes": {"LABEL_SMOOTHING": 0.1}}, "needs a list of values"),
        ({"tuner_axes": {"LABEL_SMOOTHING": [0.9]}}, "LABEL_SMOOTHING = 0.9: accepted are 0..0.5"),
        ({"tuner_axes": {"LABEL_SMOOTHING": [0.1], "label_smoothing": [0.2]}}, "given twice"),
        ({"tuner_axes": {"OPTIMIZER": ["sgd"]}}, "this axis is TUNER_OPTIMIZERS"),
        ({"tuner_axes": {"MODEL_ARCHITECTURE": ["cnn23"]}}, "'cnn23': did you mean cnn32?"),
        ({"model_architecture": "cnn23"}, "'cnn23': did you mean cnn32?"),
        ({"tuner_objective": "int8_within_0.1"}, "needs tenths: set NB_CLASSES = 100"),
        ({"tuner_batch_sizes": list(range(1, 2000))}, "39,980 combinations are more than 20,000"),
    ],
)
def test_a_bad_space_is_refused_with_the_parameters_name(overrides, text):
    with pytest.raises(UserError) as caught:
        search_space.check(settings_module.load(**{**EIGHTY, **overrides}))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"tuner_max_trials": 0}, "TUNER_MAX_TRIALS = 0: accepted are 1..100000"),
        ({"tuner_axes": []}, "TUNER_AXES = []: needs a value of type dict"),
        ({"tuner_strategy": "random"}, "accepted are 'grid', 'halving'"),
    ],
)
def test_settings_check_the_rest(overrides, text):
    with pytest.raises(settings_module.SettingsError) as caught:
        settings_module.load(**overrides)
    assert text in str(caught.value)


def test_the_model_is_named_once():
    settings = settings_module.load(tuner_axes={"MODEL_ARCHITECTURE": ["cnn32"]})
    search_space.check(settings)
    with pytest.raises(SearchError, match="leave one of them out"):
        search_space.check(settings, model_is_given=True)


def test_what_changed_is_said_in_words():
    def signed(data="a", code=b"a", **overrides):
        settings = settings_module.load(**overrides)
        return search_space.signature(settings, search_space.axes(settings), data, {"models/own.py": code})

    plain = signed()
    assert signed(output_dir="elsewhere", tuner_max_trials=3, epochs=7, optimizer="sgd") == plain
    assert search_space.changes(plain, signed("b")) == ["the pictures or labels"]
    assert search_space.changes(plain, signed(code=b"b")) == ["models/own.py has changed"]
    assert search_space.changes(plain, signed(tuner_batch_sizes=[8], seed=1)) == [
        "BATCH_SIZE was [32, 64, 128, 256], is [8]",
        "SEED was 42, is 1",
    ]
    int8 = {"tuner_objective": "int8_within_0.1", "nb_classes": 100}
    assert signed(ring_smoothing=0.0) == plain
    assert search_space.changes(signed(**int8), signed(**int8, ring_smoothing=0.0)) == [
        "RING_SMOOTHING was 0.25, is 0.0"
    ]
    added = signed(tuner_axes={"LABEL_SMOOTHING": [0.1]})
    assert "LABEL_SMOOTHING was not there, is [0.1]" in search_space.changes(plain, added)
    assert search_space.digest(plain) != search_space.digest(added)


@pytest.mark.parametrize(
    ("values", "role"),
    [
        ({}, "alone"),
        ({"KERASTUNER_TUNER_ID": "w1"}, "alone"),
        ({"KERASTUNER_TUNER_ID": "chief", "KERASTUNER_ORACLE_IP": "::1", "KERASTUNER_ORACLE_PORT": "8000"}, "chief"),
        ({"KERASTUNER_TUNER_ID": "w1", "KERASTUNER_ORACLE_IP": "::1", "KERASTUNER_ORACLE_PORT": "8000"}, "worker"),
    ],
)
def test_the_environment_says_who_this_is(monkeypatch, values, role):
    for name in search_space.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert search_space.role() == role


def test_half_an_environment_is_refused(monkeypatch):
    for name in search_space.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    with pytest.raises(SearchError, match="KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_PORT not set"):
        search_space.role()
