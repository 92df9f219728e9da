"""Which columns of a source a task reads."""

from collections.abc import Iterable

from hfbsz.data.sources.records import Columns
from hfbsz.data.sources.sources import Opened
from hfbsz.data.sources.texts import Template


def template_of(opened: Opened) -> Template | None:
    """The template that builds the text, or None if the recipe sets none. Raises UserError for an invalid template."""
    pattern = opened.data.template
    return Template(pattern, f"{opened.part}.template") if pattern is not None else None


def columns_of(
    opened: Opened, fields: Iterable[str], template: Template | None = None, optional: Iterable[str] = ()
) -> Columns:
    """The columns named by these `fields` of the recipe, by `data.skip` and by the template, keyed by the full names of
    the fields, for messages. `optional` columns are read if the source has them."""
    needed = {f"{opened.part}.{name}": column for name in fields if (column := getattr(opened.data, name)) is not None}
    needed |= {f"{opened.part}.skip.{column}": column for column in opened.data.skip}
    if template is not None:
        needed |= {f"{opened.part}.template {{{column}}}": column for column in template.columns}
    return Columns(needed, tuple(optional))
