"""Read the records of a source in tests, with the tally of the pass."""

import pytest

from hfbsz.data.sources.records import Columns, Record, Tally
from hfbsz.data.sources.sources import open_source
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Data


def read(*names: str, optional=(), **fields) -> tuple[list[Record], Tally]:
    """The records and tally of a source given by `data.*` fields, for the columns that the fields `names` name (for an
    unset field, the column of the same name)."""
    data, tally = Data(**fields), Tally()
    named = {f"data.{name}": getattr(data, name) or name for name in names or ("text",)}
    return list(open_source(data).records(Columns(named, tuple(optional)), tally)), tally


def texts(records) -> list:
    return [record.columns["text"] for record in records]


def refused(*names: str, **fields) -> str:
    """The message of the UserError that these fields raise, which must be one line."""
    with pytest.raises(UserError) as caught:
        read(*names, **fields)
    (line,) = caught.value.lines
    assert "\n" not in line
    return line
