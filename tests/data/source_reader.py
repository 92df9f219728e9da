"""Records of a source, with what a pass over it counted."""

import pytest

from hfbsz.data.sources.records import Columns, Record, Tally
from hfbsz.data.sources.sources import open_source
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Data


def read(*names: str, optional=(), **fields) -> tuple[list[Record], Tally]:
    """What `data.*` fields read, asking for the columns that the named fields name (a field's own name, else)."""
    data, tally = Data(**fields), Tally()
    named = {f"data.{name}": getattr(data, name) or name for name in names or ("text",)}
    return list(open_source(data).records(Columns(named, tuple(optional)), tally)), tally


def texts(records) -> list:
    return [record.columns["text"] for record in records]


def refused(*names: str, **fields) -> str:
    """The one line that these fields are refused with."""
    with pytest.raises(UserError) as caught:
        read(*names, **fields)
    (line,) = caught.value.lines
    assert "\n" not in line
    return line
