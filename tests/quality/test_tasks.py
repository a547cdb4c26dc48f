"""Retrieval tasks: answers stand in the prefix, seeds repeat, splits stay apart."""

import pytest

import tasks
import texts


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_answers_stand_in_the_prefix(seed: int) -> None:
    for task in (
        tasks.key_values(60, seed),
        tasks.key_values(120, seed),
        tasks.multi_key(30, seed),
    ):
        for question, answer in task.questions:
            assert question.splitlines()[-1] + answer + ".\n" in task.prefix
            assert answer not in question


def test_other_text_makes_it_far() -> None:
    near, far = tasks.key_values(60, 1), tasks.key_values(60, 1, other_text="Something else.")
    assert far.prefix == near.prefix + "Something else." and far.questions == near.questions
    assert far.name != near.name


def test_seeds_repeat_and_differ() -> None:
    assert tasks.key_values(60, 1) == tasks.key_values(60, 1)
    assert tasks.key_values(60, 1) != tasks.key_values(60, 2)


def test_variables_end_at_their_chain() -> None:
    task = tasks.variable_tracking(6, 2, 1)
    for question, answer in task.questions:
        name = question.split()[-2]
        assert f"The value of {name} is the same as" in task.prefix
        assert task.prefix.count(answer + ".") == 1


def test_the_frequent_word_is_the_most_frequent() -> None:
    task = tasks.frequent_words(8, 1)
    rows = task.prefix.splitlines()
    for question, answer in task.questions:
        words = rows[int(question.split()[-2]) - 1].split(": ")[1].rstrip(".").split(", ")
        assert max(set(words), key=words.count) == answer.strip()


def test_splits_do_not_share_text() -> None:
    tuning, reporting = texts.passages("tuning"), texts.passages("reporting")
    assert len(tuning) >= 16 and len(reporting) >= 8
    assert not {(p.package, p.member) for p in tuning} & {(p.package, p.member) for p in reporting}
    assert set(texts.PROFILE_TEXTS) <= {p.name for p in tuning}
    assert set(texts.BASIS_PROMPTS) <= set(texts.PROFILE_TEXTS)


def test_cut_begins_at_a_paragraph() -> None:
    text = "first\n\nsecond\nline\n\nthird"
    assert texts.cut(text, 0) == text
    assert texts.cut(text, 3) == "second\nline\n\nthird"
    assert texts.cut(text, 8) == "third"
