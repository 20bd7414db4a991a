"""Old names work, warn at the caller's line, and are not in `__all__`."""

import sys
import types

import pytest

from sbi_bed.utils.renamed import old_names, renamed_arguments


def test_an_old_name_of_a_module_warns_and_gives_the_new_one():
    module = types.ModuleType("room_for_this_test")
    module.new = 3
    module.__getattr__ = old_names("room_for_this_test", {"old": "new"})
    sys.modules["room_for_this_test"] = module
    try:
        with pytest.warns(FutureWarning, match=r"room_for_this_test\.old is now room_for_this_test\.new"):
            assert module.old == 3
        with pytest.raises(AttributeError, match="no attribute 'other'"):
            _ = module.other
    finally:
        del sys.modules["room_for_this_test"]


def test_an_old_name_falls_back_to_the_rooms_own_getattr():
    find = old_names("room", {}, {"lazy": 5}.__getitem__)
    assert find("lazy") == 5


def test_an_old_argument_warns_and_means_the_new_one():
    @renamed_arguments(width="hidden_dim")
    def build(hidden_dim=8):
        return hidden_dim

    with pytest.warns(FutureWarning, match="width= is now hidden_dim=") as caught:
        assert build(width=3) == 3
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match="give only hidden_dim="):
        build(width=3, hidden_dim=3)
