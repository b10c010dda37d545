"""Limits and what the environment says about them."""

import dataclasses

import pytest

from divandb.config import Limits, limits_from


def test_without_variables_the_defaults_hold() -> None:
    assert limits_from({}) == Limits()
    assert limits_from({"DIVANDB_ADMIN": "a:b", "BODY_BYTES_MAX": "1"}) == Limits()


def test_each_limit_can_be_set() -> None:
    variables = {f"DIVANDB_{field.name.upper()}": "7" for field in dataclasses.fields(Limits)}
    changed = limits_from(variables)
    for field in dataclasses.fields(Limits):
        value = getattr(changed, field.name)
        assert value == 7
        assert type(value) is type(field.default)


def test_a_share_may_be_a_fraction() -> None:
    changed = limits_from({"DIVANDB_OLD_REVISIONS_SHARE_MAX": "0.25"})
    assert changed.old_revisions_share_max == 0.25


@pytest.mark.parametrize("text", ["", "x", "1.5", "0", "-1", "1e3", "0x10"])
def test_what_is_no_number_above_zero_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="DIVANDB_UUIDS_MAX"):
        limits_from({"DIVANDB_UUIDS_MAX": text})


@pytest.mark.parametrize("text", ["-inf", "-0.5", "0"])
def test_a_share_is_above_zero(text: str) -> None:
    with pytest.raises(ValueError, match="DIVANDB_OLD_REVISIONS_SHARE_MAX"):
        limits_from({"DIVANDB_OLD_REVISIONS_SHARE_MAX": text})


def test_zero_is_for_settings_in_which_it_has_a_meaning() -> None:
    found = limits_from({"DIVANDB_HOT_BYTES_MAX": "0", "DIVANDB_BACKGROUND_SHARE": "0"})
    assert (found.hot_bytes_max, found.background_share) == (0, 0.0)
    with pytest.raises(ValueError, match="DIVANDB_HOT_BYTES_MAX"):
        limits_from({"DIVANDB_HOT_BYTES_MAX": "-1"})
