"""A config means what its files and overrides say, and a mistake in it is named with its place."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cluster.config.loading import load_config, merge, resolved_yaml
from cluster.config.run import RunConfig
from data_pipeline.errors import UsageError
from data_pipeline.text import yaml_dialect
from model.config.random_order import RandomOrderConfig
from trainer.config import KeepBest


def refusal(path: Path, *overrides: str) -> str:
    """The message with which a config is refused."""
    with pytest.raises(UsageError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def extending(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_an_override_replaces_the_value_of_the_file(small_config: Path) -> None:
    assert load_config(small_config, ["generator.trainer.global_batch=64"]).generator.trainer.global_batch == 64


def test_an_option_that_the_order_of_the_generator_has_not_is_refused(small_config: Path) -> None:
    with pytest.raises(UsageError, match=r"sampling\.order\.steps is no option of a next-scale generator"):
        load_config(small_config, ["sampling.order.steps=8"])
    masked = "generator.model={kind: masked, backbone: {depth: 1, width: 16, heads: 2}}"
    config = load_config(small_config, [masked, "sampling.order.steps=8"])
    assert config.sampling.order == {"steps": 8}
    with pytest.raises(UsageError, match=r"sampling\.order\.steps: "):
        load_config(small_config, [masked, "sampling.order.steps=0"])


def test_a_step_of_a_generator_may_be_a_share_of_its_training(small_config: Path) -> None:
    kind = ["generator.model={kind: random, depth: 1, width: 8, heads: 1}", "generator.trainer.steps=40"]
    section = load_config(small_config, [*kind, "generator.model.random_until={share: 0.25}"]).generator
    assert section is not None
    network = section.network
    assert isinstance(network, RandomOrderConfig)
    assert (network.random_until, network.scan_from) == (10, 30)
    with pytest.raises(UsageError, match="random_until 35 comes after scan_from 30"):
        load_config(small_config, [*kind, "generator.model.random_until=35"])
    with pytest.raises(UsageError, match="random_until"):
        load_config(small_config, [*kind, "generator.model.random_until={share: 1.5}"])


def test_the_last_of_two_overrides_counts(small_config: Path) -> None:
    assert load_config(small_config, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("text", ["3e-5", "3.e-5", ".3e-4", "0.00003"])
def test_a_number_in_scientific_notation_is_a_number_in_overrides_and_files(small_config: Path, text: str) -> None:
    over = load_config(small_config, [f"generator.trainer.learning_rate={text}"])
    small_config.write_text(small_config.read_text() + f"    learning_rate: {text}\n")
    assert yaml_dialect.parse(f"x: {text}") == {"x": 3e-5}
    assert over.generator.trainer.learning_rate == 3e-5


def test_words_of_yaml_1_1_stay_words() -> None:
    assert yaml_dialect.parse("[no, on, 1_000, 12:30, 2026-01-02]") == ["no", "on", "1_000", "12:30", "2026-01-02"]


def test_a_leading_zero_does_not_make_a_number_octal() -> None:
    assert yaml_dialect.parse("[010, 0o10, 0x10, -7]") == [10, 8, 16, -7]


def test_null_switches_an_optional_value_off(small_config: Path) -> None:
    config = load_config(small_config, ["tokens.output=s3://bucket/tokens", "tokens.output=null"])
    assert config.tokens.output is None


def test_embedded_and_relative_paths_are_left_as_written(small_config: Path) -> None:
    source = "data.source={kind: idx, images: 'embedded:images.gz', labels: some/labels.gz}"
    assert load_config(small_config, [source]).data.source.model_dump(include={"images", "labels"}) == {
        "images": "embedded:images.gz",
        "labels": "some/labels.gz",
    }


def test_extends_is_relative_to_its_file_and_merges_sections(small_config: Path) -> None:
    (small_config.parent / "below").mkdir()
    path = extending(
        small_config.parent / "below", "big.yaml", "extends: ../small.yaml\ngenerator: {model: {depth: 3}}"
    )
    config = load_config(path)
    assert (config.generator.model.depth, config.generator.model.width) == (3, 32)


def test_later_files_of_extends_win_and_the_file_itself_wins_over_all(small_config: Path) -> None:
    extending(small_config.parent, "a.yaml", "seed: 1\ncluster: {workers: 5}")
    extending(small_config.parent, "b.yaml", "seed: 2\nrun: runs/b")
    path = extending(small_config.parent, "c.yaml", "extends: [small.yaml, a.yaml, b.yaml]\nrun: runs/c")
    config = load_config(path)
    assert (config.seed, config.cluster.workers, config.run) == (2, 5, "runs/c")


def test_a_section_of_another_kind_replaces_the_one_it_extends(small_config: Path) -> None:
    source = "data: {source: {kind: idx, images: i.gz, labels: l.gz}}"
    path = extending(small_config.parent, "idx.yaml", f"extends: small.yaml\n{source}")
    assert load_config(path).data.source.kind == "idx"


def test_files_that_extend_each_other_are_refused_with_the_circle(small_config: Path) -> None:
    extending(small_config.parent, "a.yaml", "extends: b.yaml")
    message = refusal(extending(small_config.parent, "b.yaml", "extends: a.yaml"))
    assert "b.yaml → " in message
    assert "extends itself" in message


def test_two_files_may_extend_the_same_one(small_config: Path) -> None:
    extending(small_config.parent, "a.yaml", "extends: small.yaml\nseed: 4")
    path = extending(small_config.parent, "b.yaml", "extends: [small.yaml, a.yaml]")
    assert load_config(path).seed == 4


@pytest.mark.parametrize(
    ("override", "place", "meant"),
    [
        ("generator.trainer.global_bach=64", "generator.trainer.global_bach", "global_batch"),
        ("generater.trainer.steps=3", "generater", "generator"),
        ("data.source.paht=x", "data.source.paht", "path"),
        ("data.source.kind=foldr", "data.source.kind", "folder"),
        ("generator.trainer.precision=bf61", "generator.trainer.precision", "bf16"),
        ("tokens.views=[centre]", "tokens.views.0", "center"),
        ("zero_stage=2", "zero_stage", "generator.trainer.zero_stage"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_likely_one(
    small_config: Path, override: str, place: str, meant: str
) -> None:
    message = refusal(small_config, override)
    assert str(small_config) in message
    assert place in message
    assert "did you mean" in message
    assert meant in message.partition("did you mean")[2]


def test_a_misspelt_required_key_is_one_mistake_not_two(small_config: Path) -> None:
    small_config.write_text(small_config.read_text().replace("steps", "stepz", 1))
    message = refusal(small_config)
    assert "tokenizer.trainer.stepz: unknown key; did you mean steps?" in message
    assert "missing" not in message


def test_a_missing_key_is_named(small_config: Path) -> None:
    small_config.write_text(small_config.read_text().replace("run: runs/small\n", ""))
    assert "run: is missing" in refusal(small_config)


def test_several_mistakes_are_told_at_once(small_config: Path) -> None:
    message = refusal(small_config, "seed=many", "cluster.workers=0")
    assert "2 mistakes" in message
    assert "seed" in message
    assert "cluster.workers" in message


def test_a_mistake_says_which_file_made_it(small_config: Path) -> None:
    extending(small_config.parent, "base.yaml", "extends: small.yaml\nsede: 3")
    message = refusal(extending(small_config.parent, "top.yaml", "extends: base.yaml\nrun: x"))
    assert message.startswith(str(small_config.parent / "top.yaml"))
    assert f"sede (set in {small_config.parent / 'base.yaml'})" in message


def test_padded_images_cannot_be_tokenized_in_ten_crops(small_config: Path) -> None:
    message = refusal(small_config, "data.fit=pad", "tokens.views=[ten_crop]")
    assert "view ten_crop_0 is cut from a crop larger than the view" in message
    assert "set data.fit to crop" in message


def test_a_rule_between_fields_names_its_section(small_config: Path) -> None:
    message = refusal(small_config, "generator.trainer.warmup_steps=100")
    assert "generator.trainer (on the command line): warmup_steps 100 leaves none" in message


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=3", "seed=[1,"])
def test_an_argument_that_is_no_override_is_quoted_back(small_config: Path, override: str) -> None:
    assert repr(override) in refusal(small_config, override)


@pytest.mark.parametrize("text", ["", "- 1", "just text"])
def test_a_file_without_sections_is_refused(tmp_path: Path, text: str) -> None:
    assert "a config is a set of sections" in refusal(extending(tmp_path, "x.yaml", text))


def test_broken_yaml_is_refused_with_its_line(tmp_path: Path) -> None:
    assert "x.yaml line 2" in refusal(extending(tmp_path, "x.yaml", "run: x\ndata: [1, 2"))


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    assert "seed is given twice" in refusal(extending(tmp_path, "x.yaml", "seed: 1\nrun: x\nseed: 2"))


def test_a_missing_file_is_refused_with_its_neighbour(small_config: Path) -> None:
    message = refusal(small_config.parent / "smal.yaml")
    assert "does not exist" in message
    assert "did you mean" in message
    assert "small.yaml?" in message


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path)


def test_a_missing_extended_file_names_both(small_config: Path) -> None:
    message = refusal(extending(small_config.parent, "x.yaml", "extends: gone.yaml"))
    assert "gone.yaml" in message
    assert "x.yaml extends" in message


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@example(metric="a\x85b\u2028c\u2029", rate=1.0)
@given(metric=st.text(min_size=1), rate=st.floats(min_value=1e-30, max_value=1))
def test_the_resolved_config_loads_to_the_same_config(small_config: Path, metric: str, rate: float) -> None:
    base = load_config(small_config)
    changes = {"learning_rate": rate, "keep_best": KeepBest(metric=metric)}
    trainer = base.generator.trainer.model_copy(update=changes)
    config = base.model_copy(update={"generator": base.generator.model_copy(update={"trainer": trainer})})
    assert RunConfig.model_validate(yaml_dialect.parse(resolved_yaml(config))) == config


def test_merging_leaves_both_sides_as_they_were() -> None:
    base, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert merge(base, over) == {"a": {"b": 3, "c": 2}}
    assert (base, over) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})


def test_a_file_that_two_others_extend_applies_once_below_both(small_config: Path) -> None:
    deep = extending(small_config.parent, "deep.yaml", "extends: small.yaml\ngenerator: {model: {depth: 3}}")
    extending(small_config.parent, "wide.yaml", "extends: small.yaml\ncluster: {workers: 7}")
    both = extending(deep.parent, "both.yaml", "extends: [deep.yaml, wide.yaml]")
    config = load_config(both)
    assert (config.generator.model.depth, config.cluster.workers) == (3, 7)


@pytest.mark.parametrize(
    ("override", "path"),
    [
        *[
            ("2012", "2012"),
            ("010", "010"),
            ("1e3", "1e3"),
            ("2012-01-01", "2012-01-01"),
            ("on", "on"),
            ("true", "true"),
        ],
        *[("@pics", "@pics"), ("my #1 run", "my #1 run"), ("a: b", "a: b"), ("[x]", "[x]"), ("'null'", "null")],
        *[("'2012'", "2012"), ('"my #1 run"', "my #1 run"), ("*x", "*x"), ("&x", "&x"), ("!x", "!x"), ("{x", "{x")],
    ],
)
def test_an_override_of_a_text_is_that_text_to_the_letter(small_config: Path, override: str, path: str) -> None:
    source = load_config(small_config, [f"data.source.path={override}"]).data.source
    assert (source.model_dump()["path"], load_config(small_config, [f"run={override}"]).run) == (path, path)


@pytest.mark.parametrize("written", ["2012", "010", "1e3", "0x1F", "true", "'2012'", "2012-01-01"])
def test_a_number_in_a_file_is_text_where_the_field_is_text(small_config: Path, written: str) -> None:
    small_config.write_text(small_config.read_text().replace("path: pictures", f"path: {written}"))
    inline = load_config(small_config, [f"data.source={{kind: folder, path: {written}}}"])
    expected = written.strip("'")
    assert load_config(small_config).data.source.model_dump()["path"] == expected
    assert inline.data.source.model_dump()["path"] == expected


@pytest.mark.parametrize("text", ["null", ""])
def test_nothing_is_no_place(small_config: Path, text: str) -> None:
    assert "run (on the command line): " in refusal(small_config, f"run={text}")


def test_a_tilde_in_an_override_is_the_home_folder(small_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_config(small_config, ["run=~/r", "data.images=~/i"]).run == "/home/someone/r"


@pytest.mark.parametrize("override", ["seed=1 #2", "data.source={kind: folder, path: my #1}", "seed=#3"])
def test_a_comment_in_an_override_is_refused(small_config: Path, override: str) -> None:
    message = refusal(small_config, override)
    assert repr(override) in message
    assert "is a comment in YAML" in message


def test_a_number_sign_in_quotes_or_within_a_word_is_no_comment(small_config: Path) -> None:
    source = "data.source={kind: folder, path: 'my #1', extensions: [a#b]}"
    assert load_config(small_config, [source]).data.source.model_dump()["path"] == "my #1"


@pytest.mark.parametrize("line", ["run: {{ RUN }}", "run: '{{ RUN }}'", "run: x/{{ RUN }}"])
def test_a_template_that_nothing_filled_in_is_named(small_config: Path, line: str) -> None:
    message = refusal(extending(small_config.parent, "t.yaml", f"extends: small.yaml\n{line}"))
    assert "t.yaml" in message
    assert "{{ RUN }}" in message
    assert "a template that nothing has filled in" in message


def test_a_variable_in_a_file_is_refused_with_the_way_to_write_it(small_config: Path) -> None:
    message = refusal(extending(small_config.parent, "t.yaml", "extends: small.yaml\nrun: ${HOME}/run"))
    assert "run: ${HOME}/run holds ${HOME}" in message
    assert 'KEY="$HOME/…"' in message


BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "more than 50,000 values"),
        ("run: " + "[" * 100_000, "more than 50 levels"),
        ("run: " + "{a: " * 100_000, "more than 50 levels"),
        ("".join(" " * n + "a:\n" for n in range(100)), "more than 50 levels"),
        ("run: &a [*a]", "*a holds itself"),
        ("seed: " + "9" * 5000, "a number of 5000 digits"),
        ("run: !!timestamp 2026-99-99", "does not fit its tag"),
        ("run: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("run: x # " + "x" * 2**20, "more than 1,048,576 bytes"),
        ("? [a]\n: b", "a key has to be text"),
        ("extends: s3:/b/x.yaml", "write s3://b/x.yaml"),
    ],
    ids=lambda value: value[:20],
)
def test_a_file_that_is_no_config_is_refused_at_its_own_cost(tmp_path: Path, text: str, said: str) -> None:
    message = refusal(extending(tmp_path, "x.yaml", text))
    assert said in message
    assert "x.yaml" in message
    assert len(message) < 1000


def test_a_large_value_is_not_repeated_whole(small_config: Path) -> None:
    assert len(refusal(small_config, f"seed={'x' * 100_000}")) < 1000


@pytest.mark.parametrize("name", ["/dev/zero", "fifo"])
def test_only_a_file_is_extended(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    message = refusal(extending(tmp_path, "x.yaml", f"extends: {name}"))
    assert "x.yaml extends" in message
    assert "it is a pipe or a device" in message


def test_a_config_may_be_the_output_of_a_command(small_config: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, small_config.read_bytes())
    os.close(writing)
    assert load_config(f"/dev/fd/{reading}").run == "runs/small"
    os.close(reading)


def test_files_that_extend_one_another_many_times_are_read_once(small_config: Path) -> None:
    for level in range(60):
        below = f"c{level - 1}.yaml" if level else "small.yaml"
        extending(small_config.parent, f"c{level}.yaml", f"extends: [{below}, {below}, ./{below}]")
    assert load_config(small_config.parent / "c59.yaml").run == "runs/small"


def test_a_chain_of_files_has_an_end(small_config: Path) -> None:
    for level in range(101):
        extending(small_config.parent, f"c{level}.yaml", f"extends: c{level + 1}.yaml")
    assert "more than 100 files" in refusal(small_config.parent / "c0.yaml")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        *[("seed=-1", "greater than or equal to 0"), (f"seed={2**63}", "less than 9,223,372,036,854,775,808")],
        *[("generator.trainer.steps=1e30", "steps"), ("generator.trainer.steps=10000000000", "at most 1,000,000,000")],
        *[
            ("generator.trainer.global_batch=99999999999", "at most 16,777,216"),
            ("evaluation.samples=0", "greater than 0"),
        ],
        *[("evaluation.samples=100000000000", "at most"), ("sampling.samples_per_class=100000000000", "at most")],
        *[("sampling.classes=[-1]", "greater than or equal to 0"), ("sampling.classes=[]", "at least 1")],
        *[("sampling.classes=[99999999]", "less than 1,000,000"), ("generator.model.num_classes=9999999", "at most")],
        *[("generator.trainer.learning_rate=.inf", "finite"), ("generator.trainer.learning_rate=.nan", "finite")],
        *[("generator.trainer.learning_rate=1e999", "finite"), ("generator.trainer.betas=[0.9, 1.0]", "less than 1")],
        *[("tokenizer.loss.reconstruction=.inf", "finite"), ("generator.trainer.gradient_clipping=.inf", "finite")],
        *[("tokenizer.model.image_size=1000000", "at most 8,192"), ("tokenizer.model.scales=[]", "at least 1")],
        *[("tokenizer.model.scales=[0, 4]", "greater than 0"), ("cluster.workers=1:999999999999", "at most 100,000")],
        *[("tokens.patience_seconds=1e12", "at most"), ("data.reading.late_seconds=.inf", "finite")],
        *[("data.max_workers=1000000000", "at most 100,000"), ("cluster.grow_seconds=1e300", "at most")],
        ("evaluation.workers=1:999999999999", "at most 100,000"),
        *[("seed=true", "a number, not true"), ("generator.trainer.keep_every=true", "a number, not true")],
        *[("data.validation_samples=1e30", "more digits"), ("sampling.classes=5", "a list, such as [5]")],
        ("generator.trainer.extra={a: [{b: .inf}]}", "inf is no finite number"),
    ],
)
def test_a_number_beyond_its_bounds_is_refused_with_the_bound(small_config: Path, override: str, said: str) -> None:
    message = refusal(small_config, override)
    assert override.partition("=")[0] in message
    assert said in message


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_every_seed_within_its_bounds_loads(small_config: Path, seed: int) -> None:
    assert load_config(small_config, [f"seed={seed}"]).seed == seed


def test_each_number_of_the_config_is_bounded() -> None:
    schema = RunConfig.model_json_schema()
    free = {
        f"{name}.{key}"
        for name, section in [*schema["$defs"].items(), ("RunConfig", schema)]
        for key, field in section.get("properties", {}).items()
        for kind in [field, *field.get("anyOf", [])]
        if kind.get("type") == "integer"
        and "enum" not in kind
        and "maximum" not in kind
        and "exclusiveMaximum" not in kind
    }
    assert free <= {"ClusterConfig.workers", "EvaluationConfig.workers"}  # bounded by their own validator


def test_an_override_that_is_not_utf_8_is_refused(small_config: Path) -> None:
    assert "is not UTF-8" in refusal(small_config, "generator.trainer.keep_best.metric=caf\udce9")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run=pictures/a_run"], "run is pictures/a_run, in the folder pictures of data.source.path"),
        (["data.images=pictures/images"], "data.images is pictures/images, in the folder pictures of data.source.path"),
        (["tokens.output=./pictures"], "tokens.output is ./pictures, in the folder pictures of data.source.path"),
        (["data.reading.cache_dir=pictures/c"], "data.reading.cache_dir is pictures/c, in the folder pictures"),
        (["data.source.path=runs/small/images/a"], "data.source.path is runs/small/images/a, in the folder runs/small"),
        (
            ["data.images=x", "tokens.output=x/tokens"],
            "data.images is x and tokens.output is x/tokens: neither",
        ),
        (["data.images=runs/small/tokens"], "neither may lie in the other"),
    ],
)
def test_folders_that_lie_in_each_other_are_refused_by_name(
    small_config: Path, overrides: list[str], message: str
) -> None:
    assert message in refusal(small_config, *overrides)


_PIECES = [
    *("&a ", "*a", "<<: ", "{", "}", "[", "]", ": ", "- ", "\n", "  ", "'", '"', "#", "? ", "| ", "\t", "\x00", "\x85"),
    *("!!float ", "!!bool ", "!!binary ", "!!timestamp ", "!!set ", "!!omap ", "null", "1e999", "0x", "é", "${X}"),
    *("extends: ", "run: ", "seed: ", "data: ", "source: ", "kind: ", "folder", "path: ", "generator:\n  trainer: "),
    *("{{ a }}", "s3://"),
]
_KEYS = ["run", "seed", "data.source", "data.source.kind", "data.source.path", "cluster.workers", "tokens.views", "a.b"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@example(text="run: x", key="data.source.kind", value="kind: ")
@example(text="run: x", key="seed", value="!!float ")
@given(
    text=st.lists(st.sampled_from(_PIECES), max_size=12).map("".join),
    key=st.sampled_from(_KEYS),
    value=st.lists(st.sampled_from(_PIECES), max_size=4).map("".join),
)
def test_whatever_a_file_and_an_override_hold_they_load_or_are_refused(
    small_config: Path, text: str, key: str, value: str
) -> None:
    path = extending(small_config.parent, "odd.yaml", f"extends: small.yaml\n{text}")
    with contextlib.suppress(UsageError):
        load_config(path, [f"{key}={value}"])


def test_a_truth_value_in_a_file_is_no_number(small_config: Path) -> None:
    message = refusal(extending(small_config.parent, "x.yaml", "extends: small.yaml\nseed: true"))
    assert "x.yaml: seed: has to be a number, not true" in message
