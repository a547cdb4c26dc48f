"""What the package does without a daemon."""

import pytest

import dynacompress


def test_block_hashes_are_a_chain_of_whole_blocks() -> None:
    names = dynacompress.block_hashes(range(200))
    assert len(names) == 3 and all(len(name) == 32 for name in names)
    assert dynacompress.block_hashes(range(128)) == names[:2]
    assert dynacompress.block_hashes(range(128), salt=b"x")[0] != names[0]
    assert dynacompress.block_hashes([*range(64, 128)], parent=names[0]) == [names[1]]


def test_nobody_listens_is_a_typed_error() -> None:
    with pytest.raises(dynacompress.Error, match="connect") as caught:
        dynacompress.Client("/nonexistent/dynacompress.sock", deadline=1)
    assert caught.value.code == "CANCELLED"


def test_a_wrong_word_is_named() -> None:
    with pytest.raises(dynacompress.Error, match="bulk 'tape'"):
        dynacompress.Client("/nonexistent", bulk="tape")
